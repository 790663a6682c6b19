"""The format of the training samples, so that samples of another format are refused. NumPy only."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from elite_pl.data.arrays import to_array, to_numbers

# What values can be: whole numbers beyond [0, 1], as pixels in bytes; numbers in [0, 1] that are not all whole, as
# pixels in floats; or neither. A detector trained on one of the first two has not seen the units of the other.
VALUES = ("whole", "unit", "any")


class SampleFormat(NamedTuple):
    """The shape, the order of axes and the units of the samples that a detector was trained on.

    Attributes:
        shape: Of one sample as it came, (features,), (H, W), (H, W, C) or (C, H, W); None for a side of any length.
        channels_last: Whether the channels of an image are its last axis.
        values: One of `VALUES`.
    """

    shape: tuple[int | None, ...]
    channels_last: bool
    values: str

    @classmethod
    def of(cls, samples: np.ndarray, raw_shape: tuple[int, ...] | None) -> SampleFormat:
        """The format of training samples.

        Args:
            samples: As `Arrays` has them, shape (n, ...).
            raw_shape: Of one sample as it came, see `Arrays`.
        """
        stored = samples.shape[1:]
        shape = stored if raw_shape is None else raw_shape
        return cls(shape, len(shape) == 3 and shape != stored, values_of(samples))

    def checked(self, name: str, values: Any) -> np.ndarray:
        """Samples as an array of float32 or uint8, with their axes as they came.

        Args:
            name: Their name in the message.
            values: Samples (n, ...) like those of training: an array, a tensor, lists, a data frame.

        Raises:
            ValueError: If they are not like those of training.
        """
        x = to_array(name, values)
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(f"{name} has shape {x.shape}, which is empty; expected at least one sample")
        if not self._fits(x.shape[1:]):
            sides = ", ".join("any" if side is None else str(side) for side in self.shape)
            raise ValueError(f"{name} has shape {x.shape}; expected (n, {sides}), as in training{self._hint(x.shape)}")
        x = to_numbers(name, x)
        found = values_of(x)
        if {found, self.values} == {"whole", "unit"}:
            words = {"whole": "whole numbers beyond [0, 1]", "unit": "fractions in [0, 1]"}
            right = f"training saw {words[self.values]}; give them in the units of training"
            raise ValueError(f"{name} holds {words[found]}, and {right}")
        return x

    def _fits(self, shape: tuple[int, ...]) -> bool:
        """Returns whether a sample's shape is that of training; an image of one channel may lack its first axis."""
        ours = self.shape
        if len(ours) == 3 and ours[0] == 1 and len(shape) == 2:
            ours = ours[1:]
        elif len(ours) == 2 and len(shape) == 3 and shape[0] == 1:
            shape = shape[1:]
        return len(ours) == len(shape) and all(a in (None, b) for a, b in zip(ours, shape, strict=True))

    def _hint(self, shape: tuple[int, ...]) -> str:
        """A likely reason why an array has another shape."""
        if self._fits(shape):
            return "; x[None] makes an array of one sample"
        if len(shape) == 4 and self.channels_last and self._fits((*shape[2:], shape[1])):
            return ": the channels are the last axis of an image"
        if len(shape) == 4 and not self.channels_last and self._fits((shape[3], *shape[1:3])):
            return ": the channels are the first axis of an image"
        return ""


def values_of(samples: np.ndarray) -> str:
    """The kind of values of samples, one of `VALUES`; of images the type decides."""
    if samples.dtype == np.uint8:
        return "whole"
    if samples.ndim > 2:
        return "unit"
    whole, inside = bool((samples == np.rint(samples)).all()), bool(samples.min() >= 0 and samples.max() <= 1)
    return "any" if whole == inside else "whole" if whole else "unit"

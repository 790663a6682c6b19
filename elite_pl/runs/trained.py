"""The trained detector: one module that takes raw samples. Torch and NumPy only."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from elite_pl.algorithm.calibration import Calibration
from elite_pl.annotations import at_least, is_of
from elite_pl.data import feature_maps
from elite_pl.data.arrays import column_names, to_array
from elite_pl.data.encoding import Encoding
from elite_pl.data.features import FrozenFeatures
from elite_pl.data.preprocessing import Preprocessing
from elite_pl.data.rows import SCORED
from elite_pl.data.sample_format import SampleFormat
from elite_pl.data.sources.table import encoded
from elite_pl.errors import input_errors
from elite_pl.models.mixture import Mixture
from elite_pl.models.pretrained import trained_features
from elite_pl.models.recipe import Recipe
from elite_pl.models.scores import Score
from elite_pl.runs import detector_file

NUMBERS = 2**26  # numbers in the samples that are scored at a time, at most


class TrainedDetector(nn.Module):
    """A trained detector: preprocessing, network, score and threshold. `elite_pl.fit` and `elite_pl.load` make it.

    Args:
        method: The name of the method that trained it.
        model: Ω, the module that maps preprocessed samples to scores.
        recipe: How `model` is made.
        sample_shape: Of one preprocessed sample.
        preprocessing: Applied to raw samples.
        features: The network whose features take the place of the samples, before anything else; None for none.
        samples: Format of raw samples.
        columns: The names of their features, where it was trained on a data frame; None where they have none.
        encoding: How a row of a table becomes a raw sample; None for other data.
        threshold: The score above which a sample is called an anomaly.
        calibration: From scores to probabilities of an anomaly; None where nothing was cross-fitted.
        alarms: The share of samples like those of training that are expected above the threshold; None as above.
        margin: C of Eq. 4, the score to which training pushed anomalies; None where there is none.
        training_scores: Scores of the samples that it was trained on, labeled and unlabeled, in their order, shape
            (n,); None in a file of the first format.
        config: The configuration of the training, plain; nothing here depends on it.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        method: str,
        model: Score,
        recipe: Recipe,
        sample_shape: tuple[int, ...],
        preprocessing: Preprocessing,
        features: FrozenFeatures | None,
        samples: SampleFormat,
        columns: tuple[str, ...] | None = None,
        encoding: Encoding | None,
        threshold: float,
        calibration: Calibration | None = None,
        alarms: float | None = None,
        margin: float | None,
        training_scores: np.ndarray | None,
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.method, self.model, self.recipe, self.sample_shape = method, model, recipe, sample_shape
        self.size, self.contrast = preprocessing.size, preprocessing.contrast
        self.register_buffer("shift", preprocessing.shift)
        self.register_buffer("scale", preprocessing.scale)
        self.feature_map = preprocessing.feature_map
        self.features, self.columns, self.encoding = features, columns, encoding
        self.samples, self.threshold, self.margin = samples, threshold, margin
        self.calibration, self.alarms = calibration, alarms
        self.training_scores, self.config = training_scores, config
        self.eval()

    def forward(self, sample: Tensor) -> Tensor:
        """Maps raw samples (n, ...) to scores (n,), higher for the more anomalous; they are not checked."""
        if self.samples.channels_last:
            sample = sample.movedim(-1, 1).contiguous()
        elif sample.ndim == 3:
            sample = sample[:, None]
        if self.features is not None:
            sample = self.features(sample)
        preprocessing = Preprocessing(self.size, self.contrast, self.shift, self.scale, self.feature_map)
        return self.model(preprocessing.scaled(preprocessing.once(sample)))

    def score(self, x: Any, batch_size: int | None = None) -> np.ndarray:
        """The anomaly scores of samples, higher for the more anomalous.

        Args:
            x: Raw samples as in training, shape (n, ...), any number: an array, a tensor, lists or a data frame, whose
                columns may be in any order if training saw their names. Of a detector that was trained on a table, a
                data frame (polars, pandas) with the same columns or arrays by their names.
            batch_size: How many are scored at a time; None for as many as are fast.

        Returns:
            Scores, float64 of shape (n,).

        Raises:
            ValueError: If they are not like those of training, or so extreme that a score is not finite.
        """
        if self.encoding is not None and (isinstance(x, Mapping) or hasattr(x, "columns")):
            return self.score_checked(encoded(x, self.encoding), batch_size)
        if self.columns is not None and (names := column_names(x)) is not None:
            if absent := [name for name in self.columns if name not in names]:
                raise ValueError(f"x has no column {', '.join(absent)}; expected those of training")
            x = to_array("x", x)[:, [names.index(name) for name in self.columns]]
        return self.score_checked(self.samples.checked("x", x), batch_size)

    @property
    def chunk(self) -> int:
        """The number of samples scored at a time: fast, without much memory."""
        return max(1, min(SCORED, NUMBERS // math.prod(self.sample_shape)))

    @torch.inference_mode()
    def score_checked(self, values: np.ndarray, batch_size: int | None = None) -> np.ndarray:
        """As `score`, of an array that `samples.checked` has returned."""
        if not len(values):
            raise ValueError("x has no rows; expected at least one sample")
        if not is_of(batch_size, Annotated[int, at_least(1)] | None):
            raise ValueError(f"batch_size={batch_size}: must be a whole number of at least 1, or None")
        self.eval()
        size = batch_size or self.chunk
        chunks = (torch.tensor(values[i : i + size], device=self.shift.device) for i in range(0, len(values), size))
        scores = torch.cat([self(chunk) for chunk in chunks]).double().cpu().numpy()
        if not np.isfinite(scores).all():
            raise ValueError("x holds values so extreme that their scores are not finite")
        return scores

    def predict(self, x: Any) -> np.ndarray:
        """Tells anomalies (-1, a score above `threshold`) from normal samples (1); arguments and errors as in `score`.

        Returns:
            int64 of shape (n,).
        """
        return np.where(self.score(x) > self.threshold, -1, 1)

    def probability(self, x: Any) -> np.ndarray:
        """The probability that each sample is an anomaly, assuming the pollution of the unlabeled training samples.

        Args:
            x: As in `score`.

        Returns:
            In [0, 1], float64 of shape (n,), rising with the score.

        Raises:
            ValueError: As in `score`, and if there is no calibration because training held no labels out.
        """
        if self.calibration is None:
            why = "no labels were held out in its training, which takes four of each kind"
            raise ValueError(f"this detector has no probabilities: {why}")
        return self.calibration.at(torch.as_tensor(self.score(x))).numpy()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that `elite_pl.load` reads: tensors and plain values, no code."""
        known = self.training_scores
        mixture = self.model if isinstance(self.model, Mixture) else None
        state = self.model.state_dict() if mixture is None else mixture.state()
        content = {
            "method": self.method,
            **self.recipe.to_plain(),
            "members": [] if mixture is None else mixture.to_plain(),
            "state": {name: value.cpu() for name, value in state.items()},
            "sample_shape": list(self.sample_shape),
            "preprocessing": {
                "size": self.size,
                "contrast": self.contrast,
                "shift": self.shift.cpu(),
                "scale": self.scale.cpu(),
                "feature_map": self.feature_map and self.feature_map.to_plain(),
            },
            "features": self.features and self.features.to_plain(),
            "samples": {**self.samples._asdict(), "shape": list(self.samples.shape)},
            "columns": self.columns and list(self.columns),
            "encoding": self.encoding and self.encoding.to_plain(),
            "threshold": self.threshold,
            "calibration": self.calibration and self.calibration._asdict(),
            "alarms": self.alarms,
            "margin": self.margin,
            "training_scores": None if known is None else torch.as_tensor(known),
            "config": self.config,
        }
        detector_file.write(path, content)

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainedDetector:
        """A copy in memory: the pickle cannot rebuild a detector that needs external weights or constructors."""
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made

    def __reduce__(self) -> tuple[Callable[[bytes], TrainedDetector], tuple[bytes]]:
        """A pickle holds what `save` writes, and is read on the CPU."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "detector.pt"
            self.save(path)
            return _of_bytes, (path.read_bytes(),)


def _of_bytes(content: bytes) -> TrainedDetector:
    """The detector that `TrainedDetector.save` has written."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "detector.pt"
        path.write_bytes(content)
        return load(path)


def load(
    path: str | os.PathLike[str],
    constructors: Mapping[str, Callable[..., Any]] | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> TrainedDetector:
    """Reads a detector that `python -m elite_pl.train` (`detector.pt`) or `TrainedDetector.save` has written.

    It needs torch and NumPy alone, and runs no code from the file: networks and scores are made by constructors of
    elite_pl, or by your own where you name them.

    Args:
        path: The file.
        constructors: Networks and scores of your own by their addresses in the configuration, such as
            `{"linear.linear": linear}`. They get the arguments that are in the file.
        weights: The file of weights of the frozen network whose features it was trained on, which are not in its own;
            None for those of the package that brings `efficientnet_lite0`.

    Returns:
        The detector, on the CPU.

    Raises:
        ValueError: If it is no such file, is damaged, of a newer version, or needs a constructor that is not given;
            names the file.
    """
    content = detector_file.read(path)
    made = content["preprocessing"]
    mapped = made["feature_map"] and feature_maps.of_plain(made["feature_map"])
    preprocessing = Preprocessing(**{**made, "feature_map": mapped})
    recipe = Recipe.of_plain(content)
    shape, known = tuple(content["sample_shape"]), content["training_scores"]
    samples = SampleFormat(**{**content["samples"], "shape": tuple(content["samples"]["shape"])})
    with input_errors(os.fspath(path)):
        dtype = preprocessing.shift.dtype
        if content["members"]:
            model: Score = Mixture.of_plain(content["members"], content["state"], dtype, constructors or {})
        else:
            model = recipe.make(shape, content["state"], dtype, constructors or {})
        features = content["features"] and _frozen_features(content["features"], samples, weights)
    return TrainedDetector(
        method=content["method"],
        model=model,
        recipe=recipe,
        sample_shape=shape,
        preprocessing=preprocessing,
        features=features,
        samples=samples,
        columns=content["columns"] and tuple(content["columns"]),
        encoding=content["encoding"] and Encoding.from_plain(content["encoding"]),
        threshold=content["threshold"],
        calibration=content["calibration"] and Calibration(**content["calibration"]),
        alarms=content["alarms"],
        margin=content["margin"],
        training_scores=None if known is None else known.double().numpy(),
        config=content["config"],
    )


def _frozen_features(
    plain: dict[str, Any], samples: SampleFormat, weights: str | os.PathLike[str] | None
) -> FrozenFeatures:
    """Rebuilds what `FrozenFeatures.to_plain` describes, with the weights of a file."""
    network = trained_features(plain["library"], plain["model"], plain["image_size"], weights, plain["weights"])
    images = Preprocessing(plain["size"], False, torch.zeros(()), torch.tensor(plain["scale"]))
    return FrozenFeatures(network.float(), images, samples)

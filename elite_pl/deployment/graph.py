"""A detector as one graph, from raw samples to score and verdict: torch.export's or ONNX."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import elite_pl
from elite_pl.deployment.inputs import image_shape
from elite_pl.runs.trained import TrainedDetector

INPUT, OUTPUTS = "samples", ("score", "is_anomaly")


class Graph(nn.Module):
    """Maps raw samples (n, ...) to their scores (n,), and whether these are above the threshold, bool (n,).

    Args:
        detector: The detector.
    """

    def __init__(self, detector: TrainedDetector) -> None:
        super().__init__()
        self.detector, self.threshold = detector, detector.threshold

    def forward(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Maps samples to scores and verdicts."""
        score = self.detector(samples)
        return score, score.double() > self.threshold


def examples(detector: TrainedDetector, n: int) -> Tensor:
    """Made-up samples of the shape and type that the graph of a detector takes, shape (n, ...)."""
    generator, shape = torch.Generator().manual_seed(0), detector.samples.shape
    if len(shape) == 1:
        noise = torch.randn(n, *map(int, filter(None, shape)), generator=generator)
        return noise * detector.scale.float() + detector.shift.float()
    if None in shape:
        shape = image_shape(detector)
    pixels = torch.rand(n, *map(int, filter(None, shape)), generator=generator)
    return pixels if detector.samples.values == "unit" else (pixels * 255).round().to(torch.uint8)


def to_graph(detector: TrainedDetector) -> ExportedProgram:
    """The graph of a detector, for any number of samples, in float32; see `Graph` for what it maps."""
    single = copy.deepcopy(detector).cpu().float()  # onnxruntime has no convolution in float64
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(
            Graph(single).requires_grad_(False), (examples(detector, 3),), dynamic_shapes={INPUT: {0: Dim("n")}}
        )


def write_torch(program: ExportedProgram, path: Path) -> None:
    """Writes a graph that `torch.export.load` reads (`.pt2`), weights and all."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found")  # of a transposed one, which it saves right
        torch.export.save(program, path)


def missing_for_onnx() -> list[str]:
    """The packages that `write_onnx` needs and that are not installed."""
    return [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]


def _searchsorted(ordered: Tensor, values: Tensor, right: bool = False, **options: object) -> Tensor:
    """`torch.searchsorted` for few ordered values, by counting."""
    ordered, values = ordered[..., None, :], values[..., None]
    return (ordered <= values if right else ordered < values).sum(-1)


def _ndtri(share: Tensor) -> Tensor:
    """`torch.special.ndtri` from 1e-11 to 1 - 1e-11, to seven digits.

    Source: Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution", Applied Statistics 37 (1988),
    PPND7.
    """
    q = share - 0.5
    r = 0.180625 - q.square()
    middle = q * (((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179)
    middle = middle / (((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1)
    r = torch.minimum(share, 1 - share).log().neg().sqrt() - 1.6
    tail = ((0.17023821103 * r + 1.3067284816) * r + 2.7568153900) * r + 1.4234372777
    tail = tail / ((0.12021132975 * r + 0.73700164250) * r + 1)
    return torch.where(q.abs() <= 0.425, middle, q.sign() * tail)


# Substitutes for operators that ONNX lacks.
_IN_OTHER_WORDS = {torch.ops.aten.searchsorted.Tensor: _searchsorted, torch.ops.aten.special_ndtri.default: _ndtri}


def write_onnx(program: ExportedProgram, detector: TrainedDetector, path: Path) -> None:
    """Writes a graph as one ONNX file, weights and all; its metadata hold method, threshold and version.

    Where it resizes bytes, and rounds them again, a pixel that lies half-way between two values may become either.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = program.run_decompositions(_IN_OTHER_WORDS)
        made = torch.onnx.export(program, (), dynamo=True, verbose=False, output_names=list(OUTPUTS))
    assert made is not None
    about = {"method": detector.method, "threshold": repr(detector.threshold), "elite_pl": elite_pl.__version__}
    made.model.metadata_props.update(about)
    shape = made.model.graph.inputs[0].shape
    assert shape is not None
    made.rename_axes({str(shape[0]): "n"})
    made.save(path, external_data=False)

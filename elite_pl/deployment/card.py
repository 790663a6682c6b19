"""The model card of an exported detector, as a page of Markdown."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import PurePath

import torch

import elite_pl
from elite_pl.runs.trained import TrainedDetector

PAGE = """\
# Anomaly detector: {data}

Method `{method}` of elite_pl, trained on {data}.{training}

| | |
|---|---|
| `samples` | {input} |
| `score` | float (n,), higher for the more anomalous |
| `is_anomaly` | bool (n,), whether the score is above the threshold {threshold!r} |

`{model}` maps the first to the others, for any number n of samples; all preprocessing{but} is part of it.
`python score.py INPUT -o scores.csv` scores files by it with {packages} alone. {probability}Its `p_value` is
(k + 1) / (m + 1), where k of the m training samples that are not flagged score as high. `detector.json` holds plain
numbers.

## Threshold

{rule}

## Limits

It reflects its training data: after a change of the camera, the sensors or the population, its scores and its threshold
are no longer valid. Evaluate it on labeled samples that it has not seen before you base decisions on it.

## License

To be filled in; it depends on the data.{pretrained}

## Versions

elite_pl {version}, PyTorch {torch}, Python {python}.
"""
FITTED = """\
The best cut between the labeled samples by balanced accuracy, or without labels of both kinds the 95th percentile of
the training scores. The detector was fitted to these labels, so expect more alarms than there are anomalies."""
CROSS_FITTED = """\
Chosen by the rule `{rule}` ({values}) on scores of labeled samples by detectors that were trained without them. Among
samples like the unlabeled ones of its training, expect it to flag {alarms:.1%}."""
PROBABILITY = "Its `probability` is that of an anomaly, assuming the pollution of the unlabeled training samples. "
MOST = 40  # names that are written out


def model_card(detector: TrainedDetector, model: str) -> str:
    """Returns the model card of an exported detector.

    Args:
        detector: The detector.
        model: The name of the file with its graph.
    """
    dataset = detector.config.get("dataset")
    data = "unknown data"
    if isinstance(dataset, dict):
        data = PurePath(str(dataset.get("path") or dataset.get("name"))).name
    runtime = "onnxruntime" if model.endswith(".onnx") else "PyTorch"
    return PAGE.format(
        data=data,
        method=detector.method,
        training=_training(detector),
        input=_input(detector),
        threshold=detector.threshold,
        model=model,
        but="" if detector.encoding is None else " but the encoding of columns",
        probability="" if detector.calibration is None else PROBABILITY,
        packages=f"NumPy and {runtime}" if len(detector.samples.shape) == 1 else f"NumPy, {runtime} and Pillow",
        rule=_rule(detector),
        pretrained=_pretrained(detector),
        version=elite_pl.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
    )


def _rule(detector: TrainedDetector) -> str:
    """Describes how the threshold was chosen."""
    settings = detector.config.get("threshold")
    if detector.alarms is None or not isinstance(settings, dict):
        return FITTED
    rule = settings.get("rule")
    used = ("cost_missed", "cost_false_alarm") if rule == "cost" else (rule,)
    values = _words(f"{key}={settings.get(key)}" for key in used)
    return CROSS_FITTED.format(rule=rule, values=values, alarms=detector.alarms)


def _training(detector: TrainedDetector) -> str:
    """Describes the training set: its size, and how many of its samples the detector flags."""
    known = detector.training_scores
    if known is None:
        return ""
    flagged = (known > detector.threshold).mean()
    return f" Of the {len(known):,} training samples, labeled ones included, it flags {flagged:.1%}."


def _input(detector: TrainedDetector) -> str:
    """Describes the input of the graph."""
    shape = ", ".join("any" if side is None else str(side) for side in detector.samples.shape)
    if (encoding := detector.encoding) is not None:
        columns = _words(f"{name} ({kind})" for name, kind in encoding.kinds.items())
        encoded = f"rows of a table, encoded: float32 (n, {shape}), which are {_words(encoding.features)}"
        file = "a CSV file, separated by commas, semicolons, tabs or bars,"
        return f"{encoded}. `score.py` takes {file} with the columns {columns}, and encodes them"
    if len(detector.samples.shape) == 1:
        return f"vectors as in training, float32 (n, {shape})"
    units = "float32 in [0, 1]" if detector.samples.values == "unit" else "uint8"
    return f"images as in training, {units} (n, {shape}); `score.py` takes files of any size, too, and resizes them"


def _pretrained(detector: TrainedDetector) -> str:
    """Describes the pretrained weights in the graph, and their license."""
    if detector.features is None:
        return ""
    identity = detector.features.network.identity
    weights = f"`{identity['model']}` ({identity['library']}; SHA-256 of its weights {identity['weights']})"
    return f" The graph holds a network that others have trained, which has a license of its own: {weights}."


def _words(names: Iterable[str]) -> str:
    """Names as code, not too many."""
    shown = [f"`{name}`" for name in names]
    return ", ".join(shown[:MOST]) + (f" and {len(shown) - MOST} more" if len(shown) > MOST else "")

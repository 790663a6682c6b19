"""`detector.pt`: all that is needed to score new samples."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from elite_pl.addresses import PUBLIC, renamed
from elite_pl.data.datamodule import PollutedData
from elite_pl.files import atomic_write
from elite_pl.methods.base import BaseDetector
from elite_pl.runs.build import make_detector


def save_detector(
    path: Path, config: dict[str, Any], detector: BaseDetector, data: PollutedData, threshold: float
) -> None:
    """Writes `detector.pt`: plain tensors and dictionaries, all that is needed to score new samples."""
    content = {
        "score": detector.score.state_dict(),
        "margin": getattr(detector, "margin", None),
        "threshold": threshold,
        "sample_shape": list(data.sample_shape),
        "preprocessing": data.preprocessing._asdict(),
        "config": config,
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def load_detector(path: Path) -> tuple[BaseDetector, dict[str, Any]]:
    """Reads `detector.pt`.

    Args:
        path: The file.

    Returns:
        The detector in evaluation mode, and all that the file holds; `Preprocessing(**content["preprocessing"])` makes
        the samples that it takes.
    """
    content = torch.load(path, weights_only=True)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(content["preprocessing"]["shift"].dtype)  # float64 of a run with trainer.precision=64
    try:
        detector = make_detector(OmegaConf.create(renamed(content["config"], PUBLIC)), tuple(content["sample_shape"]))
    finally:
        torch.set_default_dtype(dtype)
    detector.score.load_state_dict(content["score"])
    return detector.eval(), content

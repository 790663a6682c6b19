"""A configuration as the command hands it over, for tests that need no command."""

from pathlib import Path
from typing import Any, cast

from elite_pl.runs.spec import RunSpec

WANDB = {"_target_": "elite_pl.runs.wandb_logger", "project": "elite_pl", "entity": None, "mode": None}


def make_config(**root: Any) -> dict[str, Any]:
    """A resolved config as the command hands it over."""
    return {
        "study": "s1",
        "output_dir": "outputs",
        "threads": 1,
        "seed": 0,
        "pollution": 0.5,
        "label_ratio": 0.004,
        "n_train": 5000,
        "normal_class": 3,
        "dataset": {"name": "mnist", "root": "a", "source": {"name": "MNIST", "root": "a"}},
        "method": {"name": "elite_svdd", "optimizer": {"lr": 1e-3}},
        "trainer": {"devices": 1, "check_val_every_n_epoch": 1, "enable_progress_bar": False},
        "logger": WANDB,
        **root,
    }


def make_spec(directory: Path, config: dict[str, Any]) -> RunSpec:
    """A run with this configuration and directory."""
    return RunSpec(cast(Any, None), config, "0" * 10, directory)

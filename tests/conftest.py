"""The command, run as a person runs it but in this process, because starting PyTorch takes longer than most tests."""

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from matplotlib.figure import Figure
from PIL import Image

torch.set_num_threads(1)

from elite_pl import cli, train  # noqa: E402
from elite_pl.runs import plots  # noqa: E402

PLOTS = ("roc_plot", "score_plot", "suspicion_plot", "curves_plot", "meta_gradient_plot")
render, draw = Figure.savefig, {name: getattr(plots, name) for name in PLOTS}


def save_blank(figure: Figure, path: Path, **options: object) -> None:
    """Writes a picture of its format that shows nothing."""
    if path.suffix == ".svg":
        assert "pil_kwargs" not in options, "which the writer of SVG does not take"
        path.write_text('<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>')
    else:
        Image.new("L", (1, 1)).save(path)


def draw_blank(path: Path, *arguments: object, **named: object) -> None:
    Image.new("L", (1, 1)).save(path)


@pytest.fixture(scope="session", autouse=True)
def blank_pictures():
    """Pictures are not drawn, which would take half the time of a short run; see `rendered`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_blank)
        for name in PLOTS:
            patch.setattr(plots, name, draw_blank)
        yield


@pytest.fixture
def rendered(monkeypatch):
    """Pictures as they are."""
    monkeypatch.setattr(Figure, "savefig", render)
    for name, function in draw.items():
        monkeypatch.setattr(plots, name, function)


@pytest.fixture(scope="session", autouse=True)
def composed_once():
    """Hydra composes a command twice, first to see whether `hydra.mode` makes it a sweep: only experiments set that."""
    original = Hydra.get_mode

    def mode(self, config_name, overrides):
        if "hydra.mode=RUN" in overrides:
            return RunMode.RUN
        sweeps = any("experiment" in override or "hydra" in override for override in overrides)
        return original(self, config_name, overrides) if sweeps else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", mode)
        yield


@dataclass
class Outcome:
    """What a command left: exit code, both streams, and the run directory that it names last."""

    code: int
    out: str
    err: str

    @property
    def directory(self) -> Path:
        return Path(self.out.splitlines()[-1])


@pytest.fixture
def call(capfd, monkeypatch, tmp_path):
    """Runs the `main` of a command with arguments, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("elite_pl")  # the command gives it a handler on this test's streams
    monkeypatch.setattr(log, "handlers", log.handlers)
    monkeypatch.setattr(log, "propagate", log.propagate)

    def made(main, *arguments: object) -> Outcome:
        capfd.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = int(exit.code or 0)
        cli.quiet_runs(False)  # a process ends with its command
        streams = capfd.readouterr()
        return Outcome(code, streams.out, streams.err)

    return made


@pytest.fixture
def command(monkeypatch, call):
    """Runs `python -m elite_pl.train ARGUMENTS` in an empty folder, without a tracker unless one is asked for."""

    def of_train(arguments: list[str]) -> None:
        default = [] if any(a.startswith(("logger=", "~logger", "--", "-c")) for a in arguments) else ["logger=none"]
        monkeypatch.setattr(sys, "argv", ["elite_pl.train", *arguments, *default])
        train.main()

    return lambda *arguments: call(of_train, *arguments)


def forget_wandb() -> None:
    """Ends W&B's own process, and all that wandb remembers of it and of keys."""
    import wandb
    from wandb.sdk.lib import wbauth

    wandb.teardown()
    wbauth.unauthenticate_session(update_settings=False)
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture
def nobody(monkeypatch, tmp_path_factory):
    """Neither the settings nor the keys of whoever runs the tests, nor what an earlier test left in wandb's memory."""
    forget_wandb()
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    forget_wandb()


@pytest.fixture
def offline(nobody, monkeypatch):
    """W&B without a server."""
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def images(tmp_path):
    """Makes an npz file of small images in four classes: a bright stripe, whose place is the class, in noise."""

    def make(
        height: int = 12, width: int = 12, channels: int = 1, per_class: int = 60, name: str = "images.npz"
    ) -> Path:
        rng = np.random.default_rng(0)
        y = np.repeat(np.arange(4), per_class)
        x = rng.integers(0, 90, (len(y), height, width, channels))
        for place in range(4):
            x[y == place, 2 * place : 2 * place + 2] += 150
        path = tmp_path / name
        np.savez(path, x=x.astype(np.uint8), y=y)
        return path

    return make


@pytest.fixture(scope="session")
def torchvision_file(tmp_path_factory):
    """Weights of torchvision's `mobilenet_v3_small`, drawn at random, with a classifier of seven classes."""
    from torchvision.models import mobilenet_v3_small

    path = tmp_path_factory.mktemp("weights") / "mobilenet.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(mobilenet_v3_small(num_classes=7).state_dict(), path)
    return path


TIMM = """\
from torch import nn


class Tiny(nn.Module):
    pretrained_cfg = {"classifier": "head", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, num_classes) if num_classes else nn.Identity()

    def forward(self, image):
        return self.head(self.stem(image).mean((2, 3)))


def list_models():
    return ["tiny"]


def create_model(name, pretrained, num_classes):
    assert name == "tiny" and not pretrained
    return Tiny(num_classes)
"""


@pytest.fixture
def stand_in_for_timm(tmp_path, monkeypatch):
    """A module with what we use of timm, which brings more packages than it is worth; weights of its one model."""
    (tmp_path / "timm.py").write_text(TIMM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    weights = {"stem.weight": (4, 3, 1, 1), "stem.bias": (4,), "head.weight": (7, 4), "head.bias": (7,)}
    torch.save({name: torch.rand(shape) for name, shape in weights.items()}, tmp_path / "timm.pt")
    yield tmp_path / "timm.pt"
    sys.modules.pop("timm", None)

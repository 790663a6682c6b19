"""The command, run as a person runs it but in this process, because starting PyTorch takes longer than most tests."""

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

from elite_pl import train  # noqa: E402


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
def command(monkeypatch, capfd, tmp_path):
    """Runs `python -m elite_pl.train ARGUMENTS` in an empty folder, without a tracker unless one is asked for."""
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("elite_pl")  # the command gives it a handler on this test's streams
    monkeypatch.setattr(log, "handlers", log.handlers)
    monkeypatch.setattr(log, "propagate", log.propagate)

    def call(*arguments: str) -> Outcome:
        default = [] if any(a.startswith(("logger=", "~logger", "--")) for a in arguments) else ["logger=none"]
        monkeypatch.setattr(sys, "argv", ["elite_pl.train", *arguments, *default])
        capfd.readouterr()
        code = 0
        try:
            train.main()
        except SystemExit as exit:
            code = int(exit.code or 0)
        streams = capfd.readouterr()
        return Outcome(code, streams.out, streams.err)

    return call


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

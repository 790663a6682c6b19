"""W&B: online, offline, refused and disabled; what it is told is read back."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from resolved_config import WANDB, make_config, make_spec
from torch.utils.data import DataLoader, TensorDataset
from wandb_tools import MockServer, read_records, read_run

from elite_pl.errors import InputError
from elite_pl.runs import loggers as tracking

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers and steps


KEY = "0123456789" * 4  # of the right form, of nobody


@pytest.fixture(autouse=True)
def isolated(nobody: None) -> None:
    """All tests of this file run as nobody."""


@pytest.fixture
def closed_port() -> str:
    """A URL at which nobody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A URL at which somebody listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("requested", "variable", "mode"),
    [
        ("disabled", "online", "disabled"),
        ("offline", "online", "offline"),
        (None, "disabled", "disabled"),
        (None, "dryrun", "offline"),
    ],
)
def test_explicit_mode(monkeypatch: pytest.MonkeyPatch, requested: str | None, variable: str, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    assert tracking.wandb_mode(requested) == mode


def test_unknown_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^logger\.mode=onlin: no such mode"):
        tracking.wandb_mode("onlin")
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(InputError, match=r"^WANDB_MODE=onlin: no such mode"):
        tracking.wandb_mode(None)


def refuse_to_answer(*_: object) -> str:
    raise AssertionError("a question was asked")


@pytest.mark.parametrize("requested", [None, "online"])
@pytest.mark.parametrize("server", ["closed_port", "black_hole", "no key"])
def test_offline_within_three_seconds(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
    server: str,
    requested: str | None,
) -> None:
    monkeypatch.setattr("builtins.input", refuse_to_answer)
    monkeypatch.setattr("getpass.getpass", refuse_to_answer)
    if server == "no key":
        monkeypatch.setenv("WANDB_BASE_URL", request.getfixturevalue("black_hole"))
    else:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", request.getfixturevalue(server))
    start = time.monotonic()
    assert tracking.wandb_mode(requested) == "offline"
    assert time.monotonic() - start < 3
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (requested == "online")  # who asked for it is told


class Tiny(pl.LightningModule):
    """The least that logs a curve."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.log("train/loss", float(self.current_epoch + 1), on_step=False, on_epoch=True)
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


METRICS = {"test/auroc": 0.1 + 0.2, "data/test": np.int64(400), "device": "cpu", "test/collapsed": False}


def train(directory: Path, config: dict[str, Any], exit_code: int = 0) -> Any:
    """Two epochs, the results and the end of a run, as the command does it."""
    directory.mkdir(parents=True, exist_ok=True)
    logger = tracking.make_logger(make_spec(directory, config))
    run = tracking.wandb_run(logger)
    try:
        trainer = pl.Trainer(
            max_epochs=2,
            logger=logger,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Tiny(), DataLoader(TensorDataset(torch.ones(8, 2)), batch_size=4))
        generator = np.random.default_rng(0)
        truth = torch.from_numpy(generator.random(400) < 0.5)
        scores = torch.from_numpy(generator.normal(size=400)) + truth
        tracking.log_final(run, METRICS, truth, scores, scores[:100], truth[:100])
    finally:
        tracking.close(run, exit_code)
    return run


HISTOGRAMS = {"score/normal", "score/anomaly", "meta_gradient/normal", "meta_gradient/anomaly"}


def test_offline_run_is_read_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = make_config()
    train(tmp_path, config)
    assert "wandb" not in capfd.readouterr().out
    run = read_run(tmp_path)
    record = run["run"]
    assert record.project == "elite_pl"
    assert (record.run_group, record.job_type) == ("s1", "elite_svdd")
    assert record.display_name == "normal3_rp0.5_rl0.004_n5000_seed0"
    assert list(record.tags) == ["mnist", "pollution=0.5", "normal=3"]
    assert {key: run["config"][key] for key in config} == config
    assert run["exit_code"] == 0

    curve = [(row["train/loss"], row["trainer/global_step"]) for row in run["history"] if "train/loss" in row]
    assert curve == [(1.0, 1), (2.0, 3)]
    assert run["summary"]["test/auroc"] == METRICS["test/auroc"]  # to the last bit, and no dictionary
    assert run["summary"]["data/test"] == 400
    assert not {"device", "test/collapsed"} & run["summary"].keys()
    (charts,) = [row for row in run["history"] if "roc_table" in row]
    assert charts.keys() >= HISTOGRAMS
    assert sum(sum(charts[f"score/{name}"]["values"]) for name in ("normal", "anomaly")) == 400
    assert charts["score/normal"]["bins"] == charts["score/anomaly"]["bins"]
    table = json.loads((run["file"].parent / "files" / charts["roc_table"]["path"]).read_text())
    assert table["columns"] == ["class", "fpr", "tpr"] and 10 < len(table["data"]) <= 300


def test_jobs_of_a_sweep_are_runs_of_their_own(tmp_path: Path) -> None:
    logger = tracking.make_logger(make_spec(tmp_path / "open", make_config()))  # left open on purpose
    assert tracking.wandb_run(logger) is not None
    ids = {train(tmp_path / str(seed), make_config(seed=seed), exit_code=seed).id for seed in (0, 1)}
    assert len(ids) == 2
    for seed in (0, 1):
        run = read_run(tmp_path / str(seed))
        assert run["run"].run_id in ids
        assert run["config"]["seed"] == seed
        assert run["exit_code"] == seed  # job 1 failed
        assert sum("train/loss" in row for row in run["history"]) == 2
    tracking.close(tracking.wandb_run(logger), 1)
    assert read_run(tmp_path / "open")["exit_code"] == 1


def test_records_longer_than_a_block(tmp_path: Path) -> None:
    run = tracking.wandb_logger(
        make_spec(tmp_path, make_config()), project="elite_pl", entity=None, mode="offline"
    ).experiment
    run.log({"long": "x" * 100_000})
    run.log({"short": 1})
    tracking.close(run, 0)
    rows = read_run(tmp_path)["history"]
    assert [len(rows[0]["long"]), rows[1]["short"]] == [100_000, 1]
    assert len(list(read_records(next(tmp_path.rglob("*.wandb"))))) > 3


def test_online_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with MockServer() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        run = train(tmp_path, make_config(), exit_code=3)
        sent = server.runs[run.id]
        assert (sent["groupName"], sent["jobType"], sent["project"]) == ("s1", "elite_svdd", "elite_pl")
        assert sent["tags"] == ["mnist", "pollution=0.5", "normal=3"]
        assert json.loads(sent["config"])["pollution"] == {"value": 0.5}
        assert [row["train/loss"] for row in server.history if "train/loss" in row] == [1.0, 2.0]
        assert server.summary[run.id]["test/auroc"] == METRICS["test/auroc"]
        assert server.history[-1].keys() >= HISTOGRAMS | {"roc_table"}
        assert any("roc_table" in name for name in server.uploads)
        assert server.exit_codes == {run.id: 3}

        (tmp_path / "last.ckpt").touch()  # interrupted: it goes on in the same run
        logger = tracking.make_logger(make_spec(tmp_path, make_config()))
        again = tracking.wandb_run(logger)
        tracking.close(again, 0)
        assert again.id == run.id and server.exit_codes == {run.id: 0}


def test_a_server_that_refuses_costs_no_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MockServer(refuse=True) as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        run = train(tmp_path, make_config())
    assert run.offline and not server.runs
    assert "permission denied" in caplog.text
    (directory,) = (tmp_path / "wandb").glob("offline-run-*")
    assert read_run(directory)["summary"]["test/auroc"] == METRICS["test/auroc"]


def test_charts_that_fail_cost_no_run(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        summary: ClassVar[dict[str, Any]] = {}

        def log(self, _: object) -> None:
            raise RuntimeError("server in trouble")

    tracking.log_final(Broken(), METRICS, None, [1.0, 2.0])
    assert Broken.summary["test/auroc"] == METRICS["test/auroc"]
    assert "server in trouble" in caplog.text


def test_disabled_run(tmp_path: Path) -> None:
    train(tmp_path, make_config(logger=WANDB | {"mode": "disabled"}))
    assert not list(tmp_path.rglob("*.wandb"))


def test_other_loggers(tmp_path: Path) -> None:
    none = tracking.make_logger(make_spec(tmp_path, make_config(logger={"_target_": None})))
    assert none is None and tracking.wandb_run(none) is None
    with pytest.raises(InputError, match=r"^logger\._target_=elite_pl\.runs\.wand: cannot be imported"):
        tracking.make_logger(make_spec(tmp_path, make_config(logger={"_target_": "elite_pl.runs.wand"})))
    assert not list(tmp_path.iterdir())
    csv = {"_target_": "pytorch_lightning.loggers.CSVLogger", "name": "mine"}
    logger = tracking.make_logger(make_spec(tmp_path, make_config(logger=csv)))
    assert logger is not None and logger.save_dir == str(tmp_path) and logger.name == "mine"


@pytest.mark.parametrize(("allowed", "images"), [(True, True), (True, False), (False, True)])
def test_samples_of_ones_own_are_logged_only_if_one_says_so(
    command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, allowed: bool, images: bool
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    rng, y = np.random.default_rng(0), np.repeat([0, 1, -1], [120, 3, 3])
    x = rng.integers(0, 256, (126, 12, 12), dtype=np.uint8) if images else rng.normal(size=(126, 3))
    np.savez("own.npz", x=x, y=y)
    own = ("dataset=npz", "dataset.path=own.npz", "dataset.labels=known", "method=isolation_forest", "threads=1")
    outcome = command(*own, "logger=wandb", f"logger.upload_data={str(allowed).lower()}")
    assert outcome.code == 0, outcome.err
    run = read_run(outcome.directory)
    tables = [row["audit"] for row in run["history"] if "audit" in row]
    models = [artifact for artifact in run["artifacts"] if artifact.type == "model"]
    assert (len(tables), len(models)) == (allowed, allowed)
    if allowed:
        table = json.loads((run["file"].parent / "files" / tables[0]["path"]).read_text())
        assert len(table["data"]) == 100 and ("picture" in table["columns"]) == images
        assert [row[table["columns"].index("rank")] for row in table["data"]] == list(range(1, 101))
        pictures = [
            entry.path
            for artifact in run["artifacts"]
            for entry in artifact.manifest.contents
            if entry.path.endswith(".png")
        ]
        assert len(pictures) == 100 * images
        (model,) = models
        assert [entry.path for entry in model.manifest.contents] == ["detector.pt"]


def test_the_audit_of_a_study_is_logged(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    outcome = command("logger=wandb", "method=isolation_forest", "threads=1")
    assert outcome.code == 0, outcome.err
    run = read_run(outcome.directory)
    assert any(artifact.type == "model" for artifact in run["artifacts"])
    assert any("audit" in row for row in run["history"])

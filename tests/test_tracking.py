"""Run directories, what is done, the files of a run, its pictures, and W&B offline and online (loopback only)."""

from __future__ import annotations

import copy
import csv
import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader, TensorDataset
from wandb_tools import MockServer, read_records, read_run

from elite_pl import plots, tracking
from elite_pl.errors import InputError
from elite_pl.files import atomic_write, write_json

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers and steps


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
        "logger": {"kind": "wandb", "project": "elite_pl", "entity": None, "mode": None},
        **root,
    }


def changed(config: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """A copy of the config with one dotted key set."""
    config = copy.deepcopy(config)
    *groups, name = key.split(".")
    node = config
    for group in groups:
        node = node[group]
    node[name] = value
    return config


# ---- what is already done


@pytest.mark.parametrize("key", tracking.BOOKKEEPING)
def test_bookkeeping_is_no_other_run(key: str) -> None:
    config = make_config()
    before = copy.deepcopy(config)
    assert tracking.config_hash(changed(config, key, "else")) == tracking.config_hash(config)
    assert config == before


@pytest.mark.parametrize("key", ["seed", "pollution", "normal_class", "method.optimizer.lr", "trainer.devices"])
def test_what_numbers_depend_on_is_another_run(key: str) -> None:
    assert tracking.config_hash(changed(make_config(), key, 7)) != tracking.config_hash(make_config())


def test_hash_is_ten_hex_digits_and_ignores_the_order_of_keys() -> None:
    config = make_config()
    hash = tracking.config_hash(config)
    assert len(hash) == 10 and int(hash, 16) >= 0
    assert tracking.config_hash(dict(reversed(config.items()))) == hash
    assert tracking.config_hash({"seed": 0}) == tracking.digest({"seed": 0})  # groups may be missing


def test_own_file_counts_by_content(tmp_path: Path) -> None:
    def hash_of(path: Path) -> str:
        return tracking.config_hash(
            make_config(dataset={"name": "npz", "path": str(path), "source": {"path": str(path)}})
        )

    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    first.write_bytes(b"1")
    missing = hash_of(second)
    original = hash_of(first)
    second.write_bytes(b"1")
    assert hash_of(second) == original != missing  # moved
    first.write_bytes(b"2")
    assert hash_of(first) != original  # replaced


def test_run_directory() -> None:
    directory = tracking.run_directory(make_config())
    assert directory.parent == Path("outputs/s1/mnist/elite_svdd")
    assert directory.name == f"normal3_rp0.5_rl0.004_n5000_seed0-{tracking.config_hash(make_config())}"


@pytest.mark.parametrize(
    ("root", "name"),
    [
        ({"normal_class": "T-shirt/top"}, "normalT-shirt-top_rp0.5_rl0.004_n5000_seed0"),
        ({"normal_class": "../.."}, "normalunnamed_rp0.5_rl0.004_n5000_seed0"),
        ({"n_train": None, "pollution": 0.1 + 0.2}, "normal3_rp0.3_rl0.004_seed0"),
        ({"dataset": {"name": "npz", "labels": "known"}}, "known_seed0"),
    ],
)
def test_coordinates(root: dict[str, Any], name: str) -> None:
    assert tracking.coordinates(make_config(**root)) == name


def test_names_stay_inside_the_output_directory() -> None:
    directory = tracking.run_directory(make_config(study="../../up", method={"name": "a/b" * 100}))
    assert directory.parts[:2] == ("outputs", "up") and len(directory.parts) == 5
    assert all(len(part.encode()) < 256 for part in directory.parts)


def test_finished(tmp_path: Path) -> None:
    assert tracking.finished(tmp_path / "nowhere", "abc") is None
    tracking.write_metrics(tmp_path, "abc", {"test/auroc": 0.1 + 0.2, "device": "cpu"})
    metrics = tracking.finished(tmp_path, "abc")
    assert metrics == {"config_hash": "abc", "test/auroc": 0.1 + 0.2, "device": "cpu"}
    assert tracking.finished(tmp_path, "abd") is None
    text = (tmp_path / "metrics.json").read_bytes()
    for broken in (text[:-4], b"", b"[1]", b"\xff\xfe"):
        (tmp_path / "metrics.json").write_bytes(broken)
        assert tracking.finished(tmp_path, "abc") is None


@pytest.mark.parametrize("value", [math.nan, -math.inf, np.float32("nan"), {"a": 1}, [1]])
def test_metrics_are_flat_and_finite(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="test/auroc"):
        tracking.write_metrics(tmp_path, "abc", {"test/auroc": value})
    assert not list(tmp_path.iterdir())


# ---- files


def test_json_keeps_all_digits_of_all_kinds_of_numbers(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": np.float64(1 / 3), "b": np.int64(3), "c": torch.tensor(0.5), "d": "µ"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"a": 1 / 3, "b": 3, "c": 0.5, "d": "µ"}
    with pytest.raises(ValueError):
        write_json(tmp_path / "b.json", {"deep": {"a": [math.nan]}})
    with pytest.raises(TypeError):
        write_json(tmp_path / "b.json", {"a": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


def test_atomic_write_suits_numpy_which_appends_suffixes(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "splits.npz") as temporary:
        np.savez(temporary, a=np.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == ["splits.npz"]


def test_check_writable(tmp_path: Path) -> None:
    tracking.check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for bad in (tmp_path / "file" / "b", tmp_path / "file", tmp_path / "link", Path("/proc/elite")):
        if bad.parts[1] == "proc" and not Path("/proc").is_dir():
            continue
        with pytest.raises(InputError, match=r"^output_dir=.*: .*; name a directory") as caught:
            tracking.check_writable(bad)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_check_writable_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written to"):
        tracking.check_writable(tmp_path / "a")


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_scores_csv(tmp_path: Path) -> None:
    score = torch.tensor([1 / 3, 2.0, -1e-9])
    tracking.write_scores(tmp_path / "scores.csv", np.array([5, 1, 9]), score, torch.tensor([True, False, True]))
    rows = rows_of(tmp_path / "scores.csv")
    assert list(rows[0]) == ["index", "score", "is_anomaly"]
    assert [row["index"] for row in rows] == ["5", "1", "9"]
    assert [row["is_anomaly"] for row in rows] == ["1", "0", "1"]
    assert [np.float32(row["score"]) for row in rows] == score.tolist()
    tracking.write_scores(tmp_path / "scores.csv", [5, 1], [0.5, 0.25], None)
    assert [row["is_anomaly"] for row in rows_of(tmp_path / "scores.csv")] == ["", ""]


def test_audit_csv(tmp_path: Path) -> None:
    path = tmp_path / "audit.csv"
    tracking.write_audit(
        path, [7, 3, 5, 1], [0.1, 0.5, -2.0, 0.5], [1, -1, 1, -1], np.array([False, True, False, True])
    )
    assert path.read_text().splitlines() == [
        "index,suspicion,pseudo_label,rank,is_anomaly",
        "1,0.5,-1,1,1",
        "3,0.5,-1,2,1",
        "7,0.1,1,3,0",
        "5,-2.0,1,4,0",
    ]
    tracking.write_audit(path, [7, 3], [0.1, 0.5], None, None)
    assert path.read_text().splitlines()[1:] == ["3,0.5,,1,", "7,0.1,,2,"]


def test_environment_goes_into_metrics(tmp_path: Path) -> None:
    found = tracking.environment()
    assert found["version/torch"] == torch.__version__ and found["version/pytorch_lightning"] == pl.__version__
    assert found["device"] and found["platform"]
    assert found["commit"] == "" or len(found["commit"].removesuffix("-dirty")) == 40
    tracking.write_metrics(tmp_path, "abc", found)


def test_no_commit_where_there_is_no_git(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert tracking.environment()["commit"] == ""
    assert capfd.readouterr() == ("", "")


# ---- pictures


def test_roc_curve_has_the_area_that_scikit_learn_finds() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random(3000) < 0.3
    for scores in (generator.normal(size=3000) + truth, generator.integers(0, 5, 3000) + truth, np.zeros(3000)):
        expected = roc_auc_score(truth, scores)
        fpr, tpr = plots.roc_curve(scores, truth)
        assert np.trapezoid(tpr, fpr) == pytest.approx(expected, abs=1e-12)
        fpr, tpr = plots.roc_curve(scores, truth, max_points=300)
        assert len(fpr) <= 300
        assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
        assert np.trapezoid(tpr, fpr) == pytest.approx(expected, abs=1e-3)


def test_histograms_count_every_sample_whatever_the_range() -> None:
    truth = np.arange(1000) % 10 == 0
    generator = np.random.default_rng(0)
    for values in (generator.standard_cauchy(1000), np.zeros(1000), np.full(1000, 1e20), np.full(1000, -3e-30)):
        edges, counts = plots.class_histograms(values, truth)
        assert np.all(np.diff(edges) > 0)
        assert (counts["normal"].sum(), counts["anomaly"].sum()) == (900, 100)
    assert plots.class_histograms([1.0, 2.0], None)[1]["all"].sum() == 2
    assert plots.class_histograms([], [])[1]["normal"].sum() == 0
    assert plots.class_histograms([1.0, 2.0], [True, True])[1]["normal"].sum() == 0


@pytest.mark.parametrize(
    "draw",
    [
        lambda path, scores, truth: plots.roc_plot(path, scores, truth, "title"),
        lambda path, scores, truth: plots.score_plot(path, scores, truth, 0.5),
        lambda path, scores, truth: plots.score_plot(path, scores, None, None),
        lambda path, scores, truth: plots.suspicion_plot(path, scores, truth),
        lambda path, scores, truth: plots.comparison_plot(
            path, [(m, g, 0.9) for m in ("elite_svdd", "deep_svdd") for g in ("0", "3")] + [("deep_sad", "3", 0.1)]
        ),
    ],
    ids=["roc", "score", "score-unknown", "suspicion", "comparison"],
)
def test_pictures(tmp_path: Path, draw: Callable[..., None]) -> None:
    generator = np.random.default_rng(0)
    truth = generator.random(200) < 0.3
    draw(tmp_path / "a.png", generator.normal(size=200) + truth, truth)
    (path,) = tmp_path.iterdir()
    assert path.name == "a.png" and path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# ---- W&B

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
    logger = tracking.make_logger(directory, config)
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
    logger = tracking.make_logger(tmp_path / "open", make_config())  # left open on purpose
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
    run = tracking.make_wandb_logger(tmp_path, make_config(), mode="offline").experiment
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
        logger = tracking.make_logger(tmp_path, make_config())
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
    train(tmp_path, make_config(logger={"kind": "wandb", "project": "p", "entity": None, "mode": "disabled"}))
    assert not list(tmp_path.rglob("*.wandb"))


def test_other_loggers(tmp_path: Path) -> None:
    none = tracking.make_logger(tmp_path, make_config(logger={"kind": "none"}))
    assert none is None and tracking.wandb_run(none) is None
    with pytest.raises(InputError, match=r"^logger\.kind=wand: no such logger"):
        tracking.make_logger(tmp_path, make_config(logger={"kind": "wand"}))
    assert not list(tmp_path.iterdir())

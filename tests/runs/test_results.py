"""What a run leaves, and how a finished one is known: hashes, directories, files, interrupted writes."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from resolved_config import make_config

import elite_pl
from elite_pl.errors import InputError
from elite_pl.files import atomic_write, write_json
from elite_pl.runs import environment, identity, results
from elite_pl.runs.audit import Audit


def changed(config: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """A copy of the config with one dotted key set."""
    config = copy.deepcopy(config)
    *groups, name = key.split(".")
    node = config
    for group in groups:
        node = node[group]
    node[name] = value
    return config


@pytest.mark.parametrize("key", identity.BOOKKEEPING)
def test_bookkeeping_is_no_other_run(key: str) -> None:
    config = make_config()
    before = copy.deepcopy(config)
    assert identity.config_hash(changed(config, key, "else")) == identity.config_hash(config)
    assert config == before


@pytest.mark.parametrize("key", ["seed", "pollution", "normal_class", "method.optimizer.lr", "trainer.devices"])
def test_what_numbers_depend_on_is_another_run(key: str) -> None:
    assert identity.config_hash(changed(make_config(), key, 7)) != identity.config_hash(make_config())


def test_hash_is_ten_hex_digits_and_ignores_the_order_of_keys() -> None:
    config = make_config()
    hash = identity.config_hash(config)
    assert len(hash) == 10 and int(hash, 16) >= 0
    assert identity.config_hash(dict(reversed(config.items()))) == hash
    assert identity.config_hash({"seed": 0}) == identity.digest({"seed": 0})  # groups may be missing


def test_own_file_counts_by_content(tmp_path: Path) -> None:
    def hash_of(path: Path) -> str:
        dataset = {"name": "npz", "path": str(path), "source": {"path": str(path)}}
        return identity.config_hash(make_config(dataset=dataset))

    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    first.write_bytes(b"1")
    missing = hash_of(second)
    original = hash_of(first)
    second.write_bytes(b"1")
    assert hash_of(second) == original != missing  # moved
    first.write_bytes(b"2")
    assert hash_of(first) != original  # replaced


def test_all_own_files_and_folders_count_by_content(tmp_path: Path) -> None:
    def hash_of(**paths: Path) -> str:
        source = {key: str(path) for key, path in paths.items()} | {"_target_": "elite_pl.data.image_folder"}
        return identity.config_hash(make_config(dataset={**source, "name": "mine", "source": source}))

    first, second = tmp_path / "a", tmp_path / "b"
    for key in ("labels_file", "labels_path", "test_path", "test_labels_path", "path"):
        first.write_bytes(b"1")
        second.write_bytes(b"1")
        original = hash_of(**{key: first})
        assert hash_of(**{key: second}) == original
        second.write_bytes(b"2")
        assert hash_of(**{key: second}) != original
    for folder in (tmp_path / "c", tmp_path / "d"):
        folder.mkdir()
        (folder / "x.png").write_bytes(b"1")
    original = hash_of(path=tmp_path / "c")
    assert hash_of(path=tmp_path / "d") == original
    (tmp_path / "d" / "x.png").write_bytes(b"2")
    assert hash_of(path=tmp_path / "d") != original


def test_a_copy_of_cifar10_is_another_data_set(tmp_path: Path) -> None:
    def hash_of(root: Path) -> str:
        source = {"name": "CIFAR10", "root": str(root)}
        return identity.config_hash(make_config(dataset={"name": "cifar10", "root": str(root), "source": source}))

    official = hash_of(tmp_path)
    (tmp_path / "cifar10.npz").write_bytes(b"1")
    copy = hash_of(tmp_path)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "cifar10.npz").write_bytes(b"1")
    assert hash_of(moved) == copy != official
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (batches / name).touch()
    assert hash_of(tmp_path) == official, "which is taken where it is there"


def test_run_directory() -> None:
    directory = identity.run_directory(make_config(), identity.config_hash(make_config()))
    assert directory.parent == Path("outputs/s1/mnist/elite_svdd")
    assert directory.name == f"normal3_rp0.5_rl0.004_n5000_seed0-{identity.config_hash(make_config())}"


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
    assert identity.coordinates(make_config(**root)) == name


def test_names_stay_inside_the_output_directory() -> None:
    directory = identity.run_directory(make_config(study="../../up", method={"name": "a/b" * 100}), "0" * 10)
    assert directory.parts[:2] == ("outputs", "up") and len(directory.parts) == 5
    assert all(len(part.encode()) < 256 for part in directory.parts)


def test_finished(tmp_path: Path) -> None:
    assert results.finished(tmp_path / "nowhere", "abc") is None
    results.write_metrics(tmp_path, "abc", {"test/auroc": 0.1 + 0.2, "device": "cpu"})
    metrics = results.finished(tmp_path, "abc")
    assert metrics == {"config_hash": "abc", "test/auroc": 0.1 + 0.2, "device": "cpu"}
    assert results.finished(tmp_path, "abd") is None
    text = (tmp_path / "metrics.json").read_bytes()
    for broken in (text[:-4], b"", b"[1]", b"\xff\xfe"):
        (tmp_path / "metrics.json").write_bytes(broken)
        assert results.finished(tmp_path, "abc") is None


@pytest.mark.parametrize("value", [math.nan, -math.inf, np.float32("nan"), {"a": 1}, [1]])
def test_metrics_are_flat_and_finite(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="test/auroc"):
        results.write_metrics(tmp_path, "abc", {"test/auroc": value})
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
    results.check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for bad in (tmp_path / "file" / "b", tmp_path / "file", tmp_path / "link", Path("/proc/elite")):
        if bad.parts[1] == "proc" and not Path("/proc").is_dir():
            continue
        with pytest.raises(InputError, match=r"^output_dir=.*: .*; name a directory") as caught:
            results.check_writable(bad)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_check_writable_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written to"):
        results.check_writable(tmp_path / "a")


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_scores_csv(tmp_path: Path) -> None:
    score = torch.tensor([1 / 3, 2.0, -1e-9])
    results.write_scores(tmp_path / "scores.csv", np.array([5, 1, 9]), score, torch.tensor([True, False, True]))
    rows = rows_of(tmp_path / "scores.csv")
    assert list(rows[0]) == ["index", "score", "is_anomaly"]
    assert [row["index"] for row in rows] == ["5", "1", "9"]
    assert [row["is_anomaly"] for row in rows] == ["1", "0", "1"]
    assert [np.float32(row["score"]) for row in rows] == score.tolist()
    results.write_scores(tmp_path / "scores.csv", [5, 1], [0.5, 0.25], None)
    assert [row["is_anomaly"] for row in rows_of(tmp_path / "scores.csv")] == ["", ""]


def test_audit_csv(tmp_path: Path) -> None:
    path = tmp_path / "audit.csv"
    flagged = torch.tensor([False, True, False, True])
    nearest = np.array([[9, 8], [9, 8], [9, 8], [9, -1]])
    found = Audit(torch.tensor([0.125, 0.5, -2.0, 0.5]), flagged.double() / 2, flagged, nearest, -flagged.double())
    results.write_audit(path, [7, 3, 5, 1], found, np.array([False, True, False, True]))
    assert path.read_text().splitlines() == [
        "index,suspicion,probability,verdict,rank,nearest_normal,nearest_anomaly,meta_gradient,is_anomaly",
        "1,0.5,0.5,anomaly,1,9,,-1.0,1",
        "3,0.5,0.5,anomaly,2,9,8,-1.0,1",
        "7,0.125,0.0,normal,3,9,8,-0.0,0",
        "5,-2.0,0.0,normal,4,9,8,-0.0,0",
    ]
    results.write_audit(path, [7, 3, 5, 1], found._replace(probability=None, meta_gradient=None), None)
    assert path.read_text().splitlines()[:2] == [
        "index,suspicion,probability,verdict,rank,nearest_normal,nearest_anomaly,is_anomaly",
        "1,0.5,,anomaly,1,9,,",
    ]


def test_ids_stand_beside_the_index(tmp_path: Path) -> None:
    ids = np.array(["a.png", 'b, "c".png', "ü.png"])
    results.write_scores(tmp_path / "scores.csv", [2, 0], [0.5, 0.25], None, ids)
    assert (tmp_path / "scores.csv").read_text(
        encoding="utf-8"
    ) == "index,id,score,is_anomaly\n2,ü.png,0.5,\n0,a.png,0.25,\n"
    found = Audit(torch.tensor([0.1, 0.5]), None, torch.tensor([False, True]), np.array([[2, -1]] * 2), None)
    results.write_audit(tmp_path / "audit.csv", [0, 1], found, None, ids, "path")
    columns = ("index", "path", "rank", "nearest_normal", "nearest_anomaly")
    assert [tuple(row[name] for name in columns) for row in rows_of(tmp_path / "audit.csv")] == [
        ("1", 'b, "c".png', "1", "ü.png", ""),
        ("0", "a.png", "2", "ü.png", ""),
    ]


def test_environment_goes_into_metrics(tmp_path: Path) -> None:
    found = environment.environment()
    assert found["version/torch"] == torch.__version__ and found["version/pytorch_lightning"] == pl.__version__
    assert found["device"] and found["platform"]
    in_checkout = shutil.which("git") and (Path(elite_pl.__file__).parents[1] / ".git").exists()
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?" if in_checkout else "", found["commit"])
    results.write_metrics(tmp_path, "abc", found | {"data/test": 0})


def test_no_commit_where_there_is_no_git(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment.environment()["commit"] == ""
    assert capfd.readouterr() == ("", "")

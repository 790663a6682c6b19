"""`python -m elite_pl.export`: graphs that give the detector's scores, for every score that there is; and bad input."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from own_table import table, write_csv

import elite_pl
from elite_pl import export, score
from elite_pl.deployment.graph import examples, to_graph, write_onnx, write_torch
from elite_pl.models.recipe import FITTED, SCORES

SHORT = ("epochs=1", "method.pretrain_epochs=0", "batch_size=32", "threshold=fitted")
Y = np.repeat([1, -1, 0], [10, 10, 40])
OF_VECTORS = {  # a method for each score
    "Hypersphere": ("elite_svdd", SHORT),
    "Readout": (  # and a feature map
        "labels_only",
        (*SHORT, "feature_map=tabular", "~method.score.squared", "method.score._target_=elite_pl.models.Readout"),
    ),
    "Reconstruction": ("autoencoder", SHORT),
    "PairRelation": ("prenet", SHORT),
    "BoundedHead": ("rosas", SHORT),
    "Mixture": (
        "auto",
        ("threshold=fitted", "method.folds.vectors=0", "method.candidates.vectors.elite_tabular.seeds=1"),
    ),
    "ScalarHead": ("devnet", ("epochs=1", "batch_size=32", "threshold=fitted")),
    "RobustSubspace": ("rsrae", ("epochs=1", "batch_size=32", "threshold=fitted")),
    "ClassTrees": ("extra_trees", ("threshold=fitted",)),
    "IsolationTrees": ("isolation_forest", ("threshold=fitted",)),
    "NeighborMean": ("label_spreading", ("threshold=fitted",)),
    "Linear": ("logistic_regression", ("threshold=fitted",)),
    "KernelExpansion": ("ocsvm", ("threshold=fitted",)),
}
OF_IMAGES = {
    "views": ((60, 8, 8), ["augmentation=digits", "augmentation.test_views=3"]),
    "noise": ((60, 8, 8), ["augmentation=noise", "augmentation.test_views=3", "backbone=mlp"]),
    "another size": ((60, 12, 10, 3), ["dataset.size=8"]),
    "contrast": ((60, 3, 8, 8), ["dataset.scaling=gcn"]),
    "strided": ((60, 16, 16), ["backbone=strided"]),
    "double": ((60, 8, 8), ["trainer.precision=64"]),
    "frozen": ((60, 3, 8, 8), ["backbone=torchvision", "dataset.size=12", "backbone.frozen=true"]),
    "fine-tuned": ((60, 8, 8), ["backbone=torchvision", "backbone.frozen=false"]),
}


def vectors(name):
    method, overrides = OF_VECTORS[name]
    x = np.random.default_rng(0).normal(3, 2, size=(60, 5))
    detector = elite_pl.fit(x, Y, method=method, overrides=overrides)
    assert type(detector.model).__name__ == name
    return detector


def images(case, weights):
    shape, overrides = OF_IMAGES[case]
    if "backbone=torchvision" in overrides:
        of_file = [f"backbone.weights={weights}", "backbone.model=mobilenet_v3_small", "backbone.image_size=16"]
        overrides = [*overrides, *of_file]
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    method = "elite_ae" if case == "strided" else "elite_svdd"
    return elite_pl.fit(x, Y, method=method, overrides=[*SHORT, *overrides])


def agrees(detector, run, tolerance=1e-5):
    """Whether a graph gives scores and verdicts of a detector, for one sample as for many."""
    for n in (1, 5, 70):
        x = examples(detector, n)
        expected = detector.score(x)
        found, is_anomaly = (np.asarray(part) for part in run(x))
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
        clear = np.abs(expected - detector.threshold) > 10 * tolerance
        assert found.shape == is_anomaly.shape == (n,) and is_anomaly.dtype == bool
        assert (is_anomaly == (expected > detector.threshold))[clear].all()


def agrees_in_torch(detector):
    write_torch(to_graph(detector), Path("detector.pt2"))
    agrees(detector, torch.export.load("detector.pt2").module())


def agrees_in_onnx(detector, tolerance=1e-5):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    write_onnx(to_graph(detector), detector, Path("detector.onnx"))
    session = onnxruntime.InferenceSession("detector.onnx")
    agrees(detector, lambda x: session.run(["score", "is_anomaly"], {"samples": x.numpy()}), tolerance)


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_every_score_is_exported_here():
    assert {address.split(".")[-1] for address in SCORES | FITTED} | {"Mixture"} == set(OF_VECTORS)


@pytest.mark.parametrize("name", OF_VECTORS)
def test_vectors(name):
    agrees_in_torch(vectors(name))


SLOW = ("strided", "double", "frozen", "fine-tuned")


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in OF_IMAGES])
def test_images(case, torchvision_file):
    agrees_in_torch(images(case, torchvision_file))


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_VECTORS)
def test_vectors_in_onnx(name):
    agrees_in_onnx(vectors(name))


@pytest.mark.slow
@pytest.mark.parametrize("case", OF_IMAGES)
def test_images_in_onnx(case, torchvision_file):
    # Bytes that are resized are rounded: a pixel half-way between two values may become either.
    agrees_in_onnx(images(case, torchvision_file), 1e-2 if case in ("another size", "frozen") else 1e-5)


# ------------------------------------------------------------------------------------------------------------ commands


def by_score_py(folder, source):
    """What `score.py` of an exported directory prints, without elite_pl and all that it brings."""
    program = "import runpy, sys; sys.modules.update(dict.fromkeys(['elite_pl', 'polars', 'pytorch_lightning']));"
    program += "del sys.argv[0]; runpy.run_path(sys.argv[0], None, '__main__')"
    quiet = ["-W", "ignore:The given buffer is not writable"]  # torch 2.11, of its own reading of a graph
    command = [sys.executable, *quiet, "-c", program, f"{folder}/score.py", source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


def alike(found, expected):
    """Whether two tables say the same of the same samples."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert next(iter(one.items())) == next(iter(other.items()))  # path, id or index
        assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-5)
        assert float(one["p_value"]) == pytest.approx(float(other["p_value"]), abs=0.06)  # its own rank
        assert one["verdict"] == other["verdict"]


def test_a_directory_scores_a_table_without_elite_pl(call, of_table, monkeypatch):
    _, run = of_table
    monkeypatch.setattr("elite_pl.deployment.exporting.missing_for_onnx", lambda: ["onnx"])
    outcome = call(export.main, run / "detector.pt", "--to", "directory", "-o", "out")
    assert (outcome.code, outcome.out, outcome.err) == (0, "out\n", "")
    assert sorted(os.listdir("out")) == ["README.md", "detector.json", "model.pt2", "score.py"]
    assert len(Path("out/score.py").read_text().splitlines()) <= 100
    page = Path("out/README.md").read_text()
    about = json.loads(Path("out/detector.json").read_text())
    assert all(word in page for word in ("own.csv", "elite_svdd", "200 training samples", repr(about["threshold"])))
    content = {**table(), "day": [f"{day} 12:30" for day in table()["day"]]}
    write_csv("new.csv", content)
    expected = list(csv.DictReader(io.StringIO(call(score.main, run / "detector.pt", "new.csv").out)))
    found = by_score_py("out", "new.csv")
    alike(found, expected)
    assert [row["id"] for row in found] == content["id"]


def test_a_directory_scores_images_without_elite_pl(call, of_folder):
    folder, run = of_folder
    outcome = call(export.main, run / "detector.pt", "--to", "directory", "-o", "out")
    assert outcome.code == 0, outcome.err
    expected = list(csv.DictReader(io.StringIO(call(score.main, run / "detector.pt", folder / "photos").out)))
    (folder / "photos" / "notes.txt").unlink(missing_ok=True)  # it takes every file for an image
    found = by_score_py("out", folder / "photos")
    alike(found, expected)


def test_one_file_of_each_kind(call, of_vectors):
    detector, _ = of_vectors
    detector.save("detector.pt")
    for kind, name in (("torch", "detector.pt2"), ("onnx", "detector.onnx")):
        if kind == "onnx":
            pytest.importorskip("onnxscript")
        outcome = call(export.main, "detector.pt", "--to", kind)
        assert (outcome.code, outcome.out, outcome.err) == (0, f"{name}\n", "")
    assert sorted(os.listdir()) == ["detector.onnx", "detector.pt", "detector.pt2"], "one file each"
    agrees(detector, torch.export.load("detector.pt2").module())
    session = pytest.importorskip("onnxruntime").InferenceSession("detector.onnx")
    agrees(detector, lambda x: session.run(["score", "is_anomaly"], {"samples": x.numpy()}))
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("samples", ["n", 5])]
    about = session.get_modelmeta().custom_metadata_map
    assert about["method"] == "elite_svdd" and float(about["threshold"]) == detector.threshold


TYPED = {
    "d.pt": "the following arguments are required: --to",
    "d.pt --to tensorflow": "invalid choice: 'tensorflow'",
    "nowhere.pt --to torch": "nowhere.pt: no such file",
    "d.pt --to torch -o nowhere/d.pt2": "there is no folder nowhere",
    "d.pt --to torch -o d.pt": "must end with .pt2",
    "d.pt --to torch -o folder": "must end with .pt2",
    "d.pt --to directory -o folder": "is there already",
    "d.pt --to torch --weights w.pt": "the detector takes samples themselves",
    "d.pt --to onnx": "onnx and onnxscript not installed; pip install 'elite_pl[onnx]'",
}


@pytest.mark.parametrize("typed", TYPED)
def test_what_is_typed(call, of_vectors, typed, monkeypatch):
    detector, _ = of_vectors
    detector.save("d.pt")
    Path("folder").mkdir()
    monkeypatch.setattr("elite_pl.deployment.exporting.missing_for_onnx", lambda: ["onnx", "onnxscript"])
    outcome = call(export.main, *typed.split())
    assert outcome.code == 2 and outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert TYPED[typed] in outcome.err and sorted(os.listdir()) == ["d.pt", "folder"]


def test_nothing_is_left_of_an_export_that_fails(call, of_vectors, monkeypatch):
    detector, _ = of_vectors
    detector.save("d.pt")
    monkeypatch.setattr("elite_pl.deployment.exporting.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(export.main, "d.pt", "--to", "directory")
    assert os.listdir() == ["d.pt"]

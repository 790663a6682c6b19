"""`python -m elite_pl.export`: graphs that give the detector's scores, for every score that there is; and bad input."""

import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from own_table import ROWS, table, write_csv
from PIL import Image

import elite_pl
from elite_pl import export, score
from elite_pl.deployment.graph import examples, to_graph, write_onnx, write_torch
from elite_pl.models.recipe import FITTED, SCORES

SHORT = ("epochs=1", "method.pretrain_epochs=0", "batch_size=32", "threshold=fitted")
Y = np.repeat([1, -1, 0], [10, 10, 40])
OF_VECTORS = {  # a method for each score
    "Hypersphere": ("elite_svdd", SHORT),
    "Readout": ("labels_only", (*SHORT, "feature_map=tabular", "score@method.score=readout")),
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
    "ensemble": ((60, 8, 8), ["ensemble=2", "augmentation=digits", "augmentation.test_views=3"]),
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


ALONE = """
import contextlib, io, json, os, sys
sys.modules.update(dict.fromkeys(["elite_pl", "polars", "pytorch_lightning"]))
sys.path.insert(0, sys.argv[1])
import score
for arguments in json.loads(sys.argv[2]):
    code, errors = 0, io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            score.main(arguments)
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, errors.getvalue(), "torch" in sys.modules, sorted(os.listdir())]))
"""


def alone(folder, *commands):
    """What `score.py` of an exported directory says to each of some commands, without elite_pl and all that it brings.

    Returns:
        For each its exit code, its errors, whether PyTorch has been started by then, and the files that are there.
    """
    command = [sys.executable, "-c", ALONE, str(folder), json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(commands), "nothing but these lines is printed"
    return [json.loads(line) for line in lines]


def rows(text):
    """The rows of a table."""
    return list(csv.DictReader(io.StringIO(text)))


def refuses(folder, refused):
    """Whether `score.py` refuses each of some commands on one line, with these words, before PyTorch has started."""
    before = sorted(os.listdir())
    said = alone(folder, *map(str.split, refused))
    for typed, (code, errors, started, there) in zip(refused, said, strict=True):
        assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1, (typed, errors)
        assert refused[typed] in errors and not started, (typed, errors)
        assert there == before, "nothing half-written is left"


def alike(found, expected):
    """Whether two tables say the same of the same samples."""
    assert len(found) == len(expected) and list(found[0]) == list(expected[0])
    for one, other in zip(found, expected, strict=True):
        assert next(iter(one.items())) == next(iter(other.items()))  # path, id or index
        assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-5)
        assert float(one.get("probability", 0)) == pytest.approx(float(other.get("probability", 0)), abs=1e-4)
        assert float(one["p_value"]) == pytest.approx(float(other["p_value"]), abs=0.06)  # its own rank
        assert one["verdict"] == other["verdict"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports a detector as a directory, once for all tests."""
    made = {}

    def directory(detector):
        if detector not in made:
            made[detector] = tmp_path_factory.mktemp("export") / "out"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("elite_pl.deployment.exporting.missing_for_onnx", lambda: ["onnx"])
                export.main([str(detector), "--to", "directory", "-o", str(made[detector])])
        return made[detector]

    return directory


@pytest.fixture
def table_export(of_table, exported):
    return exported(of_table[1] / "detector.pt")


@pytest.fixture
def image_export(of_folder, exported):
    return exported(of_folder[1] / "detector.pt")


@pytest.fixture(scope="module")
def vector_export(of_vectors, exported, tmp_path_factory):
    place = tmp_path_factory.mktemp("vectors") / "detector.pt"
    of_vectors[0].save(place)
    return exported(place)


def test_a_directory_scores_a_table_without_elite_pl(call, of_table, table_export):
    _, run = of_table
    assert sorted(os.listdir(table_export)) == ["README.md", "detector.json", "model.pt2", "score.py"]
    page = (table_export / "README.md").read_text()
    about = json.loads((table_export / "detector.json").read_text())
    assert all(word in page for word in ("own.csv", "elite_svdd", "200 training samples", repr(about["threshold"])))
    content = {**table(), "day": [f"{day} 12:30" for day in table()["day"]]}
    content["id"][:2], content["day"][:2] = ["=1+1", "-5"], ["2024-2-1", "2024/02/03"]
    write_csv("named.csv", content, ";")
    late = {name: values + values for name, values in content.items()}  # more than are scored at a time
    write_csv("late.csv", {**late, "age": [*late["age"][:-1], "old"]})
    del content["id"]
    write_csv("numbered.tsv", content, "\t")
    Path("numbered.tsv").write_text(Path("numbered.tsv").read_text().replace("\n", "\n\t\t\t\t\n\n", 5))
    Path("kept.csv").write_text("before\n")
    commands = [["named.csv", "-o", "by_name.csv"], ["numbered.tsv", "-o", "by_number.csv"]]
    *good, (code, errors, started, _) = alone(table_export, *commands, ["late.csv", "-o", "kept.csv"])
    assert [outcome[:2] for outcome in good] == [[0, ""], [0, ""]]
    for name, _, made in commands:
        alike(rows(Path(made).read_text()), rows(call(score.main, run / "detector.pt", name).out))
    assert [row["id"] for row in rows(Path("by_name.csv").read_text())[:3]] == ["'=1+1", "-5", "row 2"]
    assert (code, errors) == (2, "error: late.csv: column age holds old; expected numbers, or nothing\n") and started
    assert Path("kept.csv").read_text() == "before\n" and not list(Path().glob(".*")), "nothing half-written is left"


def test_a_directory_scores_images_without_elite_pl(call, of_folder, image_export):
    folder, run = of_folder
    new = Path("new/inner")
    new.mkdir(parents=True)
    for image in (folder / "photos" / "unlabeled").iterdir():
        (new / image.name).write_bytes(image.read_bytes())
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 4), dtype=np.uint8), "RGBA").save("new/transparent.PNG")
    Image.fromarray(rng.integers(0, 2**16, (20, 30), dtype=np.uint16)).save("new/deep.png")
    Path("new/.hidden.png").touch()
    Path("new/notes.txt").touch()
    commands = [["new", "-o", "folder.csv"], ["new/deep.png", "-o", "image.csv"]]
    outcomes = alone(image_export, *commands)
    assert [outcome[0] for outcome in outcomes] == [0, 0], outcomes
    assert [outcome[1] for outcome in outcomes] == ["not taken for images by their names: notes.txt\n", ""]
    for source, _, made in commands:
        alike(rows(Path(made).read_text()), rows(call(score.main, run / "detector.pt", source).out))


def test_a_directory_scores_an_array_without_elite_pl(call, of_vectors, monkeypatch):
    if importlib.util.find_spec("onnxruntime") is None:  # to run what onnx would write
        monkeypatch.setattr("elite_pl.deployment.exporting.missing_for_onnx", lambda: ["onnx"])
    detector, x = of_vectors
    detector.save("detector.pt")
    outcome = call(export.main, "detector.pt", "--to", "directory", "-o", "out")
    assert (outcome.code, outcome.out, outcome.err) == (0, "out\n", "")
    np.save("x.npy", x)
    printed = subprocess.run([sys.executable, "out/score.py", "x.npy"], capture_output=True, text=True)
    assert (printed.returncode, printed.stderr) == (0, "")
    found = rows(printed.stdout)
    assert list(found[0]) == ["index", "score", "probability", "p_value", "verdict"]
    alike(found, rows(call(score.main, "detector.pt", "x.npy").out))
    assert "`probability`" in Path("out/README.md").read_text()
    wrong = subprocess.run([sys.executable, "out/score.py", "nowhere.npy"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: nowhere.npy: no such file; expected an array (.npy)\n"


def test_the_program_of_a_directory_refuses_tables_on_one_line(table_export):
    names = {
        "missing": ("has no column age, day", lambda content: [content.pop(name) for name in ("age", "day")]),
        "words": ("column age holds old; expected numbers", lambda content: content.update(age=["old"] * ROWS)),
        "infinite": ("column age holds inf; expected numbers", lambda content: content.update(age=["inf"] * ROWS)),
        "dates": ("column day holds today; expected dates", lambda content: content.update(day=["today"] * ROWS)),
        "wide": ("7 values in line 2, 6 in the first line", lambda content: content.update(age=["1,2"] * ROWS)),
        "twice": ("has more than one column age", lambda content: content.update({"age ": ["1"] * ROWS})),
        "header": ("has no row with a value", lambda content: [values.clear() for values in content.values()]),
        "gaps": ("has no row with a value", lambda content: content.update({name: [""] * ROWS for name in content})),
    }
    for name, (_, change) in names.items():
        content = table()
        change(content)
        write_csv(f"{name}.csv", content)
    Path("folder.csv").mkdir()
    Path("empty.csv").touch()
    Path("latin.csv").write_bytes("age,color\n1,bläu\n".encode("latin-1"))
    Path("new.parquet").touch()
    np.save("x.npy", np.zeros((3, 9)))
    write_csv("new.csv", table())
    refuses(
        table_export,
        {
            "": "the following arguments are required: INPUT",
            "new.csv more.csv": "unrecognized arguments: more.csv",
            "nowhere.csv": "nowhere.csv: no such file; expected a table (.csv",
            "x.npy": "x.npy: is not what the detector was trained on; expected a table (.csv",
            "new.parquet": "new.parquet: is not what the detector was trained on; expected a table (.csv",
            "folder.csv": "folder.csv: is not what the detector was trained on; expected a table (.csv",
            "empty.csv": "empty.csv: has no row with a value in it",
            "latin.csv": "latin.csv: is not UTF-8",
            **{f"{name}.csv -o scores.csv": f"{name}.csv: {words}" for name, (words, _) in names.items()},
            "new.csv -o scores.parquet": "--output scores.parquet: is not .csv by its name",
            "new.csv -o folder.csv": "--output folder.csv: is a folder",
            "new.csv -o nowhere/scores.csv": "--output nowhere/scores.csv: there is no folder nowhere",
            "new.csv -o new.csv": "--output new.csv: is read, too",
        },
    )


def test_the_program_of_a_directory_refuses_images_on_one_line(image_export):
    for name in ("none", "broken", "deep"):
        Path(name).mkdir()
    Path("none/notes.txt").touch()
    Path("broken/a.png").write_bytes(b"no image")
    Image.fromarray(np.full((9, 9), 0.5, dtype=np.float32)).save("deep/a.tif")
    Image.new("RGB", (99, 99)).save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:-50])
    Image.new("RGB", (9, 9)).save("a.eps")
    np.save("gray.npy", np.zeros((3, 16, 16), dtype=np.uint8))
    np.save("floats.npy", np.zeros((3, 3, 16, 16)))
    np.save("beyond.npy", np.full((3, 3, 16, 16), 256))
    write_csv("new.csv", table())
    right = "expected an array (.npy), an image or a folder of images"
    refuses(
        image_export,
        {
            "nowhere": f"nowhere: no such file; {right}",
            "new.csv": f"new.csv: is not what the detector was trained on; {right}",
            "a.eps": f"a.eps: is not what the detector was trained on; {right}",
            "none": "none: no image in it; expected .avif, ",
            "broken": "broken: a.png is not an image; expected AVIF, ",
            "broken/a.png": "broken/a.png: a.png is not an image; expected AVIF, ",
            "deep": "deep: a.tif cannot be read (pixels of 32 bits, F)",
            "cut.png": "cut.png: cut.png cannot be read (",
            "gray.npy": "gray.npy: has shape (3, 16, 16); expected (n, 3, 16, 16)",
            "floats.npy": "floats.npy: holds float64 from 0.0 to 0.0; expected whole numbers from 0 to 255",
            "beyond.npy": "beyond.npy: holds int64 from 256 to 256; expected whole numbers from 0 to 255",
        },
    )


def test_the_program_of_a_directory_refuses_arrays_on_one_line(of_vectors, vector_export):
    _, x = of_vectors
    np.save("fewer.npy", x[:, :4])
    np.save("gaps.npy", np.where(np.arange(400).reshape(80, 5) == 7, np.nan, x))
    np.save("large.npy", np.full((3, 5), 1e300))
    np.save("words.npy", np.full((3, 5), "a"))
    np.save("objects.npy", np.full((3, 5), None))
    np.save("empty.npy", x[:0])
    np.save("one.npy", np.array(1.0))
    Path("nothing.npy").touch()
    Path("photos").mkdir()
    refuses(
        vector_export,
        {
            "photos": "photos: is not what the detector was trained on; expected an array (.npy)",
            "fewer.npy": "fewer.npy: has shape (80, 4); expected (n, 5)",
            "gaps.npy": "gaps.npy: holds values that are NaN, infinite or too large",
            "large.npy": "large.npy: holds values that are NaN, infinite or too large",
            "words.npy": "words.npy: is not an array of numbers",
            "objects.npy": "objects.npy: is not a .npy file of numbers, or is damaged",
            "empty.npy": "empty.npy: has shape (0, 5); expected (n, 5)",
            "one.npy": "one.npy: has shape (); expected (n, 5)",
            "nothing.npy": "nothing.npy: is not a .npy file of numbers, or is damaged",
        },
    )


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

"""`python -m elite_pl.score`: the scores of training again, in pieces and from every kind of file; and bad input."""

import csv
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from own_table import ROWS, table, write_csv
from PIL import Image

import elite_pl
from elite_pl import score
from elite_pl.data.sources import table_parts
from elite_pl.deployment import inputs


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def column(found: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in found])


@pytest.fixture
def small_parts(monkeypatch):
    """Files are read in parts of a few rows."""
    monkeypatch.setattr(table_parts, "BLOCK", 100)
    monkeypatch.setattr(table_parts, "ROWS", 7)
    monkeypatch.setattr(inputs, "MANY", 9)


# -------------------------------------------------------------------------------------------------- scores of training


def test_a_table_scores_as_in_training(call, of_table):
    folder, run = of_table
    detector = elite_pl.load(run / "detector.pt")
    outcome = call(score.main, run / "detector.pt", folder / "own.csv")
    assert (outcome.code, outcome.err) == (0, "")
    found = rows(outcome.out)
    assert list(found[0]) == ["id", "score", "p_value", "verdict"] and [row["id"] for row in found] == table()["id"]
    np.testing.assert_allclose(column(found, "score"), detector.training_scores, rtol=1e-5)
    flagged = column(found, "score") > detector.threshold
    assert [row["verdict"] == "anomaly" for row in found] == flagged.tolist() and 0 < flagged.sum() < ROWS
    normal = detector.training_scores[detector.training_scores <= detector.threshold]
    expected = [((normal >= s).sum() + 1) / (len(normal) + 1) for s in detector.training_scores]
    np.testing.assert_allclose(column(found, "p_value"), expected, atol=1.01 / (len(normal) + 1))


def test_a_folder_scores_as_in_training(call, of_folder, tmp_path):
    folder, run = of_folder
    (folder / "photos" / "notes.txt").touch()
    outcome = call(score.main, run / "detector.pt", folder / "photos", "-o", "scores.csv", "--batch-size", 5)
    assert (outcome.code, outcome.out) == (0, ""), outcome.err
    assert outcome.err == "not taken for images by their names: notes.txt\n"
    found = rows(Path("scores.csv").read_text())
    assert [row["path"] for row in found] == sorted(
        str(path.relative_to(folder / "photos")) for path in folder.glob("photos/**/*.jpg")
    )
    expected = elite_pl.load(run / "detector.pt").training_scores
    np.testing.assert_allclose(column(found, "score"), expected, rtol=1e-5)
    one = call(score.main, run / "detector.pt", folder / "photos/unlabeled/03.jpg")
    (row,) = rows(one.out)
    assert row["path"] == "03.jpg"
    assert float(row["score"]) == pytest.approx(next(float(r["score"]) for r in found if "abeled/03" in r["path"][:14]))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_an_array_scores_as_in_training(call, of_vectors, suffix):
    detector, x = of_vectors
    detector.save("detector.pt")
    (np.save if suffix == "npy" else np.savez)(f"x.{suffix}", x)
    found = rows(call(score.main, "detector.pt", f"x.{suffix}").out)
    assert [int(row["index"]) for row in found] == list(range(len(x)))
    np.testing.assert_allclose(column(found, "score"), detector.training_scores, rtol=1e-5)


@pytest.mark.parametrize("axes", ["n h w", "n h w c", "n c h w", "fractions"])
def test_arrays_of_images_and_folders_are_told_alike(call, axes):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1 if axes in ("n h w", "fractions") else 3))
    x = pixels.astype(np.uint8)
    Path("images").mkdir()
    for i, image in enumerate(x):
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(f"images/{i:02}.png")
    if axes == "n h w":
        x = x[..., 0]
    elif axes == "n c h w":
        x = x.transpose(0, 3, 1, 2)
    elif axes == "fractions":
        x = x / np.float32(255)
    settings = ["epochs=1", "method.pretrain_epochs=0", "threshold=fitted"]
    detector = elite_pl.fit(x, np.repeat([1, -1, 0], [5, 5, 30]), "elite_svdd", overrides=settings)
    detector.save("detector.pt")
    np.save("x.npy", x)
    for source in ("images", "x.npy"):
        found = rows(call(score.main, "detector.pt", source).out)
        np.testing.assert_allclose(column(found, "score"), detector.training_scores, rtol=1e-5, err_msg=source)


# ------------------------------------------------------------------------------------------------- how it is read, left


def test_pieces_of_any_size_make_the_whole(call, of_table, small_parts):
    _, run = of_table
    content = table()
    content["color"][5] = '"two\nlines, one ""word"""'
    content["age"][6] = '"40.5"'
    write_csv("own.csv", content)
    Path("own.csv").write_text(Path("own.csv").read_text().replace("row 9,", ",,,,,\n\nrow 9,"))
    pl.read_csv("own.csv", infer_schema_length=0).write_parquet("own.parquet")
    whole = call(score.main, run / "detector.pt", "own.csv")
    assert whole.code == 0, whole.err
    assert [row["id"] for row in rows(whole.out)] == content["id"], "rows without any value are passed over"
    for source in ("own.csv", "own.parquet"):
        pieces = [call(score.main, run / "detector.pt", source, "--shard", f"{i}/3") for i in (1, 2, 3)]
        assert [piece.code for piece in pieces] == [0, 0, 0], pieces[0].err
        together = [row for piece in pieces for row in rows(piece.out)]
        assert [row["id"] for row in together] == content["id"]
        np.testing.assert_allclose(column(together, "score"), column(rows(whole.out), "score"), rtol=1e-5)
        assert {len(piece.out.splitlines()) for piece in pieces} <= {66, 67, 68, 69}
    more = call(score.main, run / "detector.pt", "own.csv", "--shard", "150/1000")
    assert more.code == 0 and more.out == "id,score,p_value,verdict\n"


def test_rows_without_ids_have_their_numbers_in_the_file(call, of_table, small_parts):
    _, run = of_table
    content = table()
    content["extra"] = ["9"] * ROWS
    del content["id"], content["label"]
    write_csv("own.csv", content, ";")
    outcome = call(score.main, run / "detector.pt", "own.csv", "--shard", "2/2")
    assert outcome.err == "passed over: column extra, which the training rows lack\n"
    assert [int(row["index"]) for row in rows(outcome.out)] == list(range(100, 200))


def test_parquet_holds_the_same(call, of_table):
    folder, run = of_table
    for name in ("scores.csv", "scores.parquet"):
        outcome = call(score.main, run / "detector.pt", folder / "own.csv", "-o", name)
        assert (outcome.code, outcome.out) == (0, ""), outcome.err
    frame = pl.read_parquet("scores.parquet")
    assert frame.dtypes == [pl.String, pl.Float64, pl.Float64, pl.String]
    assert frame.rows() == pl.read_csv("scores.csv").rows() and sorted(os.listdir()) == ["scores.csv", "scores.parquet"]


def test_without_polars_csv_is_the_same(call, of_vectors, monkeypatch):
    detector, x = of_vectors
    detector.save("detector.pt")
    np.save("x.npy", x)
    with_polars = call(score.main, "detector.pt", "x.npy").out
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    without = call(score.main, "detector.pt", "x.npy").out
    assert pl.read_csv(with_polars.encode()).rows() == pl.read_csv(without.encode()).rows()


def test_a_threshold_of_ones_own(call, of_vectors):
    detector, x = of_vectors
    detector.save("detector.pt")
    np.save("x.npy", x)
    middle = float(np.median(detector.training_scores))
    found = rows(call(score.main, "detector.pt", "x.npy", "--threshold", middle).out)
    assert [row["verdict"] for row in found].count("anomaly") == 40
    assert list(found[0]) == ["index", "score", "probability", "p_value", "verdict"]
    np.testing.assert_allclose(column(found, "probability"), detector.probability(x), atol=1e-6)
    assert column(found, "p_value").min() == 1 / 41, "p-values are among samples that are not flagged"


def test_names_do_not_run_in_a_spreadsheet(call, of_table):
    _, run = of_table
    content = table()
    content["id"][:2] = ["=1+1", "-5"]
    write_csv("own.csv", content)
    found = rows(call(score.main, run / "detector.pt", "own.csv").out)
    assert [row["id"] for row in found[:3]] == ["'=1+1", "-5", "row 2"]


def test_frames_and_columns_from_python(of_table):
    folder, run = of_table
    detector = elite_pl.load(run / "detector.pt")
    text = pl.read_csv(folder / "own.csv", infer_schema_length=0)
    typed = text.with_columns(pl.col("age", "income").cast(pl.Float64, strict=False))
    arrays = {name: typed[name].to_numpy() for name in typed.columns}
    arrays["color"] = np.array([None if word == "?" else word for word in arrays["color"]], dtype=object)
    arrays["day"] = arrays["day"].astype("datetime64[D]")
    for frame in (text, typed[:, ::-1], arrays, pytest.importorskip("pandas").DataFrame(arrays)):
        np.testing.assert_allclose(detector.score(frame), detector.training_scores, rtol=1e-5)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(arrays)
    day = pandas.to_datetime(frame["day"])
    for column in (
        {"day": frame["day"].astype(str)},
        {"day": [one.date() for one in day]},
        {"day": day.dt.tz_localize("Europe/Berlin")},
        {"color": frame["color"].map(lambda word: word and f" {word} ")},
        {"age": [str(one) for one in frame["age"]]},
        {"age": frame["age"].astype("Float64"), "color": frame["color"].astype("string")},
    ):
        np.testing.assert_allclose(detector.score(frame.assign(**column)), detector.training_scores, rtol=1e-5)
    with pytest.raises(ValueError, match="column age holds old where numbers are expected"):
        detector.score(frame.assign(age="old"))
    with pytest.raises(ValueError, match="x has no rows"):
        detector.score(frame[:0])
    with pytest.raises(ValueError, match="batch_size=-1: must be a whole number of at least 1, or None"):
        detector.score(frame, batch_size=-1)
    with pytest.raises(ValueError, match="has no column age, color"):
        detector.score(typed.drop("age", "color"))


def test_progress_is_told_every_few_seconds_and_on_a_terminal(capfd, monkeypatch):
    from elite_pl.progress import Progress

    now = iter(range(0, 1000, 6))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    progress = Progress("scored", 4000)
    for _ in range(4):
        progress.step(1000)
    progress.end()
    assert capfd.readouterr().err.splitlines() == [
        "scored 2,000 of 4,000, about 12 s left",
        "scored 4,000 of 4,000, about 0 s left",
        "scored 4,000 in 30 s",
    ]


LIGHT = """
import sys
sys.argv = ["score", "detector.pt", "x.npy", "-o", "scores.csv"]
from elite_pl import score
score.main()
heavy = {"pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "sklearn", "torchvision", "wandb", "matplotlib"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_it_starts_without_what_training_needs_and_leaves_nothing_when_it_is_ended(of_vectors, tmp_path):
    detector, x = of_vectors
    detector.save(tmp_path / "detector.pt")
    np.save(tmp_path / "x.npy", x)
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    os.mkfifo(tmp_path / "scores.fifo")
    ended = LIGHT.replace(
        "score.main()", "import os, signal; from elite_pl.runs.trained import TrainedDetector as T;"
        "T.score_checked = lambda *_: os.kill(os.getpid(), signal.SIGTERM); score.main()"
    )  # fmt: skip
    (tmp_path / "scores.csv").write_text("before\n")
    done = subprocess.run([sys.executable, "-c", ended], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM and not done.stderr
    assert sorted(os.listdir(tmp_path)) == ["detector.pt", "scores.csv", "scores.fifo", "x.npy"]
    assert (tmp_path / "scores.csv").read_text() == "before\n"


# ----------------------------------------------------------------------------------------------------------- bad input


def refused(outcome, *words):
    """One line, exit code 2."""
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert all(word in outcome.err for word in words), outcome.err


TYPED = {
    "d.pt": "arguments are required: INPUT",
    "d.pt x.npy --shard 3/2": "3/2 is not a shard; 1/8 to 8/8",
    "d.pt x.npy --shard 0/2": "0/2 is not a shard",
    "d.pt x.npy --shard 1": "1 is not a shard",
    "d.pt x.npy --threshold nan": "nan is not a finite number",
    "d.pt x.npy --batch-size 0": "0 is not a whole number of at least 1",
    "d.pt x.npy --threads x": "x is not a whole number",
    "d.pt x.npy --device tpu": "invalid choice: 'tpu'",
    "d.pt x.npy --bogus": "unrecognized arguments: --bogus",
    "d.pt x.npy -o nowhere/scores.csv": "there is no folder nowhere",
    "d.pt x.npy -o .": "neither .csv nor .parquet",
    "d.pt x.npy -o folder.csv": "is a folder",
    "d.pt x.npy -o scores.txt": "neither .csv nor .parquet",
    "d.pt own.csv -o own.csv": "is read, too",
    "nowhere.pt x.npy": "nowhere.pt: no such file",
    "x.npy x.npy": "x.npy: is not a detector file",
    "d.pt nowhere": "nowhere: no such file; expected a folder of images, a table",
    "d.pt x.docx": "x.docx: has no known suffix; expected",
    "d.pt own.csv": "own.csv: is a table, and the detector was trained on arrays of 5",
    "d.pt photos": "photos: is of images, and the detector was trained on vectors of 5 features",
    "d.pt fewer.npy": "fewer.npy: the array has shape (80, 4); expected (n, 5)",
    "d.pt gaps.npy": "gaps.npy: the array holds 1 values that are NaN",
    "d.pt words.npy": "words.npy: the array is of type <U1",
    "d.pt objects.npy": "objects.npy: holds Python objects",
    "d.pt empty.npy": "empty.npy: has shape (0, 5), which is empty",
    "d.pt nothing.npy": "nothing.npy: is not a .npy file, or is damaged",
    "d.pt one.npz": "one.npz: the array has shape (3,); expected (n, 5)",
    "d.pt two.npz": "two.npz: holds a, b; expected one array, or one called x",
    "d.pt nothing.npz": "nothing.npz: is no npz file",
    "d.pt words.npz": "words.npz: is no npz file of numbers, or is damaged (x is no array)",
    "d.pt text.npz": "text.npz: is no npz file of numbers, or is damaged; expected a file that numpy.savez writes",
    "d.pt objects.npz": "objects.npz: is no npz file of numbers, or is damaged; expected a file",
}


@pytest.mark.parametrize("typed", TYPED)
def test_what_is_typed(call, of_vectors, typed):
    detector, x = of_vectors
    detector.save("d.pt")
    np.save("x.npy", x)
    np.save("fewer.npy", x[:, :4])
    np.save("gaps.npy", np.where(np.arange(400).reshape(80, 5) == 7, np.nan, x))
    np.save("words.npy", np.full((3, 5), "a"))
    np.save("objects.npy", np.full((3, 5), None))
    np.save("empty.npy", x[:0])
    np.savez("one.npz", x=x[0, :3])
    np.savez("objects.npz", x=np.full((3, 5), None))
    Path("text.npz").write_text("a,b\n1,2\n")
    np.savez("two.npz", a=x, b=x)
    with zipfile.ZipFile("words.npz", "w") as file:
        file.writestr("x.npy", "no array")
    for name in ("nothing.npy", "nothing.npz", "x.docx"):
        Path(name).touch()
    for name in ("folder.csv", "photos"):
        Path(name).mkdir()
    Image.new("L", (8, 8)).save("photos/a.png")
    write_csv("own.csv", table())
    before = sorted(os.listdir())
    refused(call(score.main, *typed.split()), TYPED[typed])
    assert sorted(os.listdir()) == before


def changed(name, values):
    def change(content):
        content[name] = values

    return change


TABLES = {
    "a missing column": (lambda content: content.pop("age"), "has no column age"),
    "text in a column of numbers": (changed("age", ["old"] * ROWS), "column age holds old where numbers are expected"),
    "no dates": (changed("day", ["today"] * ROWS), "column day holds today where dates are expected"),
    "infinite numbers": (changed("income", ["inf"] * ROWS), "column income holds infinite numbers"),
    "too many values": (changed("age", ["1,2"] * ROWS), "7 values in line 2, 6 in the first line"),
    "a short line": (lambda content: content["day"].__setitem__(150, "2024-01-01\nshort,1"), "5 values in line 152"),
    "a second column of one name": (lambda content: content.update({"age ": ["1"] * ROWS}), "more than one column age"),
    "no rows": (lambda content: [values.clear() for values in content.values()], "has no row with a value"),
    "rows without values": (
        lambda content: content.update({name: [""] * ROWS for name in content}), "has no row with a value"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_tables(call, of_table, small_parts, case):
    _, run = of_table
    change, words = TABLES[case]
    content = table()
    change(content)
    write_csv("own.csv", content)
    refused(call(score.main, run / "detector.pt", "own.csv", "-o", "scores.csv"), "own.csv: ", words)
    assert os.listdir() == ["own.csv"], "nothing half-written is left"


FILES = {
    "nothing.csv": (b"", "its first line is empty"),
    "latin.csv": (b"age,income,color,day,id\n1,2,b\xe4,2024-01-01,3\n", "is not UTF-8"),
    "no.parquet": (b"PAR1 no", "expected a Parquet file"),
    "x.npy": (b"", "is no table, and the detector was trained on one"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_for_a_detector_of_tables(call, of_table, name):
    _, run = of_table
    content, words = FILES[name]
    Path(name).write_bytes(content)
    for shard in ("1/1", "2/2"):
        refused(call(score.main, run / "detector.pt", name, "-o", "s.csv", "--shard", shard), f"{name}: ", words)
    assert os.listdir() == [name]


def test_folders(call, of_folder):
    _, run = of_folder
    detector = run / "detector.pt"
    Path("photos/inner").mkdir(parents=True)
    refused(call(score.main, detector, "photos"), "photos: no image in it")
    Image.new("RGB", (20, 30)).save("photos/inner/a.png")
    Path("photos/b.png").write_bytes(b"no")
    refused(call(score.main, detector, "photos", "-o", "s.csv"), "b.png (not an image); --skip-broken leaves it out")
    assert os.listdir() == ["photos"]
    outcome = call(score.main, detector, "photos", "--skip-broken")
    assert outcome.code == 0 and outcome.err == "left out broken images (1): b.png (not an image)\n"
    assert [row["path"] for row in rows(outcome.out)] == ["inner/a.png"]
    np.save("x.npy", np.zeros((2, 16, 16), dtype=np.uint8))
    refused(call(score.main, detector, "x.npy"), "x.npy: the array has shape (2, 16, 16); expected (n, 3, 16, 16)")
    refused(
        call(score.main, detector, "photos", "--weights", "w.pt"),
        "--weights w.pt: the detector takes samples themselves",
    )

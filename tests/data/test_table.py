"""Tables: what becomes of their columns, in training and in scoring, and one line for each way of being wrong."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from test_image_folder import refused_by, rows

from elite_pl.data import Encoding, table
from elite_pl.data.sources.table import columns_of, read_table

N = 200
HIDDEN = np.random.default_rng(0).random(N) < 0.15


def columns() -> dict[str, list]:
    """Mixed columns with gaps; anomalies are old, blue and late."""
    rng = np.random.default_rng(1)
    age = np.round(rng.normal(40, 5, N) + 40 * HIDDEN, 1).astype(object)
    age[rng.random(N) < 0.1] = None
    label = [""] * N
    for i in [*np.flatnonzero(~HIDDEN)[:10], *np.flatnonzero(HIDDEN)[:10]]:
        label[i] = "anomaly" if HIDDEN[i] else "normal"
    day = np.datetime64("2024-02-01") + np.where(HIDDEN, 400, rng.integers(0, 100, N)).astype("timedelta64[D]")
    return {
        "id": [f"row {i}" for i in range(N)],
        "number": list(range(N)),
        "age": age.tolist(),
        "income": np.round(np.exp(rng.normal(8, 1, N)), 2).tolist(),
        "color": np.where(HIDDEN, "blue", rng.choice(["red", "green", "blue"], N)).tolist(),
        "day": [str(one) for one in day],
        "member": rng.choice(["true", "false"], N).tolist(),
        "constant": [7] * N,
        "nothing": [None] * N,
        "label": label,
    }


def write(path: str | Path, content: dict[str, list], separator: str = ",") -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([list(content), *zip(*content.values(), strict=True)])


def load(path="own.csv", **settings):
    defaults = {"test_path": None, "labels": "known", "label_column": "label", "id_column": None, "drop_columns": []}
    more = {"labels_file": None, "max_categories": 32, "test_fraction": 0.3}
    return table(str(path), **{**defaults, **more, **settings})


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("own.csv", columns())


# ------------------------------------------------------------------------------------------------------------- commands


def test_from_a_table_to_named_suspicions(command):
    typed = ("dataset=table", "dataset.path=own.csv", "dataset.id_column=id", "epochs=2", "threshold=fitted")
    outcome = command(*typed)
    assert outcome.code == 0, outcome.err
    assert outcome.err.splitlines() == [
        "own, 11 features; elite_svdd on mlp",
        "          unlabeled   normal  anomaly",
        "training        180       10       10",
        "test              -        -        -",
        "no feature: column number, the number of the row",
        "no feature: column constant, the same in every row",
        "no feature: column nothing, nothing in it",
    ]
    audit = rows(outcome.directory / "audit.csv")
    assert all(row["id"] == f"row {row['index']}" for row in audit) and len(audit) == 180
    assert {int(row["index"]) for row in audit} == {i for i, label in enumerate(columns()["label"]) if not label}
    os.makedirs("elsewhere")
    Path("own.csv").rename("elsewhere/own.csv")
    assert command(*typed, "dataset.path=elsewhere/own.csv").err == "done before: nothing to run\n"


def test_classes_are_polluted_on_purpose(command):
    content = columns() | {"label": np.where(HIDDEN, "bad", "good").tolist()}
    write("own.csv", content)
    outcome = command(
        "dataset=table", "dataset.path=own.csv", "dataset.labels=classes", "normal_class=good", "pollution=0.1",
        "label_ratio=0.1", "epochs=20",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "no feature: column number, the number of the row" in outcome.err
    metrics = json.loads((outcome.directory / "metrics.json").read_text())
    assert metrics["data/test"] == 60 and metrics["normal_class"] == "good"
    assert metrics["test/auroc"] > 0.8
    assert rows(outcome.directory / "scores.csv")[0].keys() == {"index", "score", "is_anomaly"}, "no ids"


# -------------------------------------------------------------------------------------------------------------- columns


def test_vectors():
    arrays = load(id_column="id")
    assert arrays.x_train.dtype == np.float32 and arrays.x_train.shape == (N, 11) and np.isfinite(arrays.x_train).all()
    encoding = Encoding.from_plain(arrays.encoding)
    features = dict(zip(encoding.features, arrays.x_train.T, strict=True))
    content = columns()
    assert list(features)[:3] == ["age", "age missing", "income"]
    gone = np.array([age is None for age in content["age"]])
    np.testing.assert_array_equal(features["age missing"], gone)
    assert np.abs(features["age"][gone]).max() == 0, "the median"
    ages = np.array(content["age"], dtype=float)
    center, spread = np.nanmedian(ages), np.subtract(*np.nanquantile(ages, [0.75, 0.25])) / 1.349
    np.testing.assert_allclose(np.sinh(features["age"][~gone]) * spread + center, ages[~gone], rtol=1e-5)
    assert (np.diff(features["income"][np.argsort(content["income"])]) >= 0).all(), "the order stays"
    for color in ("red", "green", "blue"):
        np.testing.assert_array_equal(features[f"color={color}"], np.array(content["color"]) == color)
    np.testing.assert_array_equal(features["member=true"], np.array(content["member"]) == "true")
    assert not features["color=…"].any()
    late = np.array([day > "2024-06" for day in content["day"]])
    assert features["day"][late].min() > features["day"][~late].max()


def test_the_plain_form_is_json_and_gives_the_same_vectors():
    arrays = load(id_column="id")
    encoding = Encoding.from_plain(json.loads(json.dumps(arrays.encoding)))
    again = encoding.transform(columns_of(read_table("own.csv"), encoding.kinds))
    np.testing.assert_array_equal(again, arrays.x_train)
    assert encoding.to_plain() == arrays.encoding
    assert (encoding.label_column, encoding.id_column) == ("label", "id")


def test_labels_and_ids_are_no_features():
    content = columns()
    arrays = load(id_column="id")
    flipped = {"normal": "anomaly", "anomaly": "normal", "": ""}
    write("own.csv", {**content, "id": content["id"][::-1], "label": [flipped[word] for word in content["label"]]})
    other = load(id_column="id")
    np.testing.assert_array_equal(arrays.x_train, other.x_train)
    assert arrays.encoding == other.encoding and (arrays.y_train == -other.y_train).all()


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_separators(separator):
    expected = load().x_train
    write("own.csv", columns(), separator)
    np.testing.assert_array_equal(load().x_train, expected)


def test_parquet_is_as_csv():
    content = columns()
    frame = pl.DataFrame(content | {"member": [word == "true" for word in content["member"]]})
    frame = frame.with_columns(pl.col("day").str.to_date(), pl.col("color").cast(pl.Categorical))
    frame.write_parquet("own.parquet")
    arrays, expected = load("own.parquet"), load()
    np.testing.assert_allclose(arrays.x_train, expected.x_train, atol=1e-6)
    assert arrays.y_train.tolist() == expected.y_train.tolist()
    assert [c["name"] for c in arrays.encoding["columns"]] == [c["name"] for c in expected.encoding["columns"]]


@pytest.mark.parametrize("words", [("1", "-1", "0"), ("1.0", "-1.0", ""), ("Normal", "ANOMALY", "NA"), (1, -1, 0)])
def test_labels_in_words_and_numbers(words):
    expected = load().y_train.tolist()
    meaning = dict(zip(("normal", "anomaly", ""), words, strict=True))
    content = columns() | {"label": [meaning[word] for word in columns()["label"]]}
    if isinstance(words[0], int):
        pl.DataFrame(content).write_parquet("own.parquet")
        assert load("own.parquet").y_train.tolist() == expected
    else:
        write("own.csv", content)
        assert load().y_train.tolist() == expected


def test_one_and_nought_are_doubted():
    write("own.csv", columns() | {"label": [int(label == "normal") for label in columns()["label"]]})
    arrays = load()
    assert set(arrays.y_train.tolist()) == {0, 1}
    assert "column label: 1 is normal and 0 unlabeled; an anomaly would be -1, and there is none" in arrays.notes
    write("own.csv", columns() | {"label": [label.replace("anomaly", "") for label in columns()["label"]]})
    arrays = load()
    assert set(arrays.y_train.tolist()) == {0, 1} and not any("an anomaly would be" in note for note in arrays.notes)


def test_what_was_never_seen_has_its_place():
    content = columns()
    content["color"][3] = content["color"][4] = "mauve"
    write("own.csv", content)
    arrays = load(max_categories=3)
    assert "column color: 1 rare words share a feature (dataset.max_categories)" in arrays.notes
    encoding = Encoding.from_plain(arrays.encoding)
    new = {name: content[name][:5] for name in content if name not in ("label", "id")}
    new |= {"color": ["red", "pink", "", "mauve", "NA"], "income": [1e300, "", -1e300, 5, 6], "day": ["1066-10-14"] * 5}
    new["more"] = [1] * 5
    write("new.csv", new)
    frame = read_table("new.csv")
    assert encoding.unknown(frame.columns) == ["more"]
    found = encoding.transform(columns_of(frame, encoding.kinds))
    assert np.isfinite(found).all()
    features = dict(zip(encoding.features, found.T, strict=True))
    assert features["color=…"].tolist() == [0, 1, 1, 1, 1] and features["color=red"].tolist() == [1, 0, 0, 0, 0]
    assert features["income"][1] == 0 and features["income"][0] > 600 > -600 > features["income"][2]


def test_columns_that_say_nothing_are_dropped():
    content = columns() | {"name": [f"a{i}" for i in range(N)], "late": list(np.arange(N) + 0.5)}
    content |= {"sometimes": [None, 1] * (N // 2), "member": ["x"] * N}
    write("own.csv", content)
    encoding = Encoding.from_plain(load(drop_columns=["income"], id_column="id").encoding)
    assert set(encoding.dropped) == {"number", "constant", "nothing", "name", "member", "income"}
    assert encoding.dropped["name"] == "another word in every row"
    assert {"late", "sometimes", "sometimes missing"} <= set(encoding.features)


def test_words_among_numbers_are_doubted():
    content = columns()
    content["income"][7] = content["income"][9] = "unknown"
    write("own.csv", content)
    assert "column income: taken for words, for unknown among its numbers" in load().notes


def test_dates_and_times():
    forms = ["2024-03-01", "2024/03/01 12:30", "2024-03-01T12:30:15", "2024-03-01 12:30:15.25", "2024-03-01T12:30:15Z"]
    write("own.csv", {"when": forms, "x": [1, 2, 3, 5, 9]})
    (when, _) = columns_of(read_table("own.csv")).values()
    assert when.astype("datetime64[ms]").astype(str).tolist() == [
        "2024-03-01T00:00:00.000", "2024-03-01T12:30:00.000", "2024-03-01T12:30:15.000", "2024-03-01T12:30:15.250",
        "2024-03-01T12:30:15.000",
    ]  # fmt: skip
    write("own.csv", {"when": ["01.03.2024", "2024-03-01"], "x": [1, 2]})
    words = columns_of(read_table("own.csv"))["when"].words.tolist()
    assert {*words} == {"01.03.2024", "2024-03-01", None}, "nobody guesses"


def test_a_test_part_in_a_table_of_its_own():
    content = columns()
    test = {name: values[:40] for name, values in content.items()}
    test |= {"label": np.where(HIDDEN[:40], "anomaly", "normal").tolist(), "more": [1] * 40}
    write("test.csv", dict(reversed(test.items())))
    arrays = load(test_path="test.csv", id_column="id")
    np.testing.assert_array_equal(arrays.x_test, arrays.x_train[:40])
    assert arrays.ids_test.tolist() == content["id"][:40]
    assert (arrays.y_test == np.where(HIDDEN[:40], -1, 1)).all()
    assert arrays.notes[-1] == "passed over in dataset.test_path: more, which the training rows lack"


def test_a_file_of_labels_names_rows_by_their_ids():
    Path("labels.csv").write_text("id,picked,label\nrow 0,yes,anomaly\nrow 1,,\n")
    before, after = load(id_column="id"), load(id_column="id", labels_file="labels.csv")
    assert after.y_train[:2].tolist() == [-1, 0] and (after.y_train[2:] == before.y_train[2:]).all()
    assert before.picked_train is None and np.flatnonzero(after.picked_train).tolist() == [0]


def test_empty_lines_are_no_rows():
    expected = load().x_train
    lines = Path("own.csv").read_text().splitlines()
    Path("own.csv").write_text("\n".join([lines[0], "", *lines[1:9], "", *lines[9:], "", ""]))
    named = load(id_column="id")
    np.testing.assert_array_equal(named.x_train, expected)
    assert named.ids_train.tolist() == columns()["id"]
    Path("own.csv").write_text("\n".join([*lines, "", ""]))
    np.testing.assert_array_equal(load().x_train, expected)


def test_an_empty_line_between_rows_without_names_would_shift_their_numbers():
    lines = Path("own.csv").read_text().splitlines()
    Path("own.csv").write_text("\n".join([*lines[:9], "", *lines[9:]]))
    refused_by(load, "dataset.path=own.csv: row 8 (from 0) is empty", "delete it", "dataset.id_column")


@pytest.mark.parametrize("spellings", [("true", "false"), ("True", "False"), ("TRUE", "FALSE")])
def test_booleans_are_the_same_however_they_are_spelled(spellings):
    spelled = columns() | {"member": [spellings[word == "false"] for word in columns()["member"]]}
    write("own.csv", spelled)
    arrays = load(drop_columns=["id", "label"])
    encoding = Encoding.from_plain(arrays.encoding)
    frame = read_table("own.csv")
    for member in (("true", "false"), ("True", "False"), ("TRUE", "FALSE"), (True, False)):
        other = frame.with_columns(pl.Series("member", [member[word == "false"] for word in columns()["member"]]))
        np.testing.assert_array_equal(encoding.transform(columns_of(other, encoding.kinds)), arrays.x_train)


# ------------------------------------------------------------------------------------------------------------ bad input

A = "a,b,label\n"
FILES = {
    "no file": (None, ("no such file",)),
    "nothing": ("", ("its first line is empty",)),
    "names only": (A, ("has no row",)),
    "no names": ("1.5,2,normal\n2.5,3,\n", ("its first line holds 1.5",)),
    "a name twice": ("a,b,a\n1,2,3\n", ("more than one column a",)),
    "a long line": (A + "1,2,\n1,2,3,4\n", ("4 values in line 3, 3 in the first line",)),
    "a short line": (A + "1,2,\n1,2\n5,6,\n", ("2 values in line 3, 3 in the first line",)),
    "an open quote": (A + '"1,2,\n1,2,\n', ("1 values in line 3, 3 in the first line",)),
    "latin letters": ((A + "ö,2,\n1,2,\n").encode("latin1"), ("not UTF-8",)),
    "latin names": (("ä," + A).encode("latin1"), ("not UTF-8",)),
    "no numbers in it": (bytes(range(256)) * 4, ("not UTF-8",)),
    "no label column": ("a,b\n1,2\n3,4\n", ("has no column label", "dataset.label_column", "it has a, b")),
    "other labels": (A + "1,2,good\n1,3,bad\n", ("column label holds bad, good", "normal, anomaly")),
    "all labeled": (
        A + "1,2,1\n1,3,-1\n1,4,1\n",
        ("0 of 3 training rows are unlabeled", "at least 2", "dataset.labels=classes normal_class=normal"),
    ),
    "nothing to learn from": (A + "1,2,\n1,2,\n", ("no column is left",)),
    "infinite": (A + "1,2,\ninf,3,\n", ("column a holds infinite numbers",)),
    "decimal commas": (
        A.replace(",", ";") + "1;2;\n2,5;3;\n",
        ("column a holds numbers with a comma, such as 2,5", "expected a decimal point"),
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_wrong(what):
    content, words = FILES[what]
    Path("own.csv").unlink()
    if content is not None:
        Path("own.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused_by(load, "dataset.path=own.csv: ", *words)


@pytest.mark.parametrize(
    "ids, words",
    [
        (["a", "b", "a", "a"], ("column id (dataset.id_column) holds a in 3 rows", "dataset.id_column=null")),
        (["a", "", "b", ""], ("column id (dataset.id_column) is empty in 2 of 4 rows", "dataset.id_column=null")),
    ],
)
def test_ids_that_name_no_single_row(ids, words):
    write("own.csv", {"id": ids, "a": [1, 2, 3, 4], "label": ["", "", "1", "-1"]})
    refused_by(lambda: load(id_column="id"), "dataset.path=own.csv: ", *words)
    write("good.csv", {"id": [1, 2, 3, 4], "a": [1, 2, 3, 4], "label": ["", "", "1", "-1"]})
    write("own.csv", {"id": ids, "a": [1, 2, 3, 4], "label": [1, -1, 1, -1]})
    refused_by(lambda: load("good.csv", id_column="id", test_path="own.csv"), "dataset.test_path=own.csv: ", *words)
    refused_by(lambda: load("good.csv", id_column="label"), "dataset.id_column=label", "dataset.label_column")


def test_things_that_are_no_table():
    os.mkfifo("pipe.csv")
    Path("folder.csv").mkdir()
    Path("loop.csv").symlink_to("loop.csv")
    Path("own.xlsx").touch()
    Path("garbage.parquet").write_bytes(os.urandom(300))
    Path("empty.parquet").touch()
    pl.DataFrame({"a": [1, 2]}).write_parquet("cut.parquet")
    Path("cut.parquet").write_bytes(Path("cut.parquet").read_bytes()[:-20])
    pl.DataFrame({"a": [[1], [2]], "label": ["", ""]}).write_parquet("nested.parquet")
    for name, words in {
        "pipe.csv": ("neither a file nor a folder",),
        "folder.csv": ("is a folder",),
        "loop.csv": ("leads nowhere",),
        "own.xlsx": ("neither .csv nor .parquet",),
        "garbage.parquet": ("expected a Parquet file",),
        "empty.parquet": ("expected a Parquet file",),
        "cut.parquet": ("expected a Parquet file",),
        "nested.parquet": ("column a is of type List", "dataset.drop_columns=[a]"),
    }.items():
        refused_by(lambda name=name: load(name), f"dataset.path={name}: ", *words)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"labels": "guess"}, ("labels=guess: must be known or classes",)),
        ({"label_column": "truth"}, ("has no column truth (dataset.label_column)",)),
        ({"id_column": "name"}, ("has no column name (dataset.id_column)",)),
        ({"drop_columns": ["x"]}, ("has no column x (dataset.drop_columns)",)),
        ({"max_categories": 0}, ("max_categories=0: must be a whole number of at least 1",)),
        ({"test_fraction": 0}, ("test_fraction=0: must be a number between 0 and 1",)),
        ({"labels": "classes", "label_column": None}, ("dataset.label_column",)),
        ({"labels": "classes"}, ("column label is empty in 180 of 200 rows",)),
        ({"labels": "classes", "label_column": "id"}, ("every class has one row only",)),
        ({"labels_file": "labels.csv"}, ("dataset.labels_file=labels.csv: no such file", "index,label")),
        (
            {"labels_file": "labels.csv", "id_column": "id"},
            ("dataset.labels_file=labels.csv: no such file", "id,label"),
        ),
        ({"test_path": "nowhere.csv"}, ("dataset.test_path=nowhere.csv: no such file",)),
    ],
)
def test_settings_that_are_wrong(settings, words):
    refused_by(lambda: load(**settings), *words)


def test_known_labels_are_no_classes():
    write("own.csv", {"a": [1, 2, 3, 4], "label": [1, -1, 0, 0]})
    refused_by(
        lambda: load(labels="classes"), "dataset.path=own.csv: column label holds 1, -1 and 0", "dataset.labels=known"
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"age": None}, ("has no column age",)),
        ({"age": ["old"] * N}, ("column age holds old where numbers are expected",)),
        ({"day": [f"{i}.1.2024" for i in range(N)]}, ("column day holds 0.1.2024, 1.1.2024, 2.1.2024 and 197 more",)),
        ({"label": [""] * N}, ("200 of 200 test rows have no label",)),
        ({"label": ["normal"] * N}, ("all 200 test rows are normal",)),
    ],
)
def test_a_test_part_that_is_wrong(change, words):
    test = columns() | {"label": np.where(HIDDEN, "anomaly", "normal").tolist()} | change
    write("test.csv", {name: values for name, values in test.items() if values is not None})
    refused_by(lambda: load(test_path="test.csv"), "dataset.test_path=test.csv: ", *words)


def test_kinds_are_checked_in_arrays_too():
    encoding = Encoding.fit({"a": np.array([1.0, 2, 4]), "d": np.array(["2024-01-01", "NaT", "2025-01-01"], "M8[D]")})
    good = {"a": np.array([1, 2]), "d": np.array(["2024-01-01", "2024-01-02"], "M8[s]")}
    assert encoding.transform(good).shape == (2, 3)
    nothing = {"a": np.array([None, None]), "d": np.array([np.nan, np.nan])}
    np.testing.assert_array_equal(encoding.transform(nothing), [[0, 0, 1]] * 2)
    for name, values in {"a": np.array(["x", "y"]), "d": np.array([1.0, 2.0])}.items():
        with pytest.raises(ValueError, match=f"column {name} holds .* where .* are expected"):
            encoding.transform(good | {name: values})
    with pytest.raises(ValueError, match="column a is of type complex128"):
        encoding.transform(good | {"a": np.array([1j, 2j])})


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: plain.update(version=9),
        lambda plain: plain.pop("columns"),
        lambda plain: plain.update(columns=[]),
        lambda plain: plain["columns"][0].update(center=float("nan")),
        lambda plain: plain["columns"][0].update(scale=0.0),
        lambda plain: plain["columns"][0].update(kind="words"),
        lambda plain: plain["columns"][0].update(missing=1),
        lambda plain: plain.update(columns=["a"]),
        lambda plain: plain.update(dropped=[1]),
    ],
)
def test_a_damaged_plain_form_is_refused(damage):
    plain = Encoding.fit({"a": np.array([1.0, 2, 4])}).to_plain()
    assert Encoding.from_plain(plain).to_plain() == plain
    damage(plain)
    with pytest.raises(ValueError, match="is not the encoding of a table"):
        Encoding.from_plain(plain)


def test_without_polars(monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    refused_by(load, "dataset=table: polars is not installed", "elite_pl[table]")

"""The audit: a gallery that is tried in a browser, lists that fit the next training, and a line for each bad input."""

import csv
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from elite_pl import audit
from elite_pl.data import npy, npz

HOSTILE = "<script>alert('1')<&\"script>.png"
SHORT = ("method=isolation_forest", "threads=1")


@pytest.fixture
def shown(capfd):
    """Runs `python -m elite_pl.audit ARGUMENTS`: exit code, and the lines on standard output or of errors."""

    def call(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        try:
            audit.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            return int(exit.code or 0), capfd.readouterr().err
        streams = capfd.readouterr()
        return 0, streams.out + streams.err

    return call


@pytest.fixture
def photos(tmp_path):
    """A folder of 24 gray images, one with a name that would be a script in a page, and 4 labeled ones."""
    rng = np.random.default_rng(0)
    for place, count in (("unlabeled", 24), ("labeled/normal", 2), ("labeled/anomaly", 2)):
        (tmp_path / "photos" / place).mkdir(parents=True)
        for i in range(count):
            name = HOSTILE.replace("/", "") if (place, i) == ("unlabeled", 3) else f"{i:02}.png"
            Image.fromarray(rng.integers(0, 256, (12, 16), dtype=np.uint8)).save(tmp_path / "photos" / place / name)
    return tmp_path / "photos"


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, table: list[dict[str, object]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def content(page: Path) -> dict:
    """What the script of a gallery reads."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    return json.loads(text)


def trained(command, *arguments: str) -> Path:
    outcome = command(*SHORT, *arguments)
    assert outcome.code == 0, outcome.err
    return outcome.directory


# ------------------------------------------------------------------------------------------------------------- studies


@pytest.mark.usefixtures("rendered")
def test_of_digits_the_truth_is_known(command, shown):
    run = trained(command)
    code, out = shown(run)
    assert code == 0, out
    table = rows(run / "audit.csv")
    hidden = sum(row["is_anomaly"] == "1" for row in table)
    metrics = json.loads((run / "metrics.json").read_text())
    share = np.mean([row["is_anomaly"] == "1" for row in table[:50]])
    assert f"ROC AUC {100 * metrics['audit/auroc']:.1f} %" in out and f"{100 * share:.1f} % of the first 50" in out
    assert f"of the first {hidden}" in out
    with Image.open(run / "review.png") as review:
        assert review.width > 400
    assert not (run / "contact_sheet.png").exists()  # of vectors
    data = content(run / "gallery.html")
    assert [str(sample["index"]) for sample in data["samples"]] == [row["index"] for row in table]
    assert not data["known"]  # a labels file is for labels of one's own
    assert all(0 < len(sample["far"]) <= 5 and sample["far"][0][0].startswith("feature") for sample in data["samples"])
    split = np.load(run / "splits.npz")
    normal = set(split["labeled"][split["labeled_y"] > 0].tolist())
    stays = {int(row["index"]) for row in table if row["verdict"] == "normal"}
    assert [int(row["index"]) for row in rows(run / "clean.csv")] == sorted(normal | stays)


def test_columns_that_a_run_may_have_or_not(command, shown):
    run = trained(command)
    old, labeled = rows(run / "audit.csv"), np.load(run / "splits.npz")["labeled"].tolist()
    new = [
        {
            "index": row["index"],
            "suspicion": row["suspicion"],
            "probability": "" if i == 1 else 0.75,
            "verdict": "normal" if i else "anomaly",
            "rank": row["rank"],
            "nearest_normal": labeled[0],
            "nearest_anomaly": labeled[-1],
        }
        for i, row in enumerate(old)
    ]
    write(run / "audit.csv", new)
    code, out = shown(run, "--top", 2, "-o", "here")
    assert code == 0 and "2 of 110" in out and "ROC" not in out
    data = content(Path("here/gallery.html"))
    first, second = data["samples"]
    assert (first["probability"], first["verdict"], second["probability"]) == (0.75, "anomaly", None)
    assert first["nearest"] == [labeled[0], labeled[-1]] and first["truth"] == ""
    assert len(data["rest"]) == len(old) - 2  # they stay, though they are not shown
    assert len(rows(Path("here/clean.csv"))) == len(old) - 1 + 5
    write(run / "audit.csv", [{"index": row["index"], "suspicion": row["suspicion"]} for row in old])
    assert shown(run)[0] == 0 and content(run / "gallery.html")["samples"][0]["verdict"] == ""


# ---------------------------------------------------------------------------------------------------- data of one's own


def test_rows_of_a_table_tell_what_is_odd(command, shown, tmp_path):
    rng = np.random.default_rng(0)
    table = [
        {"id": f"=r{i}", "age": 40 + rng.integers(9), "job": "cook", "day": "2020-01-0" + str(1 + i % 7), "label": ""}
        for i in range(60)
    ]
    table[7] |= {"age": 90, "job": "spy"}
    for i in range(4):
        table[i]["label"] = "normal" if i % 2 else "anomaly"
    write(tmp_path / "own.csv", table)
    run = trained(command, "dataset=table", "dataset.path=own.csv", "dataset.id_column=id")
    assert shown(run)[0] == 0
    data = content(run / "gallery.html")
    assert data["column"] == "id" and data["known"] and not data["pictures"]
    odd = next(sample for sample in data["samples"] if sample["name"] == "=r7")
    far = {name: value for name, value, _ in odd["far"]}
    assert far["age"] == "90" and far["job=spy"] is None and "job=cook" not in far
    assert [sample["label"] for sample in data["labeled"]] == ["normal", "normal", "anomaly", "anomaly"]
    assert not any(sample["picked"] for sample in data["labeled"])
    clean = rows(run / "clean.csv")
    assert clean[0].keys() == {"index", "id", "kept_by"} and clean[0]["id"] == "'=r1"  # no formula
    by_id = [{"id": row["id"]} for row in clean[:3]]
    write(tmp_path / "keep.csv", by_id)
    assert shown(run, "--keep", "keep.csv")[0] == 0
    assert [row["kept_by"] for row in rows(run / "clean.csv")].count("keep list") == 3 - sum(
        row["kept_by"] == "label" for row in clean[:3]
    )
    write(tmp_path / "labels.csv", [{"id": "'=r9", "label": "anomaly"}])  # as a spreadsheet has it from ours
    again = trained(
        command, "dataset=table", "dataset.path=own.csv", "dataset.id_column=id", "dataset.labels_file=labels.csv"
    )
    assert json.loads((again / "metrics.json").read_text())["data/labeled"] == 5


def test_arrays_take_labels_by_index(tmp_path):
    x, y = np.random.default_rng(0).random((8, 3)), np.array([1, -1, 0, 0, 0, 0, 0, 0])
    np.savez(tmp_path / "own.npz", x=x, y=y)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    labels = tmp_path / "labels.csv"
    write(labels, [{"index": 5, "label": "anomaly"}, {"index": 0, "label": ""}])
    by_npz = npz(str(tmp_path / "own.npz"), "known", 0.3, str(labels))
    by_npy = npy(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), None, None, "known", 0.3, str(labels))
    assert by_npz.y_train.tolist() == by_npy.y_train.tolist() == [0, -1, 0, 0, 0, -1, 0, 0]
    for line, word in (("8,anomaly", "8"), ("x,normal", "x")):
        labels.write_text(f"index,label\n{line}\n")
        with pytest.raises(ValueError, match=rf"labels\.csv: 1 of 1 are none of the samples: {word}"):
            npz(str(tmp_path / "own.npz"), "known", 0.3, str(labels))
    labels.write_text("path,label\n1,normal\n")
    with pytest.raises(ValueError, match="expected index,label"):
        npz(str(tmp_path / "own.npz"), "known", 0.3, str(labels))


# --------------------------------------------------------------------------------------------------------- in a browser

PROBE = """<script>
addEventListener("load", () => {
  const saved = {}, real = URL.createObjectURL, waiting = [];
  HTMLAnchorElement.prototype.click = function () { waiting.at(-1).name = this.download; };
  URL.createObjectURL = blob => { waiting.push({ text: blob.text() }); return real(blob); };
  const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const cards = [...document.querySelectorAll("li:not(.head)")];
  cards[0].focus();
  press("a"); press("k"); press("u"); press("ArrowRight"); press("a");
  press("ArrowLeft"); press("Backspace"); press("A");
  const said = { focused: document.activeElement === cards[5], count: document.getElementById("count").textContent };
  cards[5].querySelector("[data-choice=keep]").click();
  cards[5].querySelector("[data-choice=keep]").click();
  const verdict = document.getElementById("ticked");
  verdict.value = "anomaly";
  verdict.dispatchEvent(new Event("change"));
  said.filtered = cards.filter(card => !card.hidden).map(card => cards.indexOf(card));
  verdict.value = "";
  verdict.dispatchEvent(new Event("change"));
  document.getElementById("save-labels").click();
  document.getElementById("save-keep").click();
  said.kept = JSON.parse(localStorage.getItem(JSON.parse(document.getElementById("data").textContent).store));
  said.names = cards.map(card => card.querySelector(".name").textContent);
  said.scripts = document.scripts.length;
  said.loaded = performance.getEntriesByType("resource").map(entry => entry.name);
  said.wide = document.documentElement.scrollWidth <= innerWidth;
  setTimeout(async () => {
    said.pictures = [...document.images].filter(image => image.src && image.naturalWidth > 0).length;
    for (const { name, text } of waiting) saved[name] = await text;
    document.body.innerText = JSON.stringify({ ...said, saved });
  }, 300);
});
</script>"""


def browse(page: Path, profile: Path, probe: str = "", width: int = 1280) -> str:
    """The document of a page once its scripts have run; a probe needs a policy that lets it."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    text = page.read_text()
    if probe:
        text, count = re.subn(r"script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", text)
        assert count == 1
    probed = profile.with_suffix(".html")
    probed.write_text(text.replace("</body>", f"{probe}</body>"))
    options = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    options += f" disable-component-update disable-sync window-size={width},900 virtual-time-budget=3000"
    command = [browser, *(f"--{option}" for option in options.split()), f"--user-data-dir={profile}", "--dump-dom"]
    return subprocess.run([*command, probed.as_uri()], capture_output=True, text=True, timeout=120).stdout


@pytest.mark.slow  # a browser, which a busy machine lets down
def test_a_person_goes_round_the_loop(command, shown, photos, tmp_path):
    run = trained(command, "dataset=image_folder", "dataset.path=photos")
    code, out = shown(run)
    assert code == 0, out
    with Image.open(run / "contact_sheet.png") as sheet:
        assert sheet.width > 1000
    assert HOSTILE not in (run / "gallery.html").read_text()
    document = browse(run / "gallery.html", tmp_path / "profile", PROBE)
    said = json.loads(html.unescape(re.search(r"<body[^>]*>(.*)</body>", document, re.DOTALL)[1]))
    assert said["focused"] and said["count"].startswith("4 of 24 ticked: 1 keep, 2 anomaly, 1 unsure")
    assert said["filtered"] == [0, 4]
    assert said["loaded"] == [] and said["scripts"] == 3 and said["wide"] and said["pictures"] >= 5
    table = rows(run / "audit.csv")
    assert said["names"] == [row["path"] for row in table] and f"unlabeled/{HOSTILE}" in said["names"]
    assert len(said["kept"]) == 4

    for name, text in said["saved"].items():
        (tmp_path / name).write_text(text)
    labels = {row["path"]: row["label"] for row in rows(tmp_path / "labels.csv")}
    picked = {row["path"]: row["picked"] for row in rows(tmp_path / "labels.csv")}
    assert picked[table[0]["path"]] == "yes" and picked["labeled/normal/00.png"] == ""
    assert labels[table[0]["path"]] == "anomaly" and labels[table[1]["path"]] == "normal"
    assert table[2]["path"] not in labels and labels["labeled/normal/00.png"] == "normal"
    again = trained(command, "dataset=image_folder", "dataset.path=photos", "dataset.labels_file=labels.csv")
    before, after = (json.loads((place / "metrics.json").read_text())["data/labeled"] for place in (run, again))
    assert (before, after) == (4, 7)

    assert shown(run, "--keep", tmp_path / "keep.csv")[0] == 0
    names = {row["path"] for row in rows(run / "clean.csv")}
    assert names == {row["path"] for row in rows(tmp_path / "keep.csv")}
    assert table[1]["path"] in names and table[0]["path"] not in names and "labeled/anomaly/00.png" not in names


@pytest.mark.slow  # a browser, which a busy machine lets down
def test_the_policy_lets_the_page_run_and_nothing_else(command, shown, tmp_path):
    run = trained(command)
    assert shown(run)[0] == 0
    document = browse(run / "gallery.html", tmp_path / "profile", width=500)
    assert document.count("<li") == 110 + 1 + 1  # samples, the head, the template
    page = run / "gallery.html"
    page.write_text(page.read_text().replace("</body>", "<script>document.title = 'foreign'</script></body>"))
    assert "<title>foreign" not in browse(page, tmp_path / "again")


# ------------------------------------------------------------------------------------------------------------ bad input


def refused(outcome: tuple[int, str], *words: str) -> None:
    code, err = outcome
    (line,) = err.splitlines()
    assert code == 2 and line.startswith("error: ") and all(word in line for word in words), line


def test_bad_input_gets_a_line(command, shown, photos, tmp_path):
    refused(shown("nowhere"), "nowhere: no such directory")
    refused(shown(), "required: RUN")
    run = trained(command, "dataset=image_folder", "dataset.path=photos")
    refused(shown("outputs"), "is no finished run", str(run))
    refused(shown(run / "detector.pt"), f"detector.pt: is a file; name the run directory, {run}")
    (tmp_path / "file").touch()
    refused(shown("file"), "file: is a file; expected the directory of a run")
    refused(shown(run, "--top", 0), "--top 0: must be at least 1")
    refused(shown(run, "-o", "file/there"), "-o file/there", "is not a directory")
    for text, words in {
        "index\n999\n": ("1 of 1 are no unlabeled or normal training samples: 999",),
        "index\n" + "".join(f"{i}\n" for i in range(993, 1000)): ("7 of 7 are no", ": 993, ", ", 997 and 2 more"),
        "path\nunlabeled/00.png\nunlabeled/none.png\n": ("1 of 2", "unlabeled/none.png"),
        "name\n1\n": ("its first line is name", "index or path"),
        "index,path\n1\n": ("row 2 does not have 2 values",),
        "": ("its first line is empty",),
        "path\n": ("names no sample",),
        "path,label\nunlabeled/00.png,anomaly\n": ("its column label", "dataset.labels_file"),
    }.items():
        (tmp_path / "keep.csv").write_text(text)
        refused(shown(run, "--keep", "keep.csv"), "--keep keep.csv", *words)
    (tmp_path / "keep.csv").write_bytes(b"\xff\xfe")
    refused(shown(run, "--keep", "keep.csv"), "--keep keep.csv")
    refused(shown(run, "--keep", "none.csv"), "--keep none.csv: no such file")
    assert not (run / "clean.csv").exists() and not (run / "gallery.html").exists()

    audited = (run / "audit.csv").read_text()
    for text in ("", "index,suspicion\n", "index,rank\n1,1\n", audited[:-30], audited.replace(",", ",x", 60)):
        (run / "audit.csv").write_text(text)
        refused(shown(run), str(run / "audit.csv"), "repeat the run")
    (run / "audit.csv").write_bytes(b"\xff\xfe")
    refused(shown(run), str(run / "audit.csv"))
    (run / "audit.csv").write_text(audited)

    Image.new("L", (12, 16)).save(photos / "unlabeled" / "00.png")
    code, out = shown(run)
    assert code == 0 and "the data have changed since" in out and "with other labels or contents" in out
    (photos / "unlabeled" / "00.png").rename(photos / "unlabeled" / "00a.png")
    refused(shown(run), "the data have changed since", "train again")
    shutil.rmtree(photos)
    refused(shown(run), "its data cannot be read again", "dataset.path=photos: no such folder")
    (run / "splits.npz").write_bytes(b"PK")
    refused(shown(run), "splits.npz: cannot be read")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_target_", "os.system"),
        ("_target_", "elite_pl.data.make_arrays"),
        ("path", {"_target_": "os.system", "command": "touch hacked"}),
        ("path", [{"_target_": "os.system", "command": "touch hacked"}]),
    ],
)
def test_a_configuration_runs_nothing(command, shown, photos, tmp_path, key, value):
    run = trained(command, "dataset=image_folder", "dataset.path=photos")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["dataset"]["source"][key] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    refused(shown(run), "config.yaml: dataset.source.")
    assert not (tmp_path / "hacked").exists()

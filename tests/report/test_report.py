"""The report of a study: its numbers, recomputed by hand, and its errors."""

import base64
import html
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas
import pytest
import scipy.stats
from omegaconf import OmegaConf

from elite_pl.errors import InputError
from elite_pl.report import __main__ as report
from elite_pl.report import figures, grid
from elite_pl.studies import read

CELLS = Path(__file__).parents[2] / "benchmarks" / "results" / "mnist_rivals" / "cells.jsonl"


@pytest.fixture
def study(tmp_path):
    """Writes finished runs, as far as the report reads them."""

    def add(auroc: float, *, rate: float = 0.1, directory: Path = tmp_path / "study", **metrics: object) -> Path:
        facts = {
            "dataset": "digits",
            "method": "elite_svdd",
            "pollution": 0.5,
            "label_ratio": 0.02,
            "normal_class": "0",
            "seed": 0,
            "data/hidden_anomalies": 55,
            "data/unlabeled": 110,
            **metrics,
        }
        names = [f"{facts[key]}" for key in ("pollution", "label_ratio", "method", "normal_class", "seed")]
        run = directory / "-".join([*names, f"{rate:g}"])
        run.mkdir(parents=True, exist_ok=True)
        content = {"config_hash": run.name, "test/auroc": auroc, **facts}
        (run / "metrics.json").write_text(json.dumps(content))
        OmegaConf.save({"study": directory.name, "method": {"optimizer": {"lr": rate}}}, run / "config.yaml")
        return directory

    return add


def cells(text: str) -> list[list[str]]:
    """The table in a text: header, then rows."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def shown(capfd, *arguments: object) -> str:
    report.main([str(argument) for argument in arguments])
    return capfd.readouterr().out


def refused(capfd, *arguments: object) -> str:
    with pytest.raises(SystemExit) as exit:
        report.main([str(argument) for argument in arguments])
    streams = capfd.readouterr()
    assert exit.value.code == 2 and streams.out == ""
    assert streams.err.startswith("error: ") and streams.err.count("\n") == 1
    return streams.err


ELITE = {("0", 0): 0.9, ("0", 1): 0.8, ("3", 0): 0.7, ("3", 1): 0.95}
RIVAL = {("0", 0): 0.6, ("0", 1): 0.7, ("3", 0): 0.5, ("3", 1): 0.5}


@pytest.fixture
def two_methods(study):
    for method, aurocs in (("elite_svdd", ELITE), ("deep_svdd", RIVAL)):
        for (normal_class, seed), auroc in aurocs.items():
            place = study(auroc, method=method, normal_class=normal_class, seed=seed)
    return place


@pytest.mark.usefixtures("rendered")
def test_means_deviations_and_paired_differences(capfd, two_methods):
    out = shown(capfd, two_methods, "--columns", "normal_class")
    assert cells(out) == [
        ["method", "normal_class 0", "normal_class 3", "all", "runs", "elite_svdd ahead by"],
        ["deep_svdd", "65.0 ± 7.1", "50.0 ± 0.0", "57.5 ± 9.6", "4", "+26.2 ± 6.2 (n = 4)"],
        ["elite_svdd", "85.0 ± 7.1", "82.5 ± 17.7", "83.8 ± 11.1", "4", ""],
    ]
    differences = [100 * (ELITE[cell] - RIVAL[cell]) for cell in ELITE]
    assert statistics.fmean(differences) == pytest.approx(26.25)
    of_class = [statistics.fmean(differences[:2]), statistics.fmean(differences[2:])]
    assert statistics.stdev(of_class) / 2**0.5 == pytest.approx(6.25), "the seeds of a class are no independent draws"
    assert "dataset digits, pollution 0.5, label_ratio 0.02, 55 hidden anomalies among 110 unlabeled" in out
    assert f"picture  {two_methods / 'comparison.png'}" in out and f"runs     {two_methods}" in out
    assert (two_methods / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (two_methods / "table.md").read_text() in out


def test_where_narrows_the_runs(capfd, two_methods):
    out = shown(capfd, two_methods, "--where", "normal_class=3", "--where", "seed=0,1", "--columns", "seed")
    assert cells(out)[1:] == [
        ["deep_svdd", "50.0", "50.0", "50.0 ± 0.0", "2", "+32.5 ± 12.5 (n = 2)"],
        ["elite_svdd", "70.0", "95.0", "82.5 ± 17.7", "2", ""],
    ]
    assert "the values of seed are 0, 1" in refused(capfd, two_methods, "--where", "seed=7")
    assert "normal_class=0,3" in refused(capfd, two_methods, "--where", "seed")
    for key, meant in (("sed", "seed"), ("method.optimizr.lr", "method.optimizer.lr")):
        told = refused(capfd, two_methods, "--where", f"{key}=1")
        assert f"--where {key}=1: no run has such a key; did you mean {meant}" in told


def test_settings_are_not_averaged_over(capfd, study):
    for pollution, hidden in ((0.1, 8), (0.5, 55)):
        for seed in range(2):
            counts = {"pollution": pollution, "seed": seed, "data/hidden_anomalies": hidden + seed}
            place = study(0.9 - pollution + seed / 10, **counts)
    assert cells(shown(capfd, place)) == [
        ["pollution", "method", "ROC AUC (%)", "runs", "hidden anomalies"],
        ["0.1", "elite_svdd", "85.0 ± 7.1", "2", "8.5"],
        ["0.5", "elite_svdd", "45.0 ± 7.1", "2", "55.5"],
    ]
    assert cells(shown(capfd, place, "--columns", "pollution"))[0][:3] == ["method", "pollution 0.1", "pollution 0.5"]


def test_a_difference_needs_the_same_split(capfd, study):
    study(0.9, seed=0)
    study(0.8, seed=1)
    study(0.7, seed=1, method="deep_svdd")
    study(0.1, seed=2, method="deep_svdd")
    rows = cells(shown(capfd, study(0.6, seed=9, method="oracle")))
    assert [row[-1] for row in rows] == ["elite_svdd ahead by", "+10.0 (n = 1)", "", ""]


def test_runs_that_differ_in_more_are_not_averaged(capfd, study):
    study(0.9, rate=0.1)
    place = study(0.8, rate=0.2)
    assert "differ in method.optimizer.lr;" in refused(capfd, place)
    rows = cells(shown(capfd, place, "--rows", "method,method.optimizer.lr"))
    assert [row[:3] for row in rows[1:]] == [["elite_svdd", "0.1", "90.0"], ["elite_svdd", "0.2", "80.0"]]


def test_studies_are_put_together_and_a_run_counts_once(capfd, study, tmp_path):
    first = study(0.9)
    second = study(0.9, directory=tmp_path / "second")
    study(0.7, directory=second, seed=1)
    assert cells(shown(capfd, first, second))[1] == ["elite_svdd", "80.0 ± 14.1", "2"]


def test_cells_say_what_the_runs_said(capfd, two_methods, tmp_path):
    kept = tmp_path / "kept" / "cells.jsonl"
    table = cells(shown(capfd, two_methods, "--cells", kept, "--rows", "method,method.optimizer.lr"))
    assert (kept.parent / "table.md").exists() and len(kept.read_text().splitlines()) == 8
    assert cells(shown(capfd, kept, "--rows", "method,method.optimizer.lr")) == table
    kept.write_text("{}\n")
    assert "cells.jsonl" in refused(capfd, kept)


def test_errors(capfd, study, tmp_path):
    assert "no such directory" in refused(capfd, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no finished run" in refused(capfd, tmp_path / "empty")
    place = study(0.9)
    assert "color: no run has such a key; see metrics.json" in refused(capfd, place, "--rows", "color,method")
    assert "metod: no run has such a key; did you mean method?" in refused(capfd, place, "--columns", "metod")
    assert "--help" in refused(capfd)
    (place / "half").mkdir()
    (place / "half" / "metrics.json").write_text('{"test/auroc": 0.')
    assert "half/metrics.json" in refused(capfd, place / "half"), "and beside a good one it is left out"


def test_a_place_that_cannot_be_written_to_is_named_with_its_option(capfd, study, tmp_path):
    place, file = study(0.9), tmp_path / "file"
    file.touch()
    assert f"--output {file}: {file} is not a directory; name a directory" in refused(capfd, place, "--output", file)
    assert f"--cells {tmp_path}: is a directory; name a file" in refused(capfd, place, "--cells", tmp_path)
    assert f"--cells {file}: {file} is not a directory" in refused(capfd, place, "--cells", file / "cells.jsonl")
    assert not (place / "report").exists() and not file.read_bytes()


def test_a_run_that_another_study_holds_counts_twice_only_where_studies_are_compared(capfd, study, tmp_path):
    for seed, before, after in ((0, 0.80, 0.85), (1, 0.70, 0.72)):
        first = study(before, seed=seed)
        second = study(after, seed=seed, directory=tmp_path / "second")
    assert cells(shown(capfd, first, second))[1] == ["elite_svdd", "78.5 ± 9.2", "2"]
    rows = cells(shown(capfd, first, second, "--columns", "study"))
    assert rows[0][:3] == ["method", "study study", "study second"]
    assert rows[1][:3] == ["elite_svdd", "75.0 ± 7.1", "78.5 ± 9.2"]
    text = (first / "report.html").read_text()
    assert "By study" in text and ">+3.5<" in text  # (5 + 2) / 2


def test_a_folder_of_studies_knows_their_names(study, tmp_path):
    study(0.9, directory=tmp_path / "all" / "one" / "digits" / "elite_svdd")
    study(0.8, directory=tmp_path / "all" / "two" / "digits" / "elite_svdd", seed=1)
    assert [run.study for run in read.read_studies([tmp_path / "all"])[0]] == ["one", "two"]


@pytest.fixture
def sweep(study):
    """Three methods on seven classes and two seeds, with 20 to 100 labels, which take hidden anomalies away."""
    rng = np.random.default_rng(0)
    for method, level in (("elite_svdd", 0.95), ("deep_sad", 0.85), ("deep_svdd", 0.70)):
        for ratio, hidden in ((0.004, 490), (0.012, 470), (0.02, 450)):
            for normal_class in range(7):
                for seed in range(2):
                    labeled = round(5000 * ratio)
                    place = study(
                        level - rng.random() / 20,
                        method=method,
                        label_ratio=ratio,
                        normal_class=str(normal_class),
                        seed=seed,
                        pollution=0.1,
                        **{
                            "data/hidden_anomalies": hidden,
                            "data/labeled": labeled,
                            "data/unlabeled": 5000 - labeled,
                            "data/pollution_unlabeled": hidden / (5000 - labeled),
                        },
                    )
    return place


def test_the_summary_agrees_with_pandas_and_scipy(capfd, sweep):
    shown(capfd, sweep)
    summary = pandas.read_csv(sweep / "report" / "summary.csv")
    frame = read.data_frame(sweep)
    assert len(summary) == 9 and len(frame) == 126
    for (ratio, method), group in frame.groupby(["label_ratio", "method"]):
        (row,) = summary[(summary.label_ratio == ratio) & (summary.method == method)].to_dict("records")
        auroc = 100 * group["test/auroc"]
        assert row["auroc_percent"] == pytest.approx(auroc.mean()) and row["std"] == pytest.approx(auroc.std())
        assert (row["runs"], row["classes"]) == (14, 7)
        classes = auroc.groupby(group["normal_class"]).mean()
        interval = scipy.stats.t.interval(0.95, 6, classes.mean(), classes.sem())
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(interval)
        if method == "elite_svdd":
            assert math.isnan(row["ahead"])
            continue
        paired = frame[frame.label_ratio == ratio].pivot(index=["normal_class", "seed"], columns="method")["test/auroc"]
        ahead = 100 * (paired["elite_svdd"] - paired[method])
        by_class = ahead.groupby("normal_class").mean()
        assert row["ahead"] == pytest.approx(ahead.mean()) and row["pairs"] == 14 and row["units"] == 7
        assert row["p"] == pytest.approx(scipy.stats.wilcoxon(by_class).pvalue) == pytest.approx(2 / 128)
        assert row["p_holm"] == pytest.approx(4 / 128)  # two rivals at each setting


def test_tables_for_papers(capfd, sweep):
    shown(capfd, sweep)
    latex = (sweep / "report" / "summary.tex").read_text()
    assert latex.count(r" \\") == 10 and r"elite\_svdd ahead by" in latex and r"$\pm$" in latex
    columns = re.search(r"tabular}{(\w+)}", latex)
    assert columns and all(line.count(" & ") == len(columns[1]) - 1 for line in latex.splitlines() if " & " in line)
    table = cells((sweep / "report" / "summary.md").read_text())
    assert len(table) == 10 and {len(line) for line in table} == {len(columns[1])}
    assert r"\midrule" in (sweep / "report" / "table.tex").read_text()


def test_what_moves_along_an_axis_is_said(capfd, sweep, study, tmp_path):
    (line,) = [line for line in shown(capfd, sweep).splitlines() if line.startswith("Along ")]
    assert line.startswith("Along label_ratio (digits) more than label_ratio changes")
    assert "hidden pollution (`data/pollution_unlabeled`) falls from 9.8 % to 9.2 %" in line
    assert "`data/unlabeled` falls from 4980 to 4900" in line and "data/labeled" not in line
    other = tmp_path / "other"
    study(0.9, directory=other, pollution=0.1, rate=0.1)
    assert "`method.optimizer.lr` of elite_svdd is 0.1, 0.2" in shown(
        capfd, study(0.9, directory=other, pollution=0.5, rate=0.2)
    )
    study(0.9, directory=tmp_path / "steady", pollution=0.1)
    assert "Along" not in shown(capfd, study(0.9, directory=tmp_path / "steady", pollution=0.5))


@pytest.mark.usefixtures("rendered")
def test_the_scale_of_the_meta_gradient_is_an_axis(capfd, study):
    for scale in (1, 10, 100):
        for normal_class in "03":
            place = study(0.9 - scale / 1000, normal_class=normal_class, rate=scale, **{"method.meta_scale": scale})
    assert [row[:2] for row in cells(shown(capfd, place))] == [
        ["method.meta_scale", "method"],
        *([str(scale), "elite_svdd"] for scale in (1, 10, 100)),
    ]
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        assert (place / "report" / f"meta_scale{suffix}").read_bytes().startswith(start)


def test_failed_and_missing_cells_are_listed(capfd, study):
    for seed in (0, 1):
        for method in ("elite_svdd", "deep_svdd"):
            for normal_class in "012":
                if (method, normal_class, seed) not in {("deep_svdd", "1", 0), ("deep_svdd", "2", 1)}:
                    place = study(0.9, method=method, normal_class=normal_class, seed=seed)
    coordinates = {"dataset": "digits", "method": "deep_svdd", "pollution": 0.5, "label_ratio": 0.02}
    for name, normal_class in (("broken", 1), ("deep_svdd-again", 0)):
        (place / name).mkdir()
        record = {**coordinates, "normal_class": normal_class, "seed": 0, "error": "score is <nan>", "time": "12:00"}
        (place / name / "failed.json").write_text(json.dumps(record))
    (place / "deep_svdd-again" / "metrics.json").write_text('{"data/test": 0}')  # it has run since
    assert "Cells: 1 failed and 1 of the full grid are missing; report.html lists them." in shown(capfd, place)
    text = (place / "report.html").read_text()
    assert "score is &lt;nan&gt;" in text and "2 (seed 1)" in text and "1 (seed 0)" not in text


@pytest.mark.usefixtures("rendered")
def test_curves_over_the_epochs(capfd, study):
    place = study(0.9)
    shown(capfd, place)
    assert not list((place / "report").glob("epochs_*"))
    for run in place.glob("*/metrics.json"):
        rows = ["epoch,step,labeled/loss,test/auroc", "1,4,1.5,", "2,8,0.5,", "3,12,0.25,0.9"]
        (run.parent / "history.csv").write_text("\n".join(rows))
        run.write_text(json.dumps(json.loads(run.read_text()) | {"train/margin": 0.5}))
    ((run,), _) = read.read_studies([place])
    (panel,) = grid.epoch_panels([run], ["dataset", "method"], "labeled/loss")
    assert (list(panel.lines[0].x), list(panel.lines[0].y)) == ([1, 2, 3], [3, 1, 0.5])
    shown(capfd, place)
    assert sorted(path.name for path in (place / "report").glob("epochs_*")) == [  # one epoch makes no curve
        "epochs_labeled_loss.png",
        "epochs_labeled_loss.svg",
    ]


def test_a_data_frame_has_what_differs(study, two_methods):
    study(0.5, rate=0.2, seed=7)
    frame = read.data_frame(two_methods)
    assert len(frame) == 9 and set(frame["study"]) == {"study"}
    assert frame.loc[frame["seed"] == 7, "method.optimizer.lr"].tolist() == [0.2]
    assert frame.groupby("method")["test/auroc"].mean()["deep_svdd"] == pytest.approx(0.575)
    kept = read.data_frame(CELLS)
    assert len(kept) == len(CELLS.read_text().splitlines()) and "method.contamination" in kept


def test_a_data_frame_needs_pandas_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pandas is not installed; pip install"):
        read.data_frame(CELLS)


def test_pictures_can_be_told_apart():
    looks = [figures.series(i) for i in range(24)]
    assert len({(marker, face == "white") for _, marker, face, _ in looks}) == 24
    assert len({(color, dashes) for color, _, _, dashes in looks}) == 24


def test_help_and_reading_need_no_heavy_library():
    slow = "{'torch', 'scipy', 'pandas', 'matplotlib', 'sklearn', 'wandb', 'hydra'}"
    code = f"import sys, elite_pl.report.__main__; print(sorted({slow} & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


class Links(HTMLParser):
    """Every address in a page, its headings and what its table of contents leads to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses, self.ids, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.ids += [value for name, value in attrs if name == "id"]


def test_the_page_needs_nothing_beside_it(capfd, sweep):
    shown(capfd, sweep)
    text = (sweep / "report.html").read_text()
    page = Links(text)
    own = [address[1:] for address in page.addresses if address.startswith("#")]
    assert len(own) >= 7 and set(own) == set(page.ids)
    assert all(address.startswith(("#", "data:")) for address in page.addresses) and "script" not in page.tags
    assert not re.search(r"url\(|@import", text)
    (kept,) = re.findall(r'download="summary.csv" href="data:text/csv;base64,([^"]+)"', text)
    assert base64.b64decode(kept) == (sweep / "report" / "summary.csv").read_bytes()


# Runs in the page: what it has loaded from elsewhere, pictures that failed, how wide it is, what is in sight.
PROBE = """<script>addEventListener("load", () => { const root = document.documentElement;
const said = {width: root.clientWidth, needs: root.scrollWidth, pictures: document.images.length,
broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).length,
loaded: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
headings: [...document.querySelectorAll("h2")].map(heading => heading.innerText),
text: document.body.innerText};
document.body.innerText = JSON.stringify(said); });</script>"""


@pytest.mark.parametrize("width", [500, 1280])
def test_the_page_in_a_browser(capfd, sweep, tmp_path, width):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    shown(capfd, sweep)
    text = (sweep / "report.html").read_text()
    probed = tmp_path / "probed.html"
    policy = "default-src 'none'; "
    assert text.count(policy) == 1
    text = text.replace(policy, policy + "script-src 'unsafe-inline'; ")
    probed.write_text(text.replace("</body>", PROBE + "</body>"))
    options = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    options += f" disable-component-update disable-sync window-size={width},900 user-data-dir={tmp_path / 'profile'}"
    command = [browser, *(f"--{option}" for option in options.split()), "--dump-dom", probed.as_uri()]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    body = re.search(r"<body>(.*)</body>", finished.stdout, re.DOTALL)
    assert body, finished.stderr
    said = json.loads(html.unescape(body[1]))
    assert width - 20 <= said["width"] <= width and said["needs"] <= said["width"]  # less a scroll bar
    assert said["pictures"] >= 2 and said["broken"] == 0 and said["loaded"] == []
    expected = ["At a glance", "Figures", "Table", "Intervals and tests", "By normal class", "Settings"]
    assert [heading for heading in said["headings"] if heading in expected] == expected
    for row in cells((sweep / "table.md").read_text())[1:]:
        assert row[2] in said["text"]  # mean ± standard deviation


def test_a_sweep_of_the_command(command, capfd):
    outcome = command("-m", "method=deep_svdd,elite_svdd", "normal_class=1", "epochs=1", "method.pretrain_epochs=0")
    assert outcome.code == 0, outcome.err
    out = shown(capfd, "outputs/runs", "--columns", "normal_class")
    rows = cells(out)
    assert rows[0][:2] == ["method", "normal_class 1"] and [row[0] for row in rows[1:]] == ["deep_svdd", "elite_svdd"]
    found = json.loads(next(Path("outputs").rglob("deep_svdd/*/metrics.json")).read_text())
    assert rows[1][1] == f"{100 * found['test/auroc']:.1f}"
    audits = Path("outputs/runs/report.html").read_text().split('<h2 id="audit">')[1].split("</section>")[0]
    assert "ROC AUC" in audits and f">{100 * found['audit/auroc']:.1f}<" in audits


def test_the_table_shows_average_precision_if_one_asks(study, capfd):
    for (normal_class, seed), auroc in ELITE.items():
        facts = {"normal_class": normal_class, "seed": seed}
        place = study(auroc, **facts, **{"test/average_precision": auroc / 2})
        study(RIVAL[normal_class, seed], **facts, method="rival", **{"test/average_precision": 0.25})
    header, elite, rival = cells(shown(capfd, place, "--average-precision"))
    assert "Average precision (%)" in header
    values = [50 * auroc for auroc in ELITE.values()]
    assert f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}" in elite
    assert rival[-1].startswith(f"+{statistics.fmean(values) - 25:.1f} ± ")


@pytest.mark.parametrize("which", ["seen", "unseen"])
def test_the_table_shows_kinds_with_a_label_or_without_if_one_asks(study, capfd, which):
    found = {"test/auroc_seen": 0.9, "test/auroc_unseen": 0.8}
    _, row = cells(shown(capfd, study(0.85, **found), f"--{which}"))
    assert f"{100 * found[f'test/auroc_{which}']:.1f}" in row and "85.0" not in row


def test_a_run_without_average_precision_is_named(study, capfd):
    assert "a run has no test/average_precision" in refused(capfd, study(0.9), "--average-precision")

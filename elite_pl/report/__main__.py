"""The command `python -m elite_pl.report`: tables, figures and one HTML page, from the files of finished runs."""

from __future__ import annotations

import argparse
import difflib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elite_pl.errors import InputError
from elite_pl.files import atomic_write
from elite_pl.options import Parser, exit_codes
from elite_pl.report.contents import Drawn, Findings, sections
from elite_pl.report.dashboard import Chart, log_study
from elite_pl.report.figures import Panel, comparison_plot, lines_plot, plain
from elite_pl.report.grid import (
    MEASURES,
    averaged_over,
    confounds,
    default_rows,
    epoch_panels,
    line_names,
    missing,
    sweep_panels,
    swept,
)
from elite_pl.report.page import page
from elite_pl.report.tables import (
    SUMMARY_CAPTION,
    latex,
    literal,
    markdown,
    summary,
    summary_csv,
    summary_text,
    table,
    told_apart_by,
)
from elite_pl.runs.results import AUROC, AUROC_SEEN, AUROC_UNSEEN, AVERAGE_PRECISION, check_writable
from elite_pl.studies.read import (
    SETTING,
    Run,
    grouped,
    read_failures,
    read_studies,
    shortened,
    values_of,
    without_copies,
    write_cells,
)

_AXES = {  # how the axes of the paper are called in a figure
    "pollution": "pollution $r_p$",
    "label_ratio": "label ratio $r_l$",
    "method.meta_scale": "scale $η_M$ of the meta-gradient",
}
AGAINST = "elite_svdd"
log = logging.getLogger("elite_pl")
_SIDE_BY_SIDE = 60  # lines of the summary up to which a picture of all runs side by side can be read


def write(path: Path, text: str) -> bytes:
    """Writes text, and returns it as it is in the file; JSON may hold lone surrogates, which cannot be encoded."""
    content = text.encode(errors="replace")
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return content


def picture(paths: Sequence[Path], runs: Sequence[Run], rows: Sequence[str], column: str | None, against: str) -> None:
    """Draws methods side by side, grouped by the column's key, else by what the rows tell apart beside the method."""
    keys = [column] if column else [k for k in rows if k != "method" and len(values_of(runs, k)) > 1]
    keys = keys or ["normal_class"]
    points = []
    for values, group in grouped(runs, keys):
        for (method,), part in grouped(group, ["method"]):
            points += [(method, "\n".join(values), run.metrics[AUROC]) for run in part]
    methods = sorted({method: None for method, _, _ in points}, key=lambda method: method != against)
    points.sort(key=lambda point: methods.index(point[0]))
    for path in paths:
        comparison_plot(path, points, ", ".join(key.replace("_", " ") for key in keys))


def figures(folder: Path, runs: Sequence[Run], keys: Sequence[str], against: str) -> list[Drawn]:
    """Draws the ROC AUC along each axis (Figures 3 to 6) and the measures over the epochs (Figure 7).

    Args:
        folder: Where they go, each as PNG and as SVG.
        runs: Finished runs.
        keys: The keys that tell methods apart.
        against: The method that stands out.
    """
    order = line_names(runs, keys, against)
    found = []

    def draw(stem: str, panels: Sequence[Panel], x: str, y: str, caption: str, *, chance: bool, epochs: bool) -> None:
        if panels:
            paths = [folder / f"{stem.replace('/', '_')}{suffix}" for suffix in (".png", ".svg")]
            lines_plot(paths, panels, order, x, y, chance=chance, bands=epochs)
            found.append(Drawn(paths[1], caption, epochs, stem.removeprefix("epochs_"), panels))

    for axis in swept(runs, keys):
        name = axis.removeprefix("method.")
        caption = f"ROC AUC on the test set against {name}: means over classes and seeds, with their 95 % intervals"
        caption += " (which may reach beyond the frame)."
        panels = sweep_panels(runs, keys, axis)
        draw(name, panels, _AXES.get(axis) or plain(axis), "ROC AUC (%)", caption, chance=True, epochs=False)
    for measure in MEASURES:
        stem = f"epochs_{measure.replace('/', '_')}"
        caption = f"{measure} over the epochs: mean over classes and seeds, ± standard deviation unless lines are many."
        panels = epoch_panels(runs, keys, measure)
        draw(stem, panels, "epoch", MEASURES[measure], caption, chance=measure == AUROC, epochs=True)
    return found


def charts(drawn: Sequence[Drawn]) -> dict[str, Chart]:
    """The figures as W&B draws them: a chart a panel, without intervals."""
    return {
        f"{figure.quantity} over the epochs{where}"
        if figure.epochs
        else f"ROC AUC (%) over {figure.quantity}{where}": (
            "epoch" if figure.epochs else figure.quantity,
            {line.name: (line.x, line.y) for line in panel.lines},
        )
        for figure in drawn
        for panel in figure.panels
        for where in [f" ({panel.title})" if panel.title else ""]
    }


def parser() -> Parser:
    """The options of the command."""
    found = Parser("report", "Tables, figures and one HTML page, from the files of finished runs.")
    found.add_argument(
        "study", nargs="+", type=Path, help="OUTPUT_DIR/STUDY, or a file of cells; several are put together"
    )
    found.add_argument(
        "--rows",
        metavar="KEYS",
        help="keys of metrics.json or config.yaml, with commas, that make the rows (default: "
        f"{','.join((*SETTING, 'method'))}, and method.meta_scale where a method sweeps it)",
    )
    found.add_argument(
        "--columns",
        metavar="KEY",
        help="a key whose values become columns, such as normal_class; `study` and `commit` compare several studies",
    )
    found.add_argument(
        "--against", metavar="METHOD", help=f"compare the others with it (default: {AGAINST}, if it is there)"
    )
    found.add_argument(
        "--average-precision",
        action="store_const",
        dest="measure",
        const=AVERAGE_PRECISION,
        default=AUROC,
        help="show it in the table instead of ROC AUC; figures and tests always use ROC AUC",
    )
    for name, measure, which in (("seen", AUROC_SEEN, "a"), ("unseen", AUROC_UNSEEN, "no")):
        found.add_argument(
            f"--{name}",
            action="store_const",
            dest="measure",
            const=measure,
            help=f"likewise the mean ROC AUC over kinds of anomalies that {which} label shows",
        )
    found.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="only runs with one of these values (with commas) of a key; may be given several times",
    )
    found.add_argument("--cells", type=Path, metavar="FILE", help="keep the runs in a file, to be read as a study")
    found.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where the report goes (default: the folder of --cells, else the first study)",
    )
    found.add_argument(
        "--wandb",
        nargs="?",
        const="elite_pl",
        metavar="PROJECT",
        help="put the report into W&B, too, in PROJECT or ENTITY/PROJECT (default: %(const)s)",
    )
    return found


def notes_on_gaps(failed: int, absent: int, left_out: int) -> list[str]:
    """A line on cells without a number, if there are any."""
    said = [f"{failed} failed"] * bool(failed) + [f"{absent} of the full grid are missing"] * bool(absent)
    said += [f"{left_out} cannot be read"] * bool(left_out)
    return [f"Cells: {' and '.join(said)}; report.html lists them."] if said else []


@dataclass(frozen=True)
class Selection:
    """The runs that a report is about, and how its tables tell them apart.

    Attributes:
        runs: Finished runs, each once.
        failures: The failed cells, as `read_failures` gives them.
        left_out: A line on each run that cannot be read.
        rows: The keys that make the rows.
        column: The key whose values become columns, if there is one.
        against: The method that the others are compared with.
    """

    runs: Sequence[Run]
    failures: Sequence[Mapping[str, Any]]
    left_out: Sequence[str]
    rows: Sequence[str]
    column: str | None
    against: str

    @property
    def keys(self) -> list[str]:
        """The keys by which the tables tell runs apart."""
        return told_apart_by(self.rows, self.column)


def narrowed(
    runs: Sequence[Run], failures: Sequence[Mapping[str, Any]], conditions: Sequence[str]
) -> tuple[list[Run], list[Mapping[str, Any]]]:
    """The runs, and the failed cells, that meet all conditions.

    Args:
        runs: Finished runs.
        failures: Failed cells.
        conditions: `KEY=VALUE` or `KEY=VALUE,VALUE`, compared as text.

    Raises:
        InputError: If a condition has no values, no run has its key, or none meets it.
    """
    kept, failed = list(runs), list(failures)
    for condition in conditions:
        key, equals, values = condition.partition("=")
        if not equals:
            raise InputError(f"--where {condition}: give a key and its values, as in normal_class=0,3")
        kept = [run for run in kept if str(run[key]) in values.split(",")]
        failed = [failure for failure in failed if str(failure.get(key)) in values.split(",")]
        if not any(key in run.metrics or key in run.config or run[key] is not None for run in runs):
            raise InputError(f"--where {condition}: {no_such_key(runs, key)}")
        if not kept:
            there = ", ".join(map(str, values_of(runs, key)))
            raise InputError(f"--where {condition}: no run is left; the values of {key} are {there}")
    return kept, failed


def no_such_key(runs: Sequence[Run], key: str) -> str:
    """Says that no run has a key, and which ones may have been meant."""
    there = sorted({name for run in runs for name in (*run.metrics, *run.config) if name != key})
    close = difflib.get_close_matches(key, there)
    hint = f"did you mean {' or '.join(close)}?" if close else "see metrics.json and config.yaml of one"
    return f"no run has such a key; {hint}"


def select(options: argparse.Namespace) -> Selection:
    """Reads the studies, and chooses what their tables show.

    Args:
        options: As parsed.

    Raises:
        InputError: If a study, a key or a method is not there.
    """
    every, left_out = read_studies(options.study)
    failures: list[Mapping[str, Any]] = [failure for place in options.study for failure in read_failures(place)]
    asked = [*(options.rows or "").split(","), options.columns]
    runs, failures = narrowed(without_copies(every, asked), failures, options.where)
    rows = options.rows.split(",") if options.rows else default_rows(runs)
    for key in [*rows, *filter(None, [options.columns])]:
        if key not in SETTING and all(run[key] is None for run in runs):
            raise InputError(f"{key}: {no_such_key(runs, key)}")
    if options.against is not None and options.against not in values_of(runs, "method"):
        there = ", ".join(values_of(runs, "method"))
        raise InputError(f"--against {options.against}: no run of this method; there are {there}")
    return Selection(runs, failures, left_out, rows, options.columns, options.against or AGAINST)


def place_of(options: argparse.Namespace) -> Path:
    """The directory that the report goes to.

    Args:
        options: As parsed.

    Raises:
        InputError: If nothing can be written there, or to the file of cells.
    """
    if options.cells:
        if options.cells.is_dir():
            raise InputError(
                f"--cells {options.cells}: is a directory; name a file, such as {options.cells / 'cells.jsonl'}"
            )
        check_writable(options.cells.parent, "--cells ")
    first = options.cells or options.study[0]
    place: Path = options.output or (first if first.is_dir() else first.parent)
    check_writable(place, "--output ")
    return place


def write_report(options: argparse.Namespace) -> list[str]:
    """Reads the studies, and writes all that the command writes.

    Args:
        options: As parsed.

    Returns:
        The lines to print.

    Raises:
        InputError: If a study, a key or a method is not there, or nothing can be written.
    """
    selected, place = select(options), place_of(options)
    runs, failures, left_out = selected.runs, selected.failures, selected.left_out
    rows, against, keys = selected.rows, selected.against, selected.keys
    for line in shortened(left_out):
        log.warning(line)
    header, body, caption = table(runs, rows, options.columns, against, options.measure)
    notes = [*confounds(runs, keys), *averaged_over(runs, keys)]
    absent = sum(len(cells) for _, cells in missing(runs, failures, keys))
    remarks = [caption, *notes, *notes_on_gaps(len(failures), absent, len(left_out))]
    text = "\n\n".join([markdown(header, body), *map(literal, remarks)]) + "\n"
    if options.cells:
        write_cells(options.cells, runs)
    folder = place / "report"
    folder.mkdir(parents=True, exist_ok=True)
    write(place / "table.md", text)
    picture([place / "comparison.png", folder / "comparison.svg"], runs, rows, options.columns, against)
    lines = summary(runs, rows, options.columns, against)
    long = summary_text(lines, against)
    files = {
        "summary.csv": summary_csv(lines),
        "summary.md": markdown(*long) + "\n",
        "summary.tex": latex(*long, SUMMARY_CAPTION),
        "table.tex": latex(header, body, caption),
    }
    drawn = figures(folder, runs, keys, against)
    shown = list(drawn)
    if not drawn or len(lines) <= _SIDE_BY_SIDE:
        side_by_side = "ROC AUC on the test set: every run a small mark, mean ± standard deviation a large one."
        shown.append(Drawn(folder / "comparison.svg", side_by_side))
    saved = {name: write(folder / name, content) for name, content in files.items()}
    findings = Findings(runs, failures, left_out, keys, against, (header, body, caption), lines, notes, shown, saved)
    studies = list(dict.fromkeys(run.study for run in runs))
    made = time.strftime("%Y-%m-%d %H:%M %Z")
    title = f"Report: {', '.join(studies)}"
    write(place / "report.html", page(title, f"elite_pl.report, {made}", sections(findings)))
    printed = [f"{text}\ntable    {place / 'table.md'}\npicture  {place / 'comparison.png'}"]
    printed.append(f"page     {place / 'report.html'}")
    if options.wandb:
        pictures = [place / "comparison.png", *(figure.path.with_suffix(".png") for figure in drawn)]
        where = log_study(place, studies, charts(drawn), long, pictures, place / "report.html", project=options.wandb)
        printed.append(f"W&B      {where}")
    return [*printed, f"runs     {place}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line, and exits with 2 for bad input."""
    with exit_codes():
        print("\n".join(write_report(parser().parse_args(arguments))))


if __name__ == "__main__":
    main()

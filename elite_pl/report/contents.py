"""The content of the page of a report, section by section."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elite_pl.report.figures import Panel
from elite_pl.report.grid import missing
from elite_pl.report.page import Section, bullets, downloads, facts, folded, html_table, paragraph, picture
from elite_pl.report.statistics import FEWEST, SIGNIFICANT
from elite_pl.report.tables import Row, best_and_behind, changes, summary_text, table
from elite_pl.studies.read import (
    ORIGIN,
    REPEATS,
    SETTING,
    UNSET,
    Run,
    common_and_different,
    counted,
    grouped,
    values_of,
)

AUDITS = {
    "audit/auroc": "ROC AUC",
    "audit/auroc_meta_gradient": "ROC AUC of the meta-gradient",
    "audit/precision_at_50": "anomalies among the first 50",
    "audit/precision_at_hidden": "among the first k (k = hidden anomalies)",
}
_MOST = 200  # lines of a list; more are counted

HOW = (
    "The interval is Student's t over normal classes, or data sets of one: the seeds of a class share its difficulty, "
    "so they count as one cluster (for one class alone, its seeds are what varies). It is cut at 0 and 100 %.",
    "“Ahead by” is the mean of the paired differences over the same splits, in points of ROC AUC, with its interval.",
    "p is that of a two-sided Wilcoxon signed-rank test (exact where ties allow it) on the differences, each class by "
    "the mean over its seeds. It assumes no normal distribution, which ROC AUC near 100 % does not have (Demšar 2006). "
    f"With fewer than {FEWEST} units it cannot fall below 0.05, whatever the differences are.",
    "“p, Holm” is corrected for all methods compared at one setting. It says nothing of the number of settings.",
)


@dataclass(frozen=True)
class Drawn:
    """A figure that was drawn.

    Attributes:
        path: The SVG; the PNG lies beside it.
        caption: Text below the figure.
        epochs: Whether x is the epoch.
        quantity: The quantity on x, or over the epochs on y; empty for a figure that is not made of panels.
        panels: Its panels.
    """

    path: Path
    caption: str
    epochs: bool = False
    quantity: str = ""
    panels: Sequence[Panel] = ()


@dataclass(frozen=True)
class Findings:
    """The content of the page.

    Attributes:
        runs: Finished runs.
        failures: The failed cells, as `read_failures` gives them.
        left_out: A line on each run that cannot be read.
        keys: The keys that tell methods apart.
        against: The method that all are compared with.
        printed: Header, lines and caption of the table that is printed.
        rows: The summary.
        notes: Warnings about settings that change along an axis together with it.
        figures: The figures.
        files: Files that can be saved from the page, by name.
    """

    runs: Sequence[Run]
    failures: Sequence[Mapping[str, Any]]
    left_out: Sequence[str]
    keys: Sequence[str]
    against: str
    printed: tuple[list[str], list[list[str]], str]
    rows: Sequence[Row]
    notes: Sequence[str]
    figures: Sequence[Drawn]
    files: Mapping[str, bytes]


def sections(found: Findings) -> list[Section]:
    """The sections of the page, in order; those without parts are not shown."""
    sweeps, curves = (
        [picture(f.path.name, f.path.read_bytes(), f.caption) for f in found.figures if f.epochs == epochs]
        for epochs in (False, True)
    )
    header, body, caption = found.printed
    return [
        Section("At a glance", _glance(found)),
        Section("Figures", sweeps),
        Section("Table", [html_table(header, body, found.against), paragraph(caption, "soft")]),
        Section("Intervals and tests", _tests(found)),
        Section("By normal class", _classes(found)),
        *(Section(f"By {origin}", _changes(found, origin)) for origin in ORIGIN),
        Section("Audit", _audits(found)),
        Section("Over the epochs", curves),
        Section("Failed and missing cells", _gaps(found)),
        Section("Settings", _settings(found.runs)),
        Section("Environment", _environment(found.runs)),
    ]


def _glance(found: Findings) -> list[str]:
    gaps = sum(len(cells) for _, cells in missing(found.runs, found.failures, found.keys))
    seconds = [run["train/seconds"] for run in found.runs if run["train/seconds"] is not None]
    numbers = [("runs", str(len(found.runs))), ("failed", str(len(found.failures))), ("missing", str(gaps))]
    for name, key in (("data sets", "dataset"), ("methods", "method"), ("classes", "normal_class"), ("seeds", "seed")):
        numbers.append((name, str(len(values_of(found.runs, key)))))
    if seconds:
        hours, minutes = divmod(round(sum(seconds) / 60), 60)
        numbers.append(("training time, added", f"{hours} h {minutes} min" if hours else f"{minutes} min"))
    parts = [facts(numbers)]
    header, body = best_and_behind(found.rows, found.against)
    if body:
        parts.append(html_table(header, body))
        parts.append(paragraph(f"Significantly: p, Holm < {SIGNIFICANT}; see Intervals and tests.", "soft"))
    if found.notes:
        parts.append(bullets(found.notes, "warn"))
    return parts


def _tests(found: Findings) -> list[str]:
    header, body = summary_text(found.rows, found.against)
    return [html_table(header, body, found.against), bullets(HOW, "soft"), downloads(dict(found.files))]


def _audits(found: Findings) -> list[str]:
    """Summarizes how well the suspicion ranks hidden anomalies, over the runs that report it."""
    columns = {key: title for key, title in AUDITS.items() if any(key in run.metrics for run in found.runs)}
    body = []
    for values, group in grouped(found.runs, found.keys):
        means = [[run.metrics[key] for run in group if key in run.metrics] for key in columns]
        body.append([*values, *(f"{100 * sum(mean) / len(mean):.1f}" if mean else "" for mean in means)])
    note = "Of the unlabeled training samples by suspicion, in %: means over classes and seeds."
    return (
        [html_table([*found.keys, *columns.values()], body, found.against), paragraph(note, "soft")] if columns else []
    )


def _classes(found: Findings) -> list[str]:
    told = any(name.startswith("normal_class") for name in found.printed[0])
    if len(values_of(found.runs, "normal_class")) < 2 or told:
        return []
    header, body, _ = table(found.runs, found.keys, "normal_class", found.against)
    width = len(header) - next((i for i, name in enumerate(header) if name == "all"), len(header))
    short = [name.removeprefix("normal_class ") for name in header[: len(header) - width]]
    lines = [line[: len(short)] for line in body]
    return [html_table(short, lines, found.against), paragraph("ROC AUC in %, mean ± standard deviation.", "soft")]


def _changes(found: Findings, origin: str) -> list[str]:
    if origin not in found.keys or len(values_of(found.runs, origin)) < 2:
        return []
    header, body = changes(found.runs, found.keys, origin)
    if not body:
        return [paragraph(f"No two {'studies' if origin == 'study' else 'commits'} have a split in common.", "warn")]
    return [html_table(header, body), paragraph("Paired over the same splits, in points of ROC AUC.", "soft")]


def _gaps(found: Findings) -> list[str]:
    parts = []
    if found.failures:
        names = ["study", "dataset", "method", *SETTING[1:], *REPEATS, "time", "error"]
        body = [[str(failure.get(name, "")) for name in names] for failure in found.failures]
        parts += [paragraph(f"{len(body)} cells failed.", "warn"), html_table(names, body[:_MOST])]
    if found.left_out:
        parts += [paragraph(f"{len(found.left_out)} runs cannot be read.", "warn"), bullets(found.left_out[:_MOST])]
    gaps = missing(found.runs, found.failures, found.keys)
    if gaps:
        count = sum(len(cells) for _, cells in gaps)
        explained = "of all combinations of the values found in a study and data set."
        parts.append(paragraph(f"{count} cells are missing {explained}", "warn"))
        names = list(gaps[0][0])
        body = [[*place.values(), _cells(cells)] for place, cells in gaps]
        parts.append(html_table([*names, "normal class (seeds)"], body[:_MOST]))
    return parts or [paragraph("None: every cell of the grid has a run.")]


def _cells(cells: Sequence[tuple[str, ...]]) -> str:
    """`0 (seeds 0, 1); 3 (seed 2)`."""
    by_class: dict[str, list[str]] = {}
    for normal_class, seed in cells:
        by_class.setdefault(normal_class, []).append(seed)
    return "; ".join(f"{k} (seed{'s' * (len(v) > 1)} {', '.join(v)})" for k, v in by_class.items())


def _settings(runs: Sequence[Run]) -> list[str]:
    common, different = common_and_different(runs)
    parts = []
    if different:
        body = []
        for key, by_method in different.items():
            methods: dict[str, list[str]] = {}  # by the value that they have
            for method, counts in sorted(by_method.items()):
                if set(counts) != {UNSET}:
                    methods.setdefault(counted(counts.elements()), []).append(method)
            in_all = len(methods) == 1 and sum(map(len, methods.values())) == len(by_method)
            body += [[key, value, "all" if in_all else ", ".join(names)] for value, names in methods.items()]
        parts += [paragraph("Where the runs differ, with the number of runs where a method has several values:")]
        parts.append(html_table(["key", "value", "methods"], body))
    if common:
        body = [[key, str(value)] for key, value in common.items()]
        parts.append(folded(f"What all runs have in common ({len(common)} keys)", html_table(["key", "value"], body)))
    return parts


def _environment(runs: Sequence[Run]) -> list[str]:
    names = sorted({key for run in runs for key in run.metrics if key.startswith("version/")})
    body = []
    for key in [*names, "device", "platform", "threads", "commit", "backbone", "data/fingerprint", "reused_from"]:
        values = [run[key] for run in runs]
        if any(value is not None for value in values):
            unknown = "none" if key == "reused_from" else "not known"
            body.append([key.removeprefix("version/"), counted(unknown if v in (None, "") else v for v in values)])
    seconds = [run["train/seconds"] for run in runs if run["train/seconds"] is not None]
    if seconds and not math.isnan(sum(seconds)):
        body.append(["train/seconds", f"{min(seconds):.1f} to {max(seconds):.1f} a run"])
    return [html_table(["", "value (runs)"], body)] if body else []

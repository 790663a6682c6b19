"""The tables of a study: the one that is printed, and one with intervals and tests; as Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from elite_pl.files import csv_text
from elite_pl.report.statistics import (
    FEWEST,
    SIGNIFICANT,
    Comparison,
    compare,
    confidence_interval,
    holm,
    mean_std,
    standard_error,
)
from elite_pl.runs.results import AUROC, AUROC_SEEN, AUROC_UNSEEN, AVERAGE_PRECISION
from elite_pl.studies.read import (
    HIDDEN,
    HIDDEN_SHARE,
    ORIGIN,
    REPEATS,
    SETTING,
    Run,
    check_cells,
    grouped,
    printable,
    values_of,
)

MEASURES = {
    AUROC: "ROC AUC",
    AVERAGE_PRECISION: "Average precision",
    AUROC_SEEN: "ROC AUC of anomalies of labeled kinds",
    AUROC_UNSEEN: "ROC AUC of anomalies of other kinds",
}
SUMMARY_CAPTION = (
    "ROC AUC in %, mean ± standard deviation over runs; 95 % interval: Student's t, clustered by data set and normal "
    "class; "
    "ahead by: paired differences over the same splits; p: two-sided Wilcoxon signed-rank test over classes, "
    "corrected by Holm for the methods at one setting."
)


def plus_minus(mean: float, error: float, sign: str = "") -> str:
    """`12.3 ± 4.5`, or the mean alone where there is no error."""
    return f"{mean:{sign}.1f}" + ("" if math.isnan(error) else f" ± {error:.1f}")


def differences(
    runs: Iterable[Run], baseline: Sequence[Run], keys: Sequence[str], measure: str = AUROC
) -> list[tuple[float, Run]]:
    """Returns the lead of a baseline over runs on the same cells: the same data set, split and seed.

    Args:
        runs: Runs to compare.
        baseline: The runs that they are compared with, at most one a cell.
        keys: The keys that identify a cell.
        measure: A key of `MEASURES`.

    Returns:
        (baseline - run) in points and the run, for each run whose cell has both.
    """

    def cell(run: Run) -> tuple[str, ...]:
        return tuple(str(run[key]) for key in keys)

    theirs = {cell(run): run.percent(measure) for run in baseline}
    return [(theirs[cell(run)] - run.percent(measure), run) for run in runs if cell(run) in theirs]


def pairing(runs: Sequence[Run], told_apart: Sequence[str], against: str) -> tuple[list[Run], list[str]]:
    """The runs of the method to compare with, none where that has several runs a cell, and what makes a cell."""
    cell = [key for key in dict.fromkeys((*SETTING, *REPEATS, *told_apart)) if not key.startswith("method")]
    baseline = [run for run in runs if run["method"] == against]
    alone = len(baseline) == len({tuple(str(run[key]) for key in cell) for run in baseline})
    return (baseline if alone and len(baseline) < len(runs) else []), cell


def told_apart_by(rows: Sequence[str], column: str | None) -> list[str]:
    """The keys over whose values a table does not average."""
    rows = [key for key in rows if key != column]
    return [*rows, *([column] if column and column not in REPEATS else [])]


def ahead_by(pairs: Sequence[tuple[float, Run]]) -> str:
    """`+12.3 ± 4.5 (n = 6)`: mean and standard error of differences, with the runs that they are of."""
    points = [difference for difference, _ in pairs]
    error = standard_error(points, [run.unit for _, run in pairs])
    return f"{plus_minus(statistics.fmean(points), error, sign='+')} (n = {len(points)})"


def table(
    runs: Sequence[Run],
    rows: Sequence[str],
    column: str | None = None,
    against: str = "elite_svdd",
    measure: str = AUROC,
) -> tuple[list[str], list[list[str]], str]:
    """The table of a study: a measure in %, mean ± standard deviation over runs.

    Args:
        runs: Finished runs.
        rows: Keys whose values make the rows; a key with a single value goes into the caption, except `method`.
        column: A key whose values become columns, beside one over all of them (for a study or commit, no such one);
            None for that one alone.
        against: The method that the others are compared with, on the same cells.
        measure: A key of `MEASURES`.

    Returns:
        Header, rows of text and caption.

    Raises:
        InputError: If a cell would average over different experiments, or a run does not have the measure.
    """
    rows = [key for key in rows if key != column]
    told_apart = told_apart_by(rows, column)
    check_cells(runs, told_apart)
    shown = [key for key in rows if key == "method" or len(values_of(runs, key)) > 1]
    constant = [f"{key} {runs[0][key]}" for key in rows if key not in shown and runs[0][key] is not None]
    columns = values_of(runs, column) if column else []
    baseline, cell = pairing(runs, told_apart, against)
    hidden = values_of(runs, HIDDEN)
    counted = len(hidden) > 1 and all(isinstance(count, int) for count in hidden)

    over_all = [] if column in ORIGIN else ["all" if column else f"{MEASURES[measure]} (%)"]
    header = [*shown, *(f"{column} {value}" for value in columns), *over_all, "runs"]
    header += ["hidden anomalies"] * counted + [f"{against} ahead by"] * bool(baseline)
    body = []
    for values, group in grouped(runs, shown):
        line = list(values)
        parts = [[run for run in group if str(run[column or ""]) == str(value)] for value in columns]
        for part in [*parts, *([group] if over_all else [])]:
            line.append(plus_minus(*mean_std([run.percent(measure) for run in part])) if part else "")
        line.append(str(len(group)))
        if counted:
            line.append(f"{statistics.fmean(run[HIDDEN] for run in group):.1f}")
        if baseline:
            others = [run for run in group if run["method"] != against]
            ahead = differences(others, baseline, cell, measure)
            line.append(ahead_by(ahead) if ahead else "")
        body.append(line)

    caption = [f"{MEASURES[measure]} in %, mean ± standard deviation over runs"]
    if baseline:
        caption.append(
            f"`{against} ahead by`: points, mean ± standard error of the differences over the same splits, "
            "clustered by data set and normal class"
        )
    if len(hidden) == 1 and isinstance(hidden[0], int):
        constant.append(f"{hidden[0]} hidden anomalies among {runs[0]['data/unlabeled']} unlabeled samples")
    return header, body, ". ".join([", ".join(constant), *caption] if constant else caption) + "."


def literal(text: str) -> str:
    r"""A text as one line of Markdown: no HTML, no link, no new cell of a table.

    >>> print(literal("a|b <script> [x](y) p < 0.05"))
    a\|b \<script> [x]\(y) p < 0.05
    """
    return re.sub(r"\\|\||<(?=[a-zA-Z/!?])|(?<=\])\(", r"\\\g<0>", printable(text))


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns stand below each other in a terminal too."""
    header, *body = ([literal(cell) for cell in line] for line in (header, *body))
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]

    def line(cells: Sequence[str], pad: Callable[[str, int], str] = str.ljust) -> str:
        return "| " + " | ".join(pad(cell, width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(header), rule, *map(line, body)])


@dataclass(frozen=True)
class Row:
    """A line of the summary: the runs of one method at one setting. ROC AUC in percent, differences in points.

    Attributes:
        values: The values of the keys that the table tells apart, as text.
        mean: Mean ROC AUC.
        std: Its standard deviation over runs (n - 1), NaN for a single run.
        low: Lower end of its confidence interval, cut at 0; NaN for a single run.
        high: Upper end, cut at 100.
        runs: How many runs.
        classes: Of how many normal classes.
        hidden: Mean share of anomalies among the unlabeled samples, in percent; NaN where it is not known.
        ahead: How far the method that all are compared with is ahead on the same splits, if it has been run on any.
    """

    values: dict[str, str]
    mean: float
    std: float
    low: float
    high: float
    runs: int
    classes: int
    hidden: float
    ahead: Comparison | None = None


def summary(runs: Sequence[Run], rows: Sequence[str], column: str | None, against: str) -> list[Row]:
    """Means, intervals and tests by what a table tells apart; see `table` for the arguments.

    The tests at one setting (all rows that differ in the method alone) are corrected together, by Holm.
    """
    keys = told_apart_by(rows, column)
    baseline, cell = pairing(runs, keys, against)
    found: list[Row] = []
    for values, group in grouped(runs, keys):
        points, units = [run.auroc for run in group], [run.unit for run in group]
        low, high = confidence_interval(points, units)
        hidden = [run[HIDDEN_SHARE] for run in group]
        share = math.nan if None in hidden else 100 * statistics.fmean(hidden)
        others = [run for run in group if run["method"] != against]
        ahead = differences(others, baseline, cell)
        comparison = compare([d for d, _ in ahead], [run.unit for _, run in ahead]) if ahead else None
        # max(nan, 0) is nan, max(0, nan) is not
        mean, std = mean_std(points)
        ends = (max(low, 0.0), min(high, 100.0))
        named = dict(zip(keys, values, strict=True))
        found.append(Row(named, mean, std, *ends, len(points), len(set(units)), share, comparison))
    return corrected(found, [key for key in keys if not key.startswith("method")])


def corrected(rows: Sequence[Row], setting: Sequence[str]) -> list[Row]:
    """The rows with the p-values of each setting corrected together."""
    families: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        if row.ahead and not math.isnan(row.ahead.p):
            families.setdefault(tuple(row.values[key] for key in setting), []).append(i)
    found = list(rows)
    for family in families.values():
        for i, p in zip(family, holm([rows[i].ahead.p for i in family]), strict=True):  # type: ignore[union-attr]
            found[i] = replace(rows[i], ahead=replace(rows[i].ahead, p_holm=p))  # type: ignore[type-var]
    return found


def changes(runs: Sequence[Run], keys: Sequence[str], origin: str) -> tuple[list[str], list[list[str]]]:
    """Compares the runs of each study (or commit) with those of the first on the same splits.

    Args:
        runs: Finished runs, those of the first study first.
        keys: The keys that tell methods apart, `origin` among them.
        origin: `study` or `commit`.

    Returns:
        Header and lines of text; the p-values of one pair of studies are corrected together.
    """
    rest = [key for key in keys if key != origin]
    shown = [key for key in rest if key == "method" or len(values_of(runs, key)) > 1]
    first, *others = dict.fromkeys(str(run[origin]) for run in runs)
    body = []
    for other in others:
        lines: list[tuple[list[str], list[str], Comparison]] = []
        for _, group in grouped(runs, rest):
            theirs = [run for run in group if str(run[origin]) == other]
            pairs = differences([run for run in group if str(run[origin]) == first], theirs, REPEATS)
            if not pairs:
                continue
            comparison = compare([d for d, _ in pairs], [run.unit for _, run in pairs])
            before = statistics.fmean(run.auroc for _, run in pairs)
            values = [str(group[0][key]) for key in shown]
            lines.append((values, [f"{before:.1f}", f"{before + comparison.mean:.1f}"], comparison))
        corrected_p = iter(holm([c.p for *_, c in lines if not math.isnan(c.p)]))
        for values, means, c in lines:
            p = p_text(next(corrected_p)) if not math.isnan(c.p) else ""
            change = [f"{c.mean:+.1f}", span(c.low, c.high, "+"), str(c.pairs), p_text(c.p), p]
            body.append([*values, first, other, *means, *change])
    header = [*shown, f"first {origin}", f"other {origin}", "first (%)", "other (%)", "change", "95 % interval"]
    return [*header, "pairs", "p", "p, Holm"], body


def span(low: float, high: float, sign: str = "") -> str:
    """`12.3 to 45.6`, nothing where there is no interval."""
    return "" if math.isnan(low) else f"{low:{sign}.1f} to {high:{sign}.1f}"


def p_text(p: float) -> str:
    """A p-value of two digits, nothing where there is none."""
    return "" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def summary_text(rows: Sequence[Row], against: str) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the summary, without the keys that have a single value (`method` is always shown)."""
    keys = [key for key in rows[0].values if key == "method" or len({row.values[key] for row in rows}) > 1]
    compared = any(row.ahead for row in rows)
    header = [*keys, "ROC AUC (%)", "95 % interval", "runs", "classes", "hidden (%)"]
    header += [f"{against} ahead by", "95 % interval", "pairs", "p", "p, Holm"] * compared
    body = []
    for row in rows:
        line = [*(row.values[key] for key in keys), plus_minus(row.mean, row.std)]
        line += [span(row.low, row.high), str(row.runs), str(row.classes)]
        line.append("" if math.isnan(row.hidden) else f"{row.hidden:.1f}")
        if row.ahead:
            ahead = row.ahead
            few = "" if ahead.units >= FEWEST else f" ({ahead.units} units)"
            line += [f"{ahead.mean:+.1f}", span(ahead.low, ahead.high, "+"), str(ahead.pairs)]
            line += [p_text(ahead.p) + few, p_text(ahead.p_holm)]
        body.append(line + [""] * (len(header) - len(line)))
    return header, body


def best_and_behind(rows: Sequence[Row], against: str) -> tuple[list[str], list[list[str]]]:
    """A line for each setting: the best of the others, how many the method is ahead of, and behind which it is.

    Returns:
        Header and lines of text; none where nothing is compared.
    """
    settings = [key for key in rows[0].values if not key.startswith("method")]
    shown = [key for key in settings if len({row.values[key] for row in rows}) > 1]
    families: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        families.setdefault(tuple(row.values[key] for key in settings), []).append(row)
    body = []
    for family in families.values():
        others = [(row, row.ahead) for row in family if row.ahead]
        own = [row for row in family if row.values.get("method") == against]
        if not others or not own:
            continue
        first = max((row for row, _ in others), key=lambda row: row.mean)
        ahead = [other for _, other in others if other.mean > 0]
        sure = sum(other.p_holm < SIGNIFICANT for other in ahead)
        behind = [method(row) + "*" * (other.p_holm < SIGNIFICANT) for row, other in others if other.mean <= 0]
        few = all(other.units < FEWEST for _, other in others)
        line = [", ".join(plus_minus(row.mean, row.std) for row in own), f"{method(first)} {first.mean:.1f}"]
        line += [f"{len(ahead)} of {len(others)}", "too few units" if few else str(sure), ", ".join(behind) or "none"]
        body.append([*(family[0].values[key] for key in shown), *line])
    return [*shown, f"{against} (%)", "best other (%)", "ahead of", "significantly", "behind (* significantly)"], body


def method(row: Row) -> str:
    """The method of a row with what else tells it apart: `elite_svdd, meta_scale 10`."""
    other = [f"{key.removeprefix('method.')} {value}" for key, value in row.values.items() if key.startswith("method.")]
    return ", ".join([row.values.get("method", ""), *other])


def summary_csv(rows: Sequence[Row]) -> str:
    """The summary with all digits and all keys; ROC AUC in percent, differences in points, p as they are."""
    numbers = ["auroc_percent", "std", "ci_low", "ci_high", "runs", "classes", "hidden_percent"]
    ahead = ["ahead", "ahead_ci_low", "ahead_ci_high", "pairs", "units", "p", "p_holm"]
    lines = []
    for row in rows:
        line = [row.mean, row.std, row.low, row.high, row.runs, row.classes, row.hidden]
        other = row.ahead
        line += [] if other is None else [*(getattr(other, k) for k in ("mean", "low", "high", *ahead[3:]))]
        texts = ["" if isinstance(x, float) and math.isnan(x) else x for x in line]
        lines.append([*row.values.values(), *texts, *[""] * (len(numbers) + len(ahead) - len(line))])
    return csv_text([*rows[0].values, *numbers, *ahead], lines)


# Characters with a special meaning in LaTeX; `[` and `*` after the end of a line belong to it.
_LATEX = str.maketrans(
    {special: rf"\{special}" for special in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    | {"[": "{[}", "*": "{*}", "±": r"$\pm$", "–": "--", "Ω": r"$\Omega$"}
)


def latex(header: Sequence[str], body: Sequence[Sequence[str]], caption: str) -> str:
    """A table of the package booktabs, numbers to the right; the caption is a comment, to be worded by the author."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(printable(cell).translate(_LATEX) for cell in cells) + r" \\"

    columns = zip(*body, strict=True)
    kinds = "".join("r" if all(re.match(r"$|[-+<\d]", cell) for cell in column) else "l" for column in columns)
    top = [f"% {printable(caption)}", "% \\usepackage{booktabs}", rf"\begin{{tabular}}{{{kinds}}}", r"\toprule"]
    return "\n".join([*top, line(header), r"\midrule", *map(line, body), r"\bottomrule", r"\end{tabular}"]) + "\n"

"""Writes the tables of `benchmarks/results/` from the committed cells: `make results`.

A page is a Markdown file of prose. Where it shows a table it has a comment with the arguments of `elite_pl.report`, and
what stands between that comment and the next is replaced by the table:

    <!-- table: mnist_rivals mnist_20_labels --where normal_class=0,3,8 -->
    <!-- end -->

`table` is what the command prints, `tests` the one with intervals and p values that it writes to `summary.md`. Studies
are folders here, and `index` stands for the list of all pages with cells.
"""

import re
import shlex
from pathlib import Path

from elite_pl.report.__main__ import parser, select
from elite_pl.report.tables import SUMMARY_CAPTION, literal, markdown, summary, summary_text, table
from elite_pl.studies.read import read_studies, values_of

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
_BLOCK = re.compile(r"(<!-- (index|(?:table|tests): .+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """The pages, the index first."""
    return [RESULTS / "README.md", *sorted(RESULTS.glob("*/README.md"))]


def report(kind: str, arguments: str) -> str:
    """A table of committed studies, with its caption.

    Args:
        kind: `table` or `tests`.
        arguments: Those of `python -m elite_pl.report`, but that a study is the name of a folder here.
    """
    options = parser().parse_args(shlex.split(arguments))
    options.study = [RESULTS / study / "cells.jsonl" for study in options.study]
    selected = select(options)
    shown = (selected.runs, selected.rows, selected.column, selected.against)
    if kind == "table":
        header, body, caption = table(*shown, options.measure)
    else:
        (header, body), caption = summary_text(summary(*shown), selected.against), SUMMARY_CAPTION
    return f"{markdown(header, body)}\n\n{literal(caption)}\n"


def index() -> str:
    """A line for each page with cells: what was run."""
    body = []
    for path in pages()[1:]:
        runs, _ = read_studies([path.parent / "cells.jsonl"])
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        line = [f"[{path.parent.name}]({path.parent.name}/README.md)", title]
        line += [", ".join(map(str, values_of(runs, key))) for key in ("dataset", "pollution", "data/labeled")]
        line += [str(len(values_of(runs, key))) for key in ("method", "normal_class", "seed")]
        body.append([*line, str(len(runs))])
    header = ["study", "what it shows", "data", "pollution", "labels", "methods", "classes", "seeds", "runs"]
    rule = ["---"] * len(header)
    return "".join("| " + " | ".join(line) + " |\n" for line in (header, rule, *body))


def written(path: Path) -> str:
    """A page with its tables made anew."""

    def block(match: re.Match[str]) -> str:
        content = index() if match[2] == "index" else report(*match[2].split(": ", 1))
        return f"{match[1]}\n{content}\n{match[3]}"

    return _BLOCK.sub(block, path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for page in pages():
        page.write_text(written(page), encoding="utf-8")

"""The command `python -m elite_pl.audit`: lists the training samples that look wrong, for review."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from elite_pl.errors import InputError
from elite_pl.files import atomic_write, csv_text
from elite_pl.options import Parser, exit_codes

log = logging.getLogger("elite_pl")


def parser() -> Parser:
    """The options of the command."""
    found = Parser(
        "audit",
        "From a run and its data: gallery.html, a page to go through the suspicious training samples; "
        "contact_sheet.png, of images; clean.csv, the samples that stay; review.png, where the truth is known.",
    )
    found.add_argument("run", type=Path, metavar="RUN", help="the directory of a finished run")
    found.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="the samples that stay in clean.csv, as the gallery saves it (default: those whose verdict is normal)",
    )
    found.add_argument("-o", "--output", type=Path, metavar="DIR", help="where the files go (default: RUN)")
    found.add_argument(
        "--top", type=int, default=500, metavar="N", help="samples in the gallery (default: %(default)s)"
    )
    return found


def audit(options: argparse.Namespace) -> list[str]:
    """Writes the files of an audit.

    Args:
        options: As parsed.

    Returns:
        The lines to print.

    Raises:
        InputError: If the run, its data or the keep list are not as they should be.
    """
    from elite_pl.report.audit import against_truth, kept, read_run
    from elite_pl.report.figures import review_plot
    from elite_pl.report.gallery import contact_sheet, gallery
    from elite_pl.runs.results import check_writable

    if options.top < 1:
        raise InputError(f"--top {options.top}: must be at least 1")
    place = options.output or options.run
    run = read_run(options.run)
    if run.changed:
        log.warning(run.changed)
    stay = kept(run, options.keep)
    check_writable(place, "-o ")
    place.mkdir(parents=True, exist_ok=True)
    column = [] if run.column == "index" else [run.column]
    rows = [[index, *([run.name(index)] if column else []), by] for index, by in stay]
    with atomic_write(place / "clean.csv") as temporary:
        temporary.write_text(csv_text(["index", *column, "kept_by"], rows), encoding="utf-8")
    with atomic_write(place / "gallery.html") as temporary:
        temporary.write_text(gallery(run, options.top), encoding="utf-8")
    known = int((run.split.labeled_y < 0).sum())
    left = len(run.audit) + len(run.split.labeled) - len(stay)
    shown = min(options.top, len(run.audit))
    printed = [
        *against_truth(run.audit),
        f"gallery  {place / 'gallery.html'} ({shown} of {len(run.audit)} unlabeled samples)",
    ]
    if run.arrays.x_train.ndim == 4:
        contact_sheet(place / "contact_sheet.png", run)
        printed.append(f"sheet    {place / 'contact_sheet.png'}")
    if run.audit.truth is not None and run.audit.truth.sum() > 0:
        review_plot(place / "review.png", run.audit.truth)
        printed.append(f"review   {place / 'review.png'}")
    counts = f"{len(stay)} stay; {left} do not, {known} labeled anomalies among them"
    return [*printed, f"clean    {place / 'clean.csv'} ({counts})"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line, and exits with 2 for bad input."""
    with exit_codes():
        print("\n".join(audit(parser().parse_args(arguments))))


if __name__ == "__main__":
    main()

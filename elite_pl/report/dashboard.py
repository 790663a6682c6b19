"""The dashboard of a study in W&B: its report as one run beside those of the study."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from elite_pl.runs.identity import digest

log = logging.getLogger(__name__)

Chart = tuple[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]  # what x is; by name of a line x and y


def log_study(
    directory: str | os.PathLike[str],
    studies: Sequence[str],
    charts: Mapping[str, Chart],
    table: tuple[Sequence[str], Sequence[Sequence[str]]],
    pictures: Iterable[Path],
    page: Path,
    *,
    project: str = "elite_pl",
) -> str:
    """Puts the report of a study into W&B, as one run beside those of the study: its workspace then shows the figures.

    The same studies give the same run, so a later report replaces an earlier one.

    Args:
        directory: The folder of the report, which gets `wandb/` where W&B is offline.
        studies: Names of the studies; the first one is the group.
        charts: By title; each becomes a chart of W&B's own.
        table: Header and rows of the summary.
        pictures: Files to log as `pictures/NAME`.
        page: The HTML page.
        project: W&B project, `ENTITY/PROJECT` for that of a team.

    Returns:
        Where it is: an address, or the folder for `wandb sync`.
    """
    import wandb
    from wandb.errors import Error as WandbError

    from elite_pl.runs.loggers import close, quiet_settings, wandb_mode  # the reports of most need none of it

    *entity, project = project.split("/")
    mode = wandb_mode(None)
    arguments: dict[str, Any] = {
        "mode": mode,
        "project": project,
        "entity": entity[0] if entity else None,
        "dir": os.path.abspath(directory),
        "id": f"report-{digest(sorted(studies))}",
        "resume": "allow" if mode == "online" else None,
        "name": f"report: {', '.join(studies)}",
        "group": studies[0],
        "job_type": "report",
        "reinit": "create_new",
        "settings": quiet_settings(),
    }
    try:
        run = wandb.init(**arguments)
    except WandbError as error:
        if mode != "online":
            raise
        log.warning("W&B is offline: %s", str(error).splitlines()[0])
        run = wandb.init(**arguments | {"mode": "offline", "resume": None})
    header, rows = table
    content: dict[str, Any] = {"summary": wandb.Table(columns=list(header), data=[list(row) for row in rows])}
    for title, (x_name, lines) in charts.items():
        xs, ys = [list(x) for x, _ in lines.values()], [list(y) for _, y in lines.values()]
        content[f"charts/{title}"] = wandb.plot.line_series(xs, ys, keys=list(lines), title=title, xname=x_name)
    content |= {f"pictures/{path.stem}": wandb.Image(str(path)) for path in pictures}
    content["report"] = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
    exit_code = 1
    try:
        run.log(content)
        exit_code = 0
    finally:
        close(run, exit_code)
    return str(run.settings.sync_dir if run.offline else run.url)

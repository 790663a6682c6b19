"""The loggers of a run, and its W&B run: curves, summary, pictures, artifacts."""

from __future__ import annotations

import csv
import logging
import numbers
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPException
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from elite_pl.addresses import PUBLIC, renamed
from elite_pl.config import instantiate
from elite_pl.data.arrays import Arrays, pixels
from elite_pl.errors import InputError, one_line
from elite_pl.files import atomic_write
from elite_pl.runs.identity import coordinates
from elite_pl.runs.plots import class_histograms, roc_curve
from elite_pl.runs.spec import RunSpec

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger, WandbLogger

log = logging.getLogger(__name__)

_MODES = {
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    "run": "online",
    "dryrun": "offline",
    "shared": "online",
}
_ANSWER_SECONDS = 2.0
AUDITED = 100  # samples of the audit that are shown
OF_ALL = ("elite_pl.data.digits", "elite_pl.data.torchvision_set")  # public data sets


def _answers(url: str) -> bool:
    """Returns whether an HTTP server answers at `url` in time, whatever it says."""
    answered = threading.Event()
    unchecked = ssl.create_default_context()  # nothing is sent, so nobody needs to prove who answers
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=_ANSWER_SECONDS, context=unchecked).close()
        except urllib.error.HTTPError:  # an answer, if not a friendly one
            pass
        except (OSError, HTTPException, ValueError):
            return
        answered.set()

    # In a thread, because the timeout above does not cover the name server, nor an answer that trickles.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    return answered.is_set()


def _why_not_online() -> str | None:
    """Why W&B cannot be used online, or None if it can. Never asks the user; 2 s and an import at most."""
    import wandb
    from wandb.errors import Error as WandbError

    # Silent, else it greets the user by name, for which it asks the server. wandb reads the environment only once.
    server: dict[str, Any] = {"base_url": os.environ["WANDB_BASE_URL"]} if os.environ.get("WANDB_BASE_URL") else {}
    url = wandb.setup(wandb.Settings(silent=True, mode="online", **server)).settings.base_url
    try:
        if not wandb.login(prompt=False, verify=False):
            return "no key is known (wandb login)"
    except WandbError as error:
        return str(error)
    return None if _answers(f"{url.rstrip('/')}/graphql") else f"{url} does not answer within {_ANSWER_SECONDS:g} s"


def wandb_mode(requested: str | None) -> str:
    """Decides within 3 s, and without a question, how W&B is used.

    Args:
        requested: The setting, or None for `WANDB_MODE`; without that, what is possible.

    Returns:
        `online`, `offline` or `disabled`. Where `online` is not possible, `offline`; a log line says why.

    Raises:
        InputError: If there is no such mode.
    """
    if os.environ.get("WANDB_MODE") == "":  # wandb itself would refuse it
        del os.environ["WANDB_MODE"]
    asked = requested or os.environ.get("WANDB_MODE")
    if asked is not None and asked not in _MODES:
        key = "logger.mode" if requested else "WANDB_MODE"
        raise InputError(f"{key}={asked}: no such mode; use online, offline or disabled")
    mode = "online" if asked is None else _MODES[asked]
    if mode == "online" and (reason := _why_not_online()):
        log.log(logging.WARNING if asked else logging.INFO, "W&B is offline: %s", reason)
        return "offline"
    return mode


def make_logger(spec: RunSpec) -> Logger | None:
    """Lightning's logger for a run; None where the configuration has none.

    Any logger of Lightning's can be named. Those that take one get the run directory as `save_dir`, ours the run.

    Args:
        spec: The run.

    Raises:
        InputError: If the package of a logger is missing, or it refuses its arguments or what its environment says.
    """
    node = spec.plain["logger"]
    if not node or node.get("_target_") is None:
        return None
    make = instantiate("logger", node)
    accepted = signature(make.target).parameters
    at_run_time = {"save_dir": spec.directory, "spec": spec}
    try:
        logger: Any = make(**{key: value for key, value in at_run_time.items() if key in accepted})
        _ = logger.experiment  # where many of them look at their arguments, or for their server
    except ModuleNotFoundError as error:
        name = node["_target_"].rpartition(".")[2]
        extra = "; install elite_pl[tensorboard]" if name == "TensorBoardLogger" else ""
        raise InputError(f"logger: {name} is not installed{extra or f' ({one_line(error)})'}") from None
    except OSError:
        raise
    except Exception as error:  # whatever a tracker has against a name or an address
        cause = error.__cause__ if isinstance(error, InputError) else error
        if not isinstance(cause, Exception):
            raise
        raise InputError(f"logger: {_objection(cause)}") from error
    return logger


def _objection(error: Exception) -> str:
    """The message of a tracker, of W&B's settings (pydantic's) the first that is refused and why."""
    if isinstance(error, ValueError) and (refused := getattr(error, "errors", None)):
        first = refused()[0]
        return f"W&B's setting {'.'.join(map(str, first['loc']))}={first['input']}: {first['msg']}"
    return one_line(error)


def wandb_run(logger: object) -> Any | None:
    """The W&B run behind a Lightning logger, None behind any other."""
    from pytorch_lightning.loggers import WandbLogger

    return logger.experiment if isinstance(logger, WandbLogger) else None


def wandb_logger(
    spec: RunSpec, *, project: str, entity: str | None, mode: str | None, upload_data: bool = False
) -> WandbLogger:
    """Starts a W&B run that is independent of any other, in this process or not; end it with `close`.

    A run that goes on from `last.ckpt` goes on in its W&B run too, where it is online: of two offline parts of one id
    the later upload would replace the earlier.

    Args:
        spec: The run: its directory gets `wandb/`, the study becomes the group, the method the job type.
        project: W&B project.
        entity: W&B user or team, None for the user's default.
        mode: See `wandb_mode`.
        upload_data: Whether the user's own samples may be sent, see `log_samples`.

    Returns:
        Lightning's logger; its `experiment` is the W&B run. On other ranks than 0 it logs nothing.
    """
    if not project:
        raise InputError("logger.project=: must be a name")
    directory, config = spec.directory, spec.plain
    note = directory / "wandb" / "run_id"
    run_id = note.read_text() if note.exists() and (directory / "last.ckpt").exists() else None
    from pytorch_lightning.loggers import WandbLogger
    from pytorch_lightning.utilities import rank_zero_only

    if getattr(rank_zero_only, "rank", 0) != 0:
        return WandbLogger(project=project, save_dir=str(directory))
    import wandb
    from wandb.errors import Error as WandbError

    resolved = wandb_mode(mode)
    run_id = run_id if resolved == "online" else None
    dataset, method = config["dataset"]["name"], config["method"]["name"]
    tags = [dataset]
    if config["dataset"].get("labels") != "known":
        tags += [f"pollution={config['pollution']:g}", f"normal={config['normal_class']}"]
    arguments: dict[str, Any] = {
        "mode": resolved,
        "project": project,
        "entity": entity,
        "dir": os.path.abspath(directory),  # its process keeps the folder that it was started in
        "id": run_id,
        "resume": "allow" if run_id else None,
        "name": coordinates(config),
        "group": str(config["study"]),
        "job_type": method,
        "tags": [tag[:64] for tag in tags],  # W&B refuses longer ones
        "config": dict(config),
        # A run of its own even beside another one: with wandb's default two jobs of a sweep would share the first.
        "reinit": "create_new",
        "settings": quiet_settings(),
    }
    try:
        run = wandb.init(**arguments)
    except WandbError as error:  # a refused key, a server in trouble; or a name, which is refused offline, too
        if resolved != "online":
            raise
        log.warning("W&B is offline: %s", str(error).splitlines()[0])
        arguments |= {"mode": "offline", "id": None, "resume": None}
        run = wandb.init(**arguments)
    # As Lightning does for the runs that it starts: curves over optimizer steps.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    if not run.disabled:
        log.info("W&B: %s", run.settings.sync_dir if run.offline else run.url)
    logger = WandbLogger(project=project, save_dir=str(directory), experiment=run)
    note.parent.mkdir(exist_ok=True)  # not there where W&B is disabled
    with atomic_write(note) as temporary:
        temporary.write_text(run.id)
    return logger


def quiet_settings() -> Any:
    """Returns the settings of a W&B run that prints nothing and never waits forever."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=20,
        finish_timeout=60,  # wandb's default is to wait for ever; what is not sent stays on disk
    )


def log_final(
    run: Any,
    metrics: Mapping[str, Any],
    is_anomaly: ArrayLike | None,
    scores: ArrayLike,
    suspicion: ArrayLike | None = None,
    suspicion_is_anomaly: ArrayLike | None = None,
    pictures: Iterable[Path] = (),
) -> None:
    """Logs a run's results to W&B: the numbers as plain numbers of the summary, the ROC curve, histograms, pictures.

    The ROC curve is our own table in W&B's own panel. `wandb.plot.roc_curve` wants probabilities, pandas and
    scikit-learn, rounds to 3 digits, and drops points at random where there are many.

    Args:
        run: `WandbLogger.experiment`.
        metrics: As for `write_metrics`; what is no number is left out.
        is_anomaly: The truth of the test set, (n,), or None where it is unknown.
        scores: Scores of the test set, (n,).
        suspicion: Of the unlabeled training samples, (m,), or None for a method without a meta-gradient.
        suspicion_is_anomaly: The truth of those, (m,), or None where it is unknown.
        pictures: Files to log as `pictures/NAME`.
    """
    import wandb

    for key, value in metrics.items():
        if isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_):
            run.summary[key] = int(value) if isinstance(value, numbers.Integral) else float(value)
    charts: dict[str, Any] = {}
    if is_anomaly is not None and len(np.unique(np.asarray(is_anomaly))) == 2:
        fpr, tpr = roc_curve(scores, is_anomaly, max_points=300)
        rows = [["anomaly", x, y] for x, y in zip(fpr.tolist(), tpr.tolist(), strict=True)]
        charts["roc"] = wandb.plot_table(
            "wandb/area-under-curve/v0",
            wandb.Table(columns=["class", "fpr", "tpr"], data=rows),
            {"x": "fpr", "y": "tpr", "class": "class"},
            {"title": "ROC", "x-axis-title": "False positive rate", "y-axis-title": "True positive rate"},
        )
    for name, values, truth in (
        ("score", scores, is_anomaly),
        ("meta_gradient", suspicion, suspicion_is_anomaly),
    ):
        if values is not None:
            edges, counts = class_histograms(values, truth)
            for kind, count in counts.items():
                charts[f"{name}/{kind}"] = wandb.Histogram(np_histogram=(count, edges))
    charts |= {f"pictures/{path.stem}": wandb.Image(str(path)) for path in pictures}
    try:
        run.log(charts)
    except Exception as error:  # online a table goes to the server at once, and a trained model is worth more than that
        log.warning("W&B did not take the charts: %s", error)


def log_samples(run: Any, spec: RunSpec, arrays: Arrays) -> None:
    """Logs the files that reveal single samples: the top of `audit.csv` with pictures, and the detector as an artifact.

    The detector has the scores of all training samples, and of a table the words in it. So of a person's own data both
    stay here unless `logger.upload_data` says otherwise.

    Args:
        run: `WandbLogger.experiment`.
        spec: The run, whose files are written.
        arrays: Its data.
    """
    import wandb

    source = renamed(spec.plain["dataset"]["source"], PUBLIC)
    if source["_target_"] not in OF_ALL and not spec.plain["logger"].get("upload_data"):
        return
    with open(spec.directory / "audit.csv", newline="", encoding="utf-8") as file:
        header, *rows = islice(csv.reader(file), AUDITED + 1)
    columns: dict[str, Any] = {}
    if arrays.x_train.ndim == 4:
        columns["picture"] = [wandb.Image(pixels(arrays.x_train[int(row[0])])) for row in rows]
    columns |= {name: _values(column) for name, column in zip(header, zip(*rows, strict=True), strict=True)}
    table = wandb.Table(columns=list(columns), data=list(zip(*columns.values(), strict=True)))
    detector = wandb.Artifact(f"detector-{spec.hash}", type="model")
    detector.add_file(str(spec.directory / "detector.pt"), policy="immutable")  # uploaded from its place, not copied
    try:
        run.log({"audit": table})
        run.log_artifact(detector)
    except Exception as error:  # as above
        log.warning("W&B did not take the audit or the detector: %s", error)


def _values(column: Sequence[str]) -> list[float | None] | list[str]:
    """A column of a CSV file: numbers, and None where it is empty, if there is nothing else in it."""
    try:
        return [float(text) if text else None for text in column]
    except ValueError:
        return list(column)


def close(run: Any, exit_code: int) -> None:
    """Ends a W&B run; call it in a `finally`, or the next job of the process would still have it open.

    Args:
        run: `WandbLogger.experiment`.
        exit_code: 0 for success; anything else marks the run as failed.
    """
    run.finish(exit_code=exit_code)

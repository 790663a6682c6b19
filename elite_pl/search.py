"""The command `python -m elite_pl.search`: the settings at which a method is best, by the labeled samples alone.

Each trial is trained once for each fold of the labeled samples, without that fold; the test set is never looked at.
"""

from __future__ import annotations

import argparse
import logging
import math
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from omegaconf import open_dict, read_write

from elite_pl import cli, config, seeding
from elite_pl.errors import InputError, LabelError, TrainingError, one_line
from elite_pl.files import atomic_write, csv_text
from elite_pl.runs.identity import digest
from elite_pl.runs.results import check_writable
from elite_pl.runs.spec import RunSpec
from elite_pl.studies.sweeper import DIFFERENT

if TYPE_CHECKING:
    import optuna

log = logging.getLogger("elite_pl")
SHOWN = 5  # trials in the table
FEW = 100  # combinations
TYPED = "typed"  # of a search in the journal


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    found = argparse.ArgumentParser(
        prog="python -m elite_pl.search",
        description="Search for settings by cross-validation over the labeled samples, never by the test set.",
        epilog="A key with several values is searched: KEY=A,B,C or 'KEY=interval(LOW,HIGH)', "
        "'KEY=tag(log,interval(1e-4,1e-2))' on a logarithmic scale, 'KEY=int(interval(1,9))'. "
        "All others are those of elite_pl.train.",
    )
    found.add_argument("typed", nargs="+", metavar="KEY=VALUE")
    found.add_argument("--trials", type=int, default=20, help="how many settings are tried (default: %(default)s)")
    found.add_argument("--folds", type=int, default=5, help="parts of the labeled samples (default: %(default)s)")
    found.add_argument("--config-dir", type=Path, help="a folder with configs of your own")
    return found


def read_overrides(typed: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Splits overrides into those that are fixed and those that are searched, each as it was typed.

    Raises:
        InputError: If nothing is searched, or a key of the study itself is.
    """
    overrides = OverridesParser.create().parse_overrides(list(typed))
    searched = [override for override in overrides if override.is_sweep_override()]
    if not searched:
        raise InputError("nothing to search: give a key several values, as in method.optimizer.lr=1e-4,1e-3")
    for override in searched:
        _check_range(override)
        if override.key_or_group in ("study", "output_dir", "dataset", "ensemble", *DIFFERENT):  # not of a method
            raise InputError(f"{override.key_or_group}: is not a setting to search; give it one value")
    fixed = [override.input_line or "" for override in overrides if not override.is_sweep_override()]
    return fixed, searched


def _check_range(override: Override) -> None:
    """Refuses values that cannot be drawn from.

    Raises:
        InputError: Names the key.
    """
    key, sweep = override.key_or_group, override.value()
    if isinstance(sweep, Glob):
        raise InputError(f"{key}: patterns cannot be searched; give values separated by commas")
    if not isinstance(sweep, IntervalSweep) and not list(override.sweep_string_iterator()):
        raise InputError(f"{override.input_line}: has no values; give two or more")
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        ordered = low is not None and high is not None and -math.inf < low < high < math.inf
        if not ordered or ("log" in sweep.tags and (low or 0) <= 0):
            rule = "from a lower to a higher number" + ", both above 0" * ("log" in sweep.tags)
            raise InputError(f"{key}=interval({low},{high}): must go {rule}")


def suggested(trial: optuna.Trial, override: Override) -> str:
    """The value that a trial takes, as it is typed."""
    key, sweep = override.key_or_group, override.value()
    if not isinstance(sweep, IntervalSweep):
        return str(trial.suggest_categorical(key, list(override.sweep_string_iterator())))
    assert sweep.start is not None and sweep.end is not None
    logarithmic = "log" in sweep.tags
    if isinstance(sweep.start, int) and isinstance(sweep.end, int):
        return str(trial.suggest_int(key, sweep.start, sweep.end, log=logarithmic))
    return repr(trial.suggest_float(key, sweep.start, sweep.end, log=logarithmic))


def composed(typed: Sequence[str], place: Path | None) -> RunSpec:
    """The run of a command line.

    Raises:
        InputError: If a value is out of its range, or an experiment sweeps: a setting is searched for one cell.
    """
    path = [f"hydra.searchpath=[file://{place.absolute()}]"] if place else []
    with initialize_config_module("elite_pl.conf", version_base="1.3"):
        found: Any = compose("train", [*path, *typed], return_hydra_config=True)
    if swept := found.hydra.sweeper.params:
        raise InputError(f"experiment: sweeps {', '.join(swept)}; a setting is searched for one run, so type its keys")
    with read_write(found), open_dict(found):
        del found["hydra"]
    return RunSpec.of(found)


def check(spec: RunSpec, folds: int) -> None:
    """Refuses, before anything is written, what no trial could be trained with; arguments as in `cross_validated`.

    Raises:
        InputError: If data, detector or trainer cannot be made of it, or a kind has fewer labeled samples than folds.
    """
    from elite_pl.data import splits
    from elite_pl.methods import Auto, Ensemble
    from elite_pl.runs import build, callbacks, ensembles, launch

    build.use_threads(spec.config)
    data = build.make_data(spec.config)
    with build.data_errors(spec.config, data.arrays):
        fewest = min(int((data.labeled_y == kind).sum()) for kind in (splits.NORMAL, splits.ANOMALY))
        if fewest < max(2, folds):
            raise LabelError(f"{fewest} labeled samples of a kind are too few for {folds} folds")
    fold = data.under(splits.hold_out(data.split, 0, folds)[0])
    detector = build.make_detector(spec.config, data.sample_shape)
    if isinstance(detector, Auto | Ensemble):
        raise InputError(
            f"{ensembles.several_of(detector)}: is made of several trainings; search settings of a single one"
        )
    build.check_data(spec.config, detector, fold)
    build.make_trainer(spec, callbacks.History(Path()))
    if launch.takes_processes(spec):
        raise InputError(f"trainer.devices={spec.plain['trainer']['devices']}: a search takes one process; use 1")


def cross_validated(spec: RunSpec, folds: int) -> float:
    """ROC AUC over all labeled samples, each scored by a detector that was trained without its label.

    Args:
        spec: The run whose detectors are trained.
        folds: How many detectors are trained.

    Returns:
        In 0..1.

    Raises:
        InputError: If they cannot learn from so few labels.
        TrainingError: If a training goes wrong.
    """
    from elite_pl.algorithm import metrics
    from elite_pl.runs import build
    from elite_pl.runs.crossfit import cross_fit

    build.use_threads(spec.config)
    data = build.make_data(spec.config)
    with build.data_errors(spec.config, data.arrays):
        found = cross_fit(spec, data, folds, unlabeled=False, cached=True)
    return metrics.roc_auc(found.labeled, data.labeled_y < 0)


def search(typed: Sequence[str], trials: int, folds: int, place: Path | None = None) -> list[str]:
    """Tries settings until `trials` of them are known, those of an earlier command on the same study included.

    Args:
        typed: The command line of a run, with several values for what is searched.
        trials: How many settings.
        folds: Parts of the labeled samples.
        place: A folder with configs of the user's own.

    Returns:
        The lines to print: the best settings, and the command that trains with the best.

    Raises:
        InputError: If what is typed makes no sense, or Optuna is not installed.
        TrainingError: If every trial failed.
    """
    if trials < 1 or folds < 2:
        raise InputError(f"--trials={trials} --folds={folds}: at least one setting and two folds")
    try:
        import optuna
    except ImportError:
        raise InputError("elite_pl.search needs Optuna: pip install 'elite_pl[search]'") from None
    fixed, searched = read_overrides(typed)
    first, *others = [composed([*fixed, *values], place) for values in _first(searched)]
    for each in (first, *others):
        check(each, folds)
    folder = Path(first.config.output_dir) / str(first.config.study)
    storage, study = _opened(folder, digest([*sorted(typed), folds]))
    study.set_user_attr(TYPED, shlex.join([*typed, *_place(place), f"--folds={folds}"]))
    study.sampler = _sampler(searched, first.config.seed, len(study.trials))

    def objective(trial: optuna.Trial) -> float:
        values = [f"{override.key_or_group}={suggested(trial, override)}" for override in searched]
        for earlier in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE]):
            if earlier.params == trial.params:
                return float(earlier.values[0])
        return cross_validated(composed([*fixed, *values], place), folds)

    def tell(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        what = "failed" if trial.value is None else f"ROC AUC {trial.value:.4f} on labels held out"
        log.info("%d of %d  %s: %s", trial.number + 1, trials, _words(trial.params), what)
        _write(folder / "search.csv", storage)

    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    if len(study.get_trials(deepcopy=False, states=ended)) < trials:
        stop = optuna.study.MaxTrialsCallback(trials, states=ended)
        study.optimize(objective, callbacks=[tell, stop], catch=(TrainingError,))
    known = [trial for trial in study.trials if trial.value is not None]
    if not known:
        raise TrainingError("every trial failed: nothing can be said")
    best = {str(trial.params): trial for trial in sorted(known, key=lambda trial: (trial.value, -trial.number))}
    ranked = sorted(best.values(), key=lambda trial: (-(trial.value or 0), trial.number))
    lines = [f"{100 * (trial.value or 0):5.1f}  {_words(trial.params)}" for trial in ranked[:SHOWN]]
    winner = [f"{key}={value}" for key, value in ranked[0].params.items()]
    head = "ROC AUC (%) of labeled samples, each scored without its label:"
    return [head, *lines, "", shlex.join(["python", "-m", "elite_pl.train", *_place(place), *fixed, *winner])]


def _place(place: Path | None) -> list[str]:
    """The option that names the folder of the user's own configs, if there is one."""
    return [f"--config-dir={place}"] if place else []


def _opened(folder: Path, name: str) -> tuple[optuna.storages.BaseStorage, optuna.Study]:
    """The journal of a folder, and in it the search of a name, begun or to be gone on with.

    Raises:
        InputError: If the folder cannot be written to, or the journal is none.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # what failed is told by us, on one line
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    journal = folder / "search.journal"
    if journal.exists() and not journal.is_file():
        raise InputError(f"{journal}: is not a file; remove it")
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    except OSError:
        raise
    except Exception as error:  # whatever Optuna stumbles over in half a journal
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{journal}: is damaged ({reason}); remove it, and the search starts anew") from error
    return storage, study


def _any_value(override: Override) -> str:
    """A value of what is searched, to see whether the key and its type are right."""
    sweep = override.value()
    return repr(sweep.start) if isinstance(sweep, IntervalSweep) else next(iter(override.sweep_string_iterator()))


def _first(searched: Sequence[Override]) -> list[list[str]]:
    """A value of each key that is searched, once with each method where methods are: they have keys of their own."""
    methods = [o for o in searched if o.key_or_group == "method"]
    others = [f"{o.key_or_group}={_any_value(o)}" for o in searched if o not in methods]
    return [[f"method={name}", *others] for o in methods for name in o.sweep_string_iterator()] or [others]


def _sampler(searched: Sequence[Override], seed: int, known: int) -> optuna.samplers.BaseSampler:
    """Each combination once, where they are few; else Optuna's default, which must not draw anew what is known."""
    import optuna

    if not any(isinstance(override.value(), IntervalSweep) for override in searched):
        grid = {override.key_or_group: list(override.sweep_string_iterator()) for override in searched}
        if math.prod(map(len, grid.values())) <= FEW:
            return optuna.samplers.GridSampler(grid, seed=seed)
    return optuna.samplers.TPESampler(seed=seeding.derive(seed, "search", known) % 2**32)


def _words(values: dict[str, Any]) -> str:
    return " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )


def _write(path: Path, storage: optuna.storages.BaseStorage) -> None:
    """Writes a row per trial of all searches: the search, as it was typed, number, state, ROC AUC in 0..1, values."""
    import optuna

    searches = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    found = [(each.user_attrs.get(TYPED, each.study_name), trial) for each in searches for trial in each.trials]
    keys = list(dict.fromkeys(key for _, trial in found for key in trial.params))
    rows = [
        [typed, trial.number, trial.state.name.lower(), trial.value, *(trial.params.get(key) for key in keys)]
        for typed, trial in found
    ]
    with atomic_write(path) as temporary:
        temporary.write_text(csv_text(["search", "trial", "state", "auroc", *keys], rows), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line, and exits with 0 for success, 2 for bad input, 1 for a failure while running."""
    cli.log_to_stderr()
    cli.quiet_runs(True)  # one line a trial
    cli.silence_advice()
    config.register()
    with cli.exit_codes():
        options = cli.in_one_line(parser()).parse_intermixed_args(arguments)
        print("\n".join(search(options.typed, options.trials, options.folds, options.config_dir)))


if __name__ == "__main__":
    main()

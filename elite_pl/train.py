"""The command `python -m elite_pl.train`. Light, so that `--help` answers at once; the work is in `runs`."""

import contextlib
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence

import hydra

from elite_pl import cli, config, errors
from elite_pl.runs import startup
from elite_pl.runs.results import check_writable, finished, forget_failure, write_failure
from elite_pl.runs.spec import RunSpec
from elite_pl.studies import sweeper
from elite_pl.studies.cells import ELSEWHERE, Outcome, claim, first_process, known
from elite_pl.studies.reuse import finished_elsewhere


def attempt(cfg: config.Config, in_sweep: bool) -> Outcome:
    """Makes one run, unless it is finished or another process is at work on it; errors are returned as an outcome."""
    begun: RunSpec | None = None
    try:
        spec = RunSpec.of(cfg)
        elsewhere = {} if in_sweep else finished_elsewhere(cfg.reuse)  # the sweep has looked there
        if (outcome := known(spec, elsewhere)) is not None:
            return outcome
        check_writable(spec.directory)
        with claim(spec.directory) if first_process() else contextlib.nullcontext(True) as ours:
            if not ours:
                return Outcome("elsewhere", str(spec.directory), error=f"{spec.directory} {ELSEWHERE}")
            if (metrics := finished(spec.directory, spec.hash)) is not None:  # by another process, just now
                return Outcome("before", str(spec.directory), metrics)
            cli.silence_advice()
            startup.import_lightning()
            from elite_pl.runs.launch import launch  # imports torch and Lightning

            begun = spec
            if (metrics := launch(spec)) is None:  # another process of the run says it
                return Outcome("run")
            forget_failure(spec.directory)
            return Outcome("run", str(spec.directory), metrics)
    except SystemExit as exit:
        raise interrupted(exit) from None
    except Exception as error:
        return failure(error, begun)


def attempt_together(specs: Sequence[RunSpec]) -> Iterator[tuple[RunSpec, Outcome | str]]:
    """Makes runs of a sweep by one training, as far as this process may and they have not begun.

    Args:
        specs: The runs, of one kind.

    Yields:
        The outcome of each that was made or failed, or why it has to be made by itself.

    Raises:
        AloneError: If runs of this kind cannot be trained together.
    """
    with contextlib.ExitStack() as claims:
        ours = []
        for spec in specs:
            if claims.enter_context(claim(spec.directory)) and not (spec.directory / "last.ckpt").exists():
                if (metrics := finished(spec.directory, spec.hash)) is None:
                    ours.append(spec)
                else:
                    yield spec, Outcome("before", str(spec.directory), metrics)
        try:
            cli.silence_advice()
            cli.quiet_runs(True)
            startup.import_lightning()
            from elite_pl.runs.launch import launch_together  # imports torch and Lightning

            for spec, result in launch_together(ours) if len(ours) > 1 else ():
                match result:
                    case errors.AloneError():
                        yield spec, str(result)
                    case Exception():
                        yield spec, failure(result, spec)
                    case metrics:
                        forget_failure(spec.directory)
                        yield spec, Outcome("run", str(spec.directory), metrics)
        except SystemExit as exit:
            raise interrupted(exit) from None
        except errors.AloneError:
            raise
        except Exception as error:  # told by the first of the runs, too
            raise errors.AloneError(reason(error)) from error


def interrupted(exit: SystemExit) -> SystemExit:
    """Logs the interruption, and returns the exit with a code: Lightning's at SIGTERM has none, as after success."""
    cli.log.info(cli.INTERRUPTED)
    return SystemExit(exit.code or 128 + signal.SIGTERM)


def failure(error: Exception, begun: RunSpec | None) -> Outcome:
    """The outcome of a run that raised an exception.

    Args:
        error: The exception.
        begun: The run, if it had begun: `failed.json` in its directory then says why it failed, until it succeeds. Bad
            input is not recorded: once it is fixed, the run is another one.
    """
    if begun is None or isinstance(error, cli.BAD_INPUT):
        return Outcome("refused" if cli.exit_code(error) == 2 else "failed", error=reason(error))
    if isinstance(error, OSError) and errors.full_disk(error) and error.filename is None:
        error.filename = str(begun.directory)
    outcome = Outcome("failed", str(begun.directory), error=reason(error))
    with contextlib.suppress(OSError):  # a full disk may be what is wrong
        write_failure(begun, outcome.error)
    return outcome


def reason(error: Exception) -> str:
    """Returns one line on an error, after its traceback if the error was not foreseen."""
    if cli.exit_code(error) or errors.foreseen(error):
        return cli.one_line(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {cli.one_line(error)}"


def main() -> None:
    """Runs the command line, and exits with 0 for success, 2 for bad input, 1 for a failure while running."""
    codes: list[int] = []

    def job(cfg: config.Config) -> Outcome:
        in_sweep = sweeper.in_sweep()
        cli.quiet_runs(in_sweep)
        outcome = attempt(cfg, in_sweep)
        if not in_sweep:  # else the sweep tells it
            if outcome.state == "before":
                cli.log.info("done before: nothing to run")
            if outcome.error:
                cli.say(outcome.error)
            if outcome.code == 0:
                sweeper.print_result(outcome)
            codes.append(outcome.code)
        return outcome

    cli.log_to_stderr()
    config.register()
    sweeper.register(codes, attempt_together)
    with cli.exit_codes():
        sys.argv[1:] = cli.arguments()
        hydra.main(version_base="1.3", config_path="pkg://elite_pl.conf", config_name="train")(job)()
    sys.exit(max(codes, default=0))


if __name__ == "__main__":
    main()

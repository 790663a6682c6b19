"""Shared by the commands: one-line errors, exit codes, quiet libraries. Imports little, so that `--help` is fast."""

from __future__ import annotations

import difflib
import logging
import os
import re
import shlex
import signal
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib import resources
from traceback import walk_tb
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from elite_pl import config, errors
from elite_pl.errors import InputError, TrainingError, full_disk
from elite_pl.options import drop_output

log = logging.getLogger("elite_pl")
BAD_INPUT = (InputError, HydraException, OmegaConfBaseException)  # what a user can mend
SHOWING = ("help", "hydra_help", "cfg", "info", "shell_completion")  # options that run nothing
INTERRUPTED = "interrupted: the same command goes on, from the last checkpoint if there is one"


@contextmanager
def exit_codes() -> Iterator[None]:
    """Runs a command in the block: errors become one line and an exit code, signals end it as they should."""
    try:
        os.getcwd()  # fails where somebody has removed it
        yield
        if sys.stdout is not None:
            sys.stdout.flush()  # else it is too late to say what could not be printed
    except KeyboardInterrupt:
        log.info(INTERRUPTED)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # `| head` has read enough
        drop_output()
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if (code := exit_code(error)) is None:
            raise
        say(one_line(error))
        sys.exit(code)


def exit_code(error: BaseException) -> int | None:
    """The exit code for an error: 2 for bad input, 1 for a failure while running, None for a bug of ours."""
    if isinstance(error, TrainingError) or full_disk(error):
        return 1
    return 2 if isinstance(error, (*BAD_INPUT, OSError)) or _of_hydra(error) else None


def _of_hydra(error: BaseException) -> bool:
    """Returns whether Hydra failed on the command line with an error that has no class of its own."""
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    ours_or_theirs = [name for name in packages if name in ("elite_pl", "hydra", "omegaconf")]
    return bool(ours_or_theirs) and ours_or_theirs[-1] != "elite_pl"


def arguments() -> list[str]:
    """The arguments with Hydra's options last: its parser takes no overrides on both sides of one.

    Raises:
        InputError: If there is no such option, or it could run code.
    """
    typed = sys.argv[1:]
    options = in_one_line(get_args_parser()).parse_intermixed_args(typed)
    if options.experimental_rerun is not None:
        raise InputError("--experimental-rerun: reads a pickle, which can run code; type the keys of the run")
    for override in options.overrides:
        typed.remove(override)
    experiment = any(text.startswith("experiment=") for text in options.overrides)
    sweep = options.multirun or (experiment and "hydra.mode=RUN" not in options.overrides)
    if sweep and not any(getattr(options, name) for name in SHOWING):
        return [*map(cell_by_cell, options.overrides), *typed]
    return [*options.overrides, *typed]


def cell_by_cell(text: str) -> str:
    """An override of a sweep; a key of a group as one of its cells, since the default option may not have it."""
    (override,) = OverridesParser.create().parse_overrides([text])
    group, dot, _ = override.key_or_group.partition(".")
    value = text.partition("=")[2]
    if group not in config.GROUPS or not (dot and value) or override.is_sweep_override():
        return text
    plain = override.type is OverrideType.CHANGE and override.package is None
    one = f"choice({value})" if override.value() is not None else "null,null"  # choice takes no null
    return f"{override.key_or_group}={one}" if plain else text


def in_one_line(parser: ArgumentParser) -> ArgumentParser:
    """The same parser, whose errors are bad input like any other, without the usage."""

    def error(message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")

    parser.error = error  # type: ignore[method-assign]
    return parser


def say(error: str) -> None:
    """Prints an error on standard error."""
    print(f"error: {error}", file=sys.stderr)


def log_to_stderr() -> None:
    """Shows our own progress alone; Hydra raises its errors instead of printing a page of advice."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    log.setLevel(logging.INFO)
    log.handlers, log.propagate = [logging.StreamHandler()], False
    logging.raiseExceptions = False  # or a library tells on full disks that its own log cannot be written
    warnings.filterwarnings("error", message="provider=.* is not available")  # of Hydra: a folder that is not there


def quiet_runs(quiet: bool) -> None:
    """Turns the messages of single runs off (or on), as in a sweep, which prints one line per run."""
    for name in ("progress", "runs.candidates", "runs.decision", "runs.ensembles", "runs.run"):
        logging.getLogger(f"elite_pl.{name}").setLevel(logging.WARNING if quiet else logging.NOTSET)


def silence_advice() -> None:
    """Hides advice and deprecations of libraries that a user cannot act on."""
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric|torch\.jit|torch\.utils\._pytree")


def one_line(error: BaseException) -> str:
    """The error on one line; of Hydra's and OmegaConf's errors, the part that helps a user."""
    typed = isinstance(error, HydraException | OmegaConfBaseException)
    if not typed and (isinstance(error, OSError) or not _of_hydra(error)):
        return errors.one_line(error)
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, InputError):  # of a constructor that Hydra has called
            return errors.one_line(cause)
        cause = cause.__cause__
    return " ".join(_explanation(error).split())


def _explanation(error: BaseException) -> str:
    """Explains an error of Hydra or OmegaConf in terms of the command line."""
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, str(error))
    lines = [line.strip() for line in str(error).splitlines()] or [""]
    if lines[0].startswith("Config group override must be"):
        return _groups()
    if lines[0].startswith("Error merging override") and error.__cause__ is not None:
        typed, cause = lines[0].removeprefix("Error merging override "), str(error.__cause__).splitlines()[0]
        key, _, value = typed.partition("=")
        if "incompatible with type hint 'Union[int, str]'" in cause:
            return f"{key}={value}: is read as a number, or as true or false; quote text: '{key}=\"{value}\"'"
        if "is not a ListConfig" in cause:
            return f"{typed}: expected a list in brackets: '{key}=[{value}]'"
        return f"{typed}: {cause}"
    if lines[0].startswith("Ambiguous value for argument"):
        typed = lines[0].removeprefix("Ambiguous value for argument ").strip("'")
        key, _, value = typed.partition("=")
        return f"{typed}: is a sweep; add -m, or quote a list or text: '{key}=[{value}]', '{key}=\"{value}\"'"
    if lines[0].startswith("Could not override 'score@method.score'"):
        return "score@method.score: the chosen method has no other scores, as those like ELITE and Deep SVDD have"
    if at_other := re.match(r"Could not override '([^']+)'\.\s+Did you mean to override ([^ ?]+)", "\n".join(lines)):
        return f"{at_other.group(1)}: no such key; did you mean {at_other.group(2)}?"
    keys = [f.name for f in fields(config.Config)]
    if deleted := re.match(r"Could not delete from config\. '([^']+)' does not exist", lines[0]):
        return f"~{deleted.group(1)}: no such key{_hint(deleted.group(1), [*keys, 'experiment'])}"
    unknown = re.match(r"Could not override '([^']+)'", lines[0])
    if unknown and any(line.startswith("To append to your config") for line in lines):
        key = unknown.group(1)
        return f"{key}: no such key{_hint(key, [*keys, 'experiment'])}"
    if option := re.match(r"(?:In '.*': )?Could not find '([\w/]+)/([^/']+)'\n+Available options in .*", str(error)):
        group, name = option.groups()
        group = "score@method.score" if group == "score" else group
        there = str(error)[option.end() :].partition("Config search path:")[0].split()
        if group == "augmentation/by_dataset":
            known = f"none is known for dataset={name}, only for {', '.join(there)}"
            return f"augmentation=auto: {known}; name one, as --help lists them"
        close = difflib.get_close_matches(name, there)
        hint = f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(there)}"
        return f"{group}={name}: no such option; {hint}"
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", lines[0]):
        return f"{missing.group(1)}: has no value; give {missing.group(1)}=VALUE"
    if "Config search path:" in lines:
        lines = lines[: lines.index("Config search path:")]
    kept = " ".join(line for line in lines if not re.match("full_key|object_type|reference_type", line))
    if not isinstance(error, HydraException | OmegaConfBaseException | ValueError | Warning):
        kept = f"{type(error).__name__}: {kept}"
    return re.sub(", set env var HYDRA_FULL_ERROR=1[^.]*", "", kept)


def _unreadable(typed: str, error: str) -> str:
    """Explains why an override cannot be read, and how it is typed in a shell if its value is text.

    Args:
        typed: The override.
        error: What Hydra's parser says.
    """
    key, equals, value = typed.partition("=")
    if not equals or not _readable(f"{key}=0"):
        return f"{typed or repr(typed)}: expected KEY=VALUE, in quotes if it has spaces"
    if value.startswith("[") and value.endswith("]"):
        parts = re.findall(r"""(?:"[^"]*"|'[^']*'|[^,])+""", value[1:-1])  # commas in quotes are no ends
        text = f"[{','.join(part if _readable(f'{key}={part}') else _quoted(part) for part in parts)}]"
    else:
        text = _quoted(value)
    why = "has characters that need quotes"
    if any(value.count(a) != value.count(b) for a, b in ("()", "[]", "{}")):
        why = "has a bracket without its counterpart"
    elif unknown := re.search(r"Unknown function '(\w+)'\s+Available: (\S+)", error):
        if close := difflib.get_close_matches(unknown[1], unknown[2].split(","), n=1):
            why = f"there is no {unknown[1]}(...); did you mean {close[0]}(...)?"
    elif call := re.search(r" while evaluating '.*': (.+)", error):
        why = call[1]
    return f"{typed}: {why}; as text: {shlex.quote(f'{key}={text}')}"


def _readable(typed: str) -> bool:
    """Returns whether Hydra can parse an override."""
    try:
        OverridesParser.create().parse_override(typed)
    except HydraException:
        return False
    return True


def _quoted(text: str) -> str:
    """A text in quotes, as Hydra's parser takes it."""
    return QuotedString(text.strip(), Quote.double).with_quotes()


def _hint(key: str, roots: list[str]) -> str:
    """Ends a message on a key that is not there: what may have been meant, or where to look."""
    group, _, rest = key.partition(".")
    if rest and group in config.GROUPS:
        options = resources.files("elite_pl.conf").joinpath(group).iterdir()
        files = [file for file in options if file.name.endswith(".yaml")]
        there = {str(name) for file in files for name in OmegaConf.create(file.read_text(encoding="utf-8"))}
        head, *more = rest.split(".")
        if head in there:
            return f" of the chosen {group}; --cfg job lists those there are"
        close = difflib.get_close_matches(head, there, n=1)
        if close:
            return f"; did you mean {'.'.join([group, close[0], *more])}?"
    elif close := difflib.get_close_matches(key, roots, n=1):
        return f"; did you mean {close[0]}?"
    return "; --help lists the root keys, --cfg job all of them"


def _groups() -> str:
    """The groups whose value names none of their options."""
    typed = OverridesParser.create().parse_overrides([text for text in sys.argv[1:] if not text.startswith("-")])
    groups = (*config.GROUPS, "experiment", "hydra", "")
    named = [o for o in typed if o.is_delete() or isinstance(o.value(), str | list)]
    wrong = [str(o.input_line) for o in typed if o not in named and o.key_or_group.split("/")[0] in groups]
    return f"{' '.join(wrong)}: a group takes the name of one of its options, which --help lists"

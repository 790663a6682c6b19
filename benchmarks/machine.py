"""What benchmarks have in common: how they start, and the machine and versions behind a measurement."""

import argparse
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import torch

from elite_pl.runs.environment import environment


def started(about: str | None, results: Path) -> argparse.Namespace:
    """Reads `--write`, and makes this process measure as a run would, on one thread and without advice.

    Args:
        about: What the benchmark says of itself.
        results: Its page of results.
    """
    from elite_pl.cli import silence_advice
    from elite_pl.runs import startup

    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {results.name} beside the other results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    startup.keep_freed_memory()
    silence_advice()
    warnings.simplefilter("ignore")
    return options


def train(*typed: str) -> tuple[list[str], resource.struct_rusage]:
    """Runs `python -m elite_pl.train` on one thread; returns its lines on standard output and what it has used."""
    process = subprocess.Popen(
        [sys.executable, "-m", "elite_pl.train", *typed, "threads=1", "logger=none"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(typed)}: failed")
    return lines, usage


def in_words(**versions: str) -> str:
    """A sentence for the end of a page of results.

    Args:
        **versions: Of packages beside Python and torch that matter, by their names.
    """
    where = environment()
    versions = {"Python": where["version/python"], "torch": where["version/torch"], **versions}
    named = (f"{name} {version}" for name, version in versions.items())
    return ", ".join((where["device"], where["platform"], *named, f"commit {where['commit']}.")) + "\n"

"""The environment of a run: versions, device, commit."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a bare checkout
        return ""


def _commit() -> str:
    """The commit of the checkout that this file is part of; '' if there is none.

    It ends with `-dirty` if code or configuration has been edited since; edited results do not count.
    """
    here = Path(__file__).resolve().parents[1] / "__init__.py"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # a wheel inside somebody else's checkout is not of that commit
        edited = git("diff", "--name-only", "HEAD", "--", ".", "../conf")
        return git("rev-parse", "HEAD") + "-dirty" * bool(edited)
    except (OSError, subprocess.SubprocessError):
        return ""


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def environment(device: object = "cpu") -> dict[str, str]:
    """Returns the environment of a run, for `metrics.json`.

    Args:
        device: The torch device that it ran on.

    Returns:
        `version/*`, `device` (its product name), `commit` (see `_commit`) and `platform`.
    """
    import torch  # here, since `--help` needs nothing of it

    on_gpu = str(device).startswith("cuda")
    return {
        "version/python": platform.python_version(),
        "version/torch": torch.__version__,
        **{f"version/{package}": _version(package) for package in ("pytorch_lightning", "elite_pl")},
        "device": torch.cuda.get_device_name(torch.device(str(device))) if on_gpu else _cpu_name(),
        "commit": _commit(),
        "platform": platform.platform(),
    }

"""Start-up of a training process. It does nothing but train, so settings that suit no other program are fine."""

import atexit
import ctypes
import gc
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from elite_pl.runs.lazy_compiler import put_off_the_compiler

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Makes glibc keep up to 512 MB that were freed, where Linux has it: a step frees and takes the same again.

    Else each large tensor is memory mapped anew, which the kernel clears page by page. 32 MiB are the most that glibc
    takes for the size above which it does so. https://www.gnu.org/software/libc/manual/html_node/Malloc-Tunable-Parameters.html
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(M_TRIM_THRESHOLD, 2**29)


@contextmanager
def _importing() -> Iterator[None]:
    """Suspends garbage collection during imports, and exempts all objects present at the end; call once per process.

    Imports leave hardly any, and looking for it takes a seventh of the time of a short run.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # otherwise extensions report leaks at exit
        gc.enable()


def import_lightning() -> None:
    """Imports Lightning, and torchmetrics with it, without SciPy's signals, torchvision and pyplot: a second less.

    torchmetrics imports them for metrics of audio and images and for plots wherever they are installed, and then goes
    without. This is for a process of our own: in a program of somebody else's it would leave torchmetrics without them.
    """
    if "torchmetrics" in sys.modules or "scipy" in sys.modules:
        return
    put_off_the_compiler()
    from lightning_utilities.core.imports import RequirementCache

    available = RequirementCache.__bool__

    def needed(cache: RequirementCache) -> bool:
        return not str(cache.requirement).startswith(("scipy", "torchvision", "matplotlib")) and available(cache)

    setattr(RequirementCache, "__bool__", needed)  # noqa: B010 -- mypy lets nobody assign to a method
    sys.modules["scipy"] = None  # type: ignore[assignment]  # Python's word for what is not to be found
    try:
        with _importing():
            import pytorch_lightning  # noqa: F401
    finally:
        del sys.modules["scipy"]
        setattr(RequirementCache, "__bool__", available)  # noqa: B010

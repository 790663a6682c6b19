"""Start-up of a training process. It does nothing but train, so settings that suit no other program are fine."""

import ctypes
import importlib
import platform
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
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
        import pytorch_lightning  # noqa: F401
    finally:
        del sys.modules["scipy"]
        setattr(RequirementCache, "__bool__", available)  # noqa: B010


class _Compiled(type):
    """Of a class whose instances are what `torch.compile` has made, without importing the compiler to ask."""

    def __instancecheck__(cls, instance: object) -> bool:
        made = sys.modules.get(f"{COMPILER}.eval_frame")
        return made is not None and isinstance(instance, made.OptimizedModule)


class _PutOff(ModuleType):
    """In the place of `torch._dynamo` until somebody compiles.

    Until then, optimizers ask it for nothing but to leave their steps alone, and Lightning whether a network is
    compiled. Whatever else is asked for, a submodule included, puts the real one in its place.
    """

    class OptimizedModule(metaclass=_Compiled): ...

    @staticmethod
    def graph_break(*_: object) -> None: ...

    @staticmethod
    def disable(function: Any, *_: object, **__: object) -> Any:
        return function

    def __getattr__(self, name: str) -> Any:
        return getattr(self.replaced(), name)

    @staticmethod
    def replaced() -> ModuleType:
        import torch

        if isinstance(sys.modules.get(COMPILER), _PutOff):
            del sys.modules[COMPILER]
            vars(torch).pop("_dynamo")
        return importlib.import_module(COMPILER)


class _Submodules(MetaPathFinder, Loader):
    """Imports the real compiler before the first of its submodules, which is then there and not to be made again."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(f"{COMPILER}.") or not isinstance(sys.modules.get(COMPILER), _PutOff):
            return None
        _PutOff.replaced()
        if (module := sys.modules.get(name)) is None:
            return None
        # importlib goes by the spec of a module that has appeared meanwhile.
        module.__spec__ = ModuleSpec(name, self, loader_state=module.__spec__)
        return module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def put_off_the_compiler() -> None:
    """Puts off importing `torch._dynamo`, which takes more than a second, until somebody compiles something.

    PyTorch's optimizers and Lightning import it whether or not anybody does.
    """
    import torch

    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = torch._dynamo = _PutOff(COMPILER)
        torch._dynamo.__path__ = []  # it has submodules
        sys.meta_path.insert(0, _Submodules())

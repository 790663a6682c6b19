"""Puts off importing PyTorch's compiler, which takes more than a second, until somebody compiles something.

PyTorch's optimizers and Lightning import `torch._dynamo` whether or not anybody does.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"


def put_off_the_compiler() -> None:
    """Replaces `torch._dynamo` with a stand-in, unless it has been imported already."""
    import torch

    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = torch._dynamo = _StandIn(COMPILER)
        torch._dynamo.__path__ = []  # it has submodules
        sys.meta_path.insert(0, _Submodules())


class _Compiled(type):
    """Of a class whose instances are what `torch.compile` has made, without importing the compiler to ask."""

    def __instancecheck__(cls, instance: object) -> bool:
        made = sys.modules.get(f"{COMPILER}.eval_frame")
        return made is not None and isinstance(instance, made.OptimizedModule)


class _StandIn(ModuleType):
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
        if name.startswith("__"):  # whoever walks through all modules
            raise AttributeError(name)
        return getattr(self.replaced(), name)

    @staticmethod
    def replaced() -> ModuleType:
        import torch

        if isinstance(sys.modules.get(COMPILER), _StandIn):
            del sys.modules[COMPILER]
            vars(torch).pop("_dynamo")
        return importlib.import_module(COMPILER)


class _Submodules(MetaPathFinder, Loader):
    """Imports the real compiler before the first of its submodules, which is then there and not to be made again."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(f"{COMPILER}.") or not isinstance(sys.modules.get(COMPILER), _StandIn):
            return None
        _StandIn.replaced()
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

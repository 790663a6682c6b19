"""What a command imports to train, less what it has no use for."""

import sys


def import_lightning() -> None:
    """Imports Lightning, and torchmetrics with it, without SciPy's signals and torchvision: a second less.

    torchmetrics imports them for metrics of audio and images wherever they are installed, and then goes without. This
    is for a process of our own: in a program of somebody else's it would leave torchmetrics without those metrics.
    """
    if "torchmetrics" in sys.modules or "scipy" in sys.modules:
        return
    from lightning_utilities.core.imports import RequirementCache

    available = RequirementCache.__bool__

    def needed(cache: RequirementCache) -> bool:
        return not str(cache.requirement).startswith(("scipy", "torchvision")) and available(cache)

    setattr(RequirementCache, "__bool__", needed)  # noqa: B010 -- mypy lets nobody assign to a method
    sys.modules["scipy"] = None  # type: ignore[assignment]  # Python's word for what is not to be found
    try:
        import pytorch_lightning  # noqa: F401
    finally:
        del sys.modules["scipy"]
        setattr(RequirementCache, "__bool__", available)  # noqa: B010

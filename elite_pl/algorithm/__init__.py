"""The mathematics: pure functions of tensors, to be read beside the papers. Torch only."""

from elite_pl.lazy import attach

__getattr__, __dir__ = attach(__name__, __file__)

"""Networks, and the scores that are made of them. Torch only."""

from elite_pl.lazy import attach

__getattr__, __dir__ = attach(__name__, __file__)

"""Data: arrays and their checks, where they come from, splits, scaling, batches."""

from elite_pl.lazy import attach

__getattr__, __dir__ = attach(__name__, __file__)

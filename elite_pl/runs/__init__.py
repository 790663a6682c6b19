"""One run: from a configuration to a directory of results, and the detector that it leaves."""

from elite_pl.lazy import attach

__getattr__, __dir__ = attach(__name__, __file__)

"""The methods: each is one file, and shows only what is its own."""

from elite_pl.lazy import attach

__getattr__, __dir__ = attach(__name__, __file__)

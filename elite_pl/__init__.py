"""Deep anomaly detection when the training data is dirty: ELITE (KDD 2021) and its rivals."""

import logging

from elite_pl.lazy import attach

__version__ = "0.1.0"

__getattr__, __dir__ = attach(__name__, __file__)
logging.getLogger(__name__).addHandler(logging.NullHandler())  # a library says nothing unless it is asked to

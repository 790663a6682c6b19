"""Deep anomaly detection when the training data is dirty: ELITE (KDD 2021) and its rivals."""

__version__ = "0.1.0"

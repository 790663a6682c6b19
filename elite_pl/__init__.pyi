from elite_pl.runs.estimator import EliteDetector as EliteDetector
from elite_pl.runs.fitting import fit as fit
from elite_pl.runs.pyod_detector import PyodDetector as PyodDetector
from elite_pl.runs.trained import TrainedDetector as TrainedDetector
from elite_pl.runs.trained import load as load

__version__: str

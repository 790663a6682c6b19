from elite_pl.runs.callbacks import CollapseWarning as CollapseWarning
from elite_pl.runs.callbacks import LabeledLoss as LabeledLoss
from elite_pl.runs.callbacks import TimeLeft as TimeLeft
from elite_pl.runs.launch import Ddp as Ddp
from elite_pl.runs.loggers import wandb_logger as wandb_logger

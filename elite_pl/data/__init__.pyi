from elite_pl.data.arrays import Arrays as Arrays
from elite_pl.data.arrays import make_arrays as make_arrays
from elite_pl.data.datamodule import PollutedData as PollutedData
from elite_pl.data.sources.embedded import digits as digits
from elite_pl.data.sources.npz import npz as npz
from elite_pl.data.sources.torchvision_sets import torchvision_set as torchvision_set

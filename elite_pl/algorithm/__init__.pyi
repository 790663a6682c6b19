from elite_pl.algorithm.augmentation import Affine as Affine
from elite_pl.algorithm.augmentation import Augmentation as Augmentation
from elite_pl.algorithm.augmentation import FeatureNoise as FeatureNoise

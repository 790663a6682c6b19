"""Constructors called without a configuration refuse what their annotations do not allow, in their own words."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch

from elite_pl.annotations import Positive, Range, argument_kinds, check, checked, is_of
from elite_pl.data import splits
from elite_pl.data.preprocessing import preprocessing
from elite_pl.errors import InputError
from elite_pl.methods import DeepSad, DevNet, Elite, IsolationForest, Ocsvm, Rsrae, Soel, Ssad
from elite_pl.models import Hypersphere, RobustSubspace, ScalarHead, lenet, mlp

DETECTOR: dict[str, Any] = {
    "name": "made",
    "optimizer": torch.optim.Adam,
    "scheduler": None,
    "pretrain_epochs": 0,
    "pretrain_learning_rate": 1e-3,
    "pretrain_weight_decay": 0.0,
    "pretrain_milestone": None,
    "margin": "mean_initial",
    "labeled_statistics": "batch",
    "labeled_copies": 1,
    "average_decay": None,
    "score": Hypersphere,
}
ELITE = {"meta_gradient": "jvp", "meta_scale": 1, "weights": "mean", "supervised": 1, "record_iterations": 0}
ANOMALY = {"loss": "inverse", "epsilon": 1e-6}
SSAD = {"name": "made", "gamma": [1, 2], "kappa": [1], "nu": 0.5, "folds": 5, "fold_unlabeled": 9}
SPLIT = {"dataset": "made", "normal_class": 0, "pollution": 0.5, "label_ratio": 0.1, "n_train": 40, "seed": 0}
RSRAE = {"orthogonality_learning_rate": 1, "subspace_learning_rate": 1, "subspace_encoder": False}


def detector(kind, **options):
    return lambda **change: kind(backbone=mlp((4,)), **DETECTOR | options | change)


def split(**change):
    return splits.polluted_one_vs_rest(np.arange(90) % 3, np.arange(9) % 3, **SPLIT | change)


MADE: dict[str, Callable[..., Any]] = {
    "elite": detector(Elite, **ELITE),
    "deep_sad": detector(DeepSad, **ANOMALY, eta=1, average="parts"),
    "soel": detector(Soel, **ANOMALY, update="soft", contamination="auto", warm_up=0),
    "devnet": detector(DevNet, score=ScalarHead, prior_draws=9, margin=5),
    "rsrae": detector(
        Rsrae, **RSRAE, updates_per_batch=1, score=lambda b: RobustSubspace(b, 2, "norm", True, "normal")
    ),
    "subspace": lambda **change: RobustSubspace(
        mlp((4,)), **{"dimension": 2, "distance": "norm", "unit_code": True, "initial": "normal"} | change
    ),
    "ssad": lambda **change: Ssad(**SSAD | change),
    "ocsvm": lambda **change: Ocsvm(**{"name": "made", "gamma": "scale", "nu": 0.5} | change),
    "forest": lambda **change: IsolationForest(**{"name": "made", "trees": 9, "tree_samples": 9} | change),
    "mlp": lambda **change: mlp((4,), **change),
    "lenet": lambda **change: lenet((1, 8, 8), **change),
    "split": split,
    "images": lambda **change: preprocessing(
        np.zeros((9, 1, 8, 8), np.uint8), **{"size": 8, "scaling": "unit"} | change
    ),
}
WRONG = [
    ("elite", "weights", "some", "raw, mean, drop or signed"),
    ("elite", "meta_gradient", None, "jvp or virtual_step"),
    ("elite", "labeled_statistics", "joint", "batch or running"),
    ("elite", "supervised", -1, "a finite number, not negative"),
    ("elite", "meta_scale", float("inf"), "a positive, finite number"),
    ("elite", "margin", True, "mean_initial, max_labeled or a positive, finite number"),
    ("elite", "pretrain_milestone", 0, "a whole number of at least 1, or None"),
    ("elite", "optimizer", "adam", "a callable"),
    ("deep_sad", "loss", "log", "inverse or hinge"),
    ("deep_sad", "average", 1, "samples or parts"),
    ("soel", "update", "drop", "hard, soft or refine"),
    ("soel", "contamination", 1, "auto, given, estimated or a number in [0, 1)"),
    ("devnet", "margin", "mean_initial", "a positive, finite number"),
    ("rsrae", "updates_per_batch", True, "1 or 3"),
    ("subspace", "distance", "far", "cosine or norm"),
    ("subspace", "dimension", 33, "at most 32, the outputs of the backbone"),
    ("ssad", "gamma", [], "a list of positive numbers, such as [1, 2]"),
    ("ssad", "kappa", [1, 0], "a list of positive numbers, such as [1, 2]"),
    ("ocsvm", "gamma", "auto", "scale or a positive, finite number"),
    ("forest", "trees", 1.5, "a whole number of at least 1"),
    ("mlp", "hidden", [64, 2**21], "a list such as [1, 2], each a whole number from 1 to 1048576"),
    ("mlp", "outputs", 0, "a whole number from 1 to 1048576"),
    ("lenet", "channels", [], "a list of widths, such as [32, 64], or None"),
    ("split", "labeled_from", "above", "inside or outside"),
    ("split", "n_train", 1, "a whole number of at least 2, or None"),
    ("images", "scaling", [0.5, 0], "unit, gcn, standard or [mean, standard deviation > 0] of the pixels"),
    ("images", "size", 5000, "a number of pixels from 4 to 4096, or None"),
]


@pytest.mark.parametrize("what", MADE)
def test_what_is_right_is_taken(what):
    MADE[what]()


@pytest.mark.parametrize("what, name, value, words", WRONG)
def test_what_is_wrong_is_named(what, name, value, words):
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name}={value}: must be {words}')}$") as caught:
        MADE[what](**{name: value})
    assert not isinstance(caught.value, InputError)


def test_a_network_that_no_memory_holds_is_refused_at_once():
    with pytest.raises(ValueError, match=r"^mlp would have 2\.2e\+12 parameters; 1e\+09 are the most$"):
        mlp((4,), [2**20, 2**20])


def test_numpy_numbers_are_numbers():
    made = MADE["split"](n_train=np.int64(40), pollution=np.float32(0.5))
    assert len(made.unlabeled) == 36


def test_positions_and_defaults_are_arguments_too():
    @checked
    def function(kind: Literal["a", "b"], *more: int, share: Positive = 0.5, **others: Any) -> str:
        return f"{kind}{share}{others}"

    assert function("a") == "a0.5{}" and function("b", share=1, x="c") == "b1{'x': 'c'}"
    with pytest.raises(ValueError, match=r"^kind=c: must be a or b$"):
        function("c")
    with pytest.raises(TypeError, match="missing"):
        function()


def test_what_annotations_say():
    class Base:
        def __init__(self, rate: Positive, kind: Literal["a", "b"]) -> None: ...

    class Narrower(Base):
        def __init__(self, kind: Literal["a"], **base: Any) -> None: ...

    kinds = argument_kinds(Narrower)
    check({"rate": 1.0, "kind": "a", "unknown": object()}, kinds)
    for wrong in ({"rate": 0.0}, {"kind": "b"}):
        with pytest.raises(ValueError):
            check(wrong, kinds)
    assert is_of("x", Annotated[str, "foreign"]) and not is_of(3, Annotated[int, Range("even", lambda n: n % 2 == 0)])

"""Splits into unlabeled, labeled and test samples: the paper's polluted one-vs-rest protocol (Sec. 5.1), as indices.

One class is normal, all others are anomalies. A training set of `n_train` samples holds a share `pollution` of
anomalies; `label_ratio` of it is labeled, half of each kind, and the rest is unlabeled. Pure numpy, and no global
random state.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from elite_pl.annotations import Fraction, Share, at_least, checked
from elite_pl.files import atomic_write

NORMAL, ANOMALY, UNLABELED = 1, -1, 0


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint indices of one experiment.

    Attributes:
        unlabeled: (N,) int64, ascending, into the training set.
        labeled: (M,) int64 into the training set, normal samples first.
        labeled_y: (M,) int8, +1 normal and -1 anomaly, aligned with `labeled`.
        test: (T,) int64 into the test set.
    """

    unlabeled: np.ndarray
    labeled: np.ndarray
    labeled_y: np.ndarray
    test: np.ndarray

    def save(self, path: Path, **more: np.ndarray | None) -> None:
        """Writes the four arrays, and more if they are not None, to an npz file that is either complete or absent."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)} | more
        with atomic_write(path) as temporary:
            np.savez(temporary, **{name: array for name, array in arrays.items() if array is not None})

    @classmethod
    def load(cls, path: Path) -> Split:
        """Reads a file that `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def folds_of(labeled_y: np.ndarray, folds: int) -> int:
    """The number of folds of the labeled samples such that each fold has samples of every kind with at least two.

    Args:
        labeled_y: (M,), +1 or -1.
        folds: How many there are to be, at most.

    Returns:
        At least 2.
    """
    counts = (int((labeled_y == kind).sum()) for kind in (NORMAL, ANOMALY))
    return max(2, min([folds, *(count for count in counts if count > 1)]))


def hold_out(split: Split, part: int, parts: int, order: np.ndarray | None = None) -> tuple[Split, Split]:
    """Takes one of several parts out of a training set, with the same share of both kinds of labeled samples.

    The only labeled sample of its kind is never taken out: nothing would be left to learn the kind from.

    Args:
        split: The split.
        part: Which one, from 0.
        parts: How many there are.
        order: The positions of the unlabeled samples, (N,), every `parts`-th of which is taken out; None for no
            unlabeled sample.

    Returns:
        The split without that part, and that part: indices into the training set, without a test set.
    """
    kinds = (np.flatnonzero(split.labeled_y == kind) for kind in (NORMAL, ANOMALY))
    labeled = np.concatenate([kind[part::parts] for kind in kinds if len(kind) > 1] or [np.arange(0)])
    unlabeled = np.arange(0) if order is None else np.sort(order[part::parts])

    def of(take: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Split:
        labels = take(split.labeled, labeled), take(split.labeled_y, labeled)
        return Split(take(split.unlabeled, unlabeled), *labels, test=np.arange(0))

    return of(np.delete), of(np.take)


@checked
def polluted_one_vs_rest(
    y_train: np.ndarray,
    y_test: np.ndarray,
    *,
    dataset: str,
    normal_class: int,
    pollution: Share,
    label_ratio: Fraction,
    n_train: Annotated[int, at_least(2)] | None,
    seed: int,
    labeled_from: Literal["inside", "outside"] = "inside",
    labeled_anomaly_classes: Sequence[int] | None = None,
    label_noise: Fraction = 0.0,
    class_names: Sequence[str] | None = None,
) -> Split:
    """Draws a polluted, partly labeled training set (paper Sec. 5.1).

    `floor(pollution * n_train)` anomalies come at random from the other classes, the rest is normal;
    `k = floor(label_ratio * n_train / 2)` of each kind are labeled. Both kinds are shuffled once by a generator that
    knows (dataset, normal_class, seed) only, and every set is one end of a shuffled list. So a larger `label_ratio`
    keeps the labels of a smaller one, a larger `pollution` keeps the anomalies of a smaller one (and drops normal
    samples), and runs of one `n_train` that differ in pollution alone share their labeled samples.

    Args:
        y_train: (n,) class ids of the training set.
        y_test: (T,) class ids of the test set, all of which is used.
        dataset: Name of the data set; other names draw other samples.
        normal_class: Id of the normal class.
        pollution: r_p, share of anomalies in the whole training set, labeled samples included; in [0, 1).
        label_ratio: r_l, share of labeled samples; in [0, 1].
        n_train: Size of the training set; None: all samples of the normal class, and the anomalies that `pollution`
            asks for.
        seed: Of the draw.
        labeled_from: "inside": labeled samples are taken out of the `n_train`; "outside": drawn beyond them.
        labeled_anomaly_classes: Classes that all labeled anomalies are drawn from, as in Ruff et al., "Deep
            Semi-Supervised Anomaly Detection", ICLR 2020; the hidden ones are of all classes. None: any.
        label_noise: Share of the labeled samples, of either kind, whose label is wrong, rounded to the nearest sample.
        class_names: Names for the messages.

    Returns:
        The split. Labeled and unlabeled never overlap.

    Raises:
        ValueError: A value out of range, or a combination that the data cannot serve; the message names values that
            work.
    """
    y_train, y_test = np.asarray(y_train), np.asarray(y_test)
    is_normal = y_train == normal_class
    if not is_normal.any():
        there = describe_classes(y_train, class_names)
        raise ValueError(f"normal_class={normal_class}: the training set has no such class; it has {there}")
    test_normal = np.count_nonzero(y_test == normal_class)
    if test_normal in (0, len(y_test)):
        kind = "anomaly" if test_normal else "normal sample"
        raise ValueError(f"normal_class={normal_class}: the test set has no {kind}; a ROC AUC needs both kinds")

    stock = _Stock(int(is_normal.sum()), int((~is_normal).sum()), labeled_from)
    n_normal, n_anomalous, k = stock.counts(pollution, label_ratio, n_train)
    if not stock.serves((n_normal, n_anomalous, k), label_ratio > 0):
        raise ValueError(stock.explain(pollution, label_ratio, n_train))

    generator = _generator(dataset, normal_class, seed)
    normal = generator.permutation(np.flatnonzero(is_normal))
    anomalous = generator.permutation(np.flatnonzero(~is_normal))
    # Outside labels come from the far end, so that they too stay the same when the pollution changes.
    head = slice(None) if labeled_from == "inside" else slice(None, None, -1)
    drawn = np.concatenate([normal[:n_normal], anomalous[:n_anomalous]])
    may_be_labeled = anomalous[:n_anomalous] if labeled_from == "inside" else anomalous[n_anomalous:][::-1]
    if labeled_anomaly_classes is not None:
        may_be_labeled = may_be_labeled[np.isin(y_train[may_be_labeled], labeled_anomaly_classes)]
        if len(may_be_labeled) < k:
            rule = f"label_ratio={label_ratio} asks for {k} labeled anomalies, and of these classes there are"
            raise ValueError(f"labeled_anomaly_classes={list(labeled_anomaly_classes)}: {rule} {len(may_be_labeled)}")
    labeled = np.concatenate([normal[head][:k], may_be_labeled[:k]])
    labeled_y = np.repeat(np.array([NORMAL, ANOMALY], dtype=np.int8), k)
    _flip(labeled_y, label_noise, generator)
    return Split(np.setdiff1d(drawn, labeled), labeled, labeled_y, test=np.arange(len(y_test)))


def _generator(*purpose: object) -> np.random.Generator:
    """Random numbers for one purpose."""
    stream = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return np.random.default_rng(int.from_bytes(stream[:16], "big"))


def _flip(labels: np.ndarray, share: float, generator: np.random.Generator) -> None:
    """Flips a share of labels +1 and -1, rounded to the nearest sample, in place."""
    labels[generator.permutation(len(labels))[: math.floor(len(labels) * share + 0.5)]] *= -1


@checked
def known_labels(y_train: np.ndarray, y_test: np.ndarray, *, label_noise: Fraction = 0.0, seed: int = 0) -> Split:
    """Makes the split from the user's own labels: +1 normal, -1 anomaly, 0 unlabeled.

    Args:
        y_train: (n,) labels in {+1, -1, 0}.
        y_test: (T,) labels in {+1, -1}; empty when there is no test set.
        label_noise: Share of the labels, of either kind, that are made wrong, to see what that costs.
        seed: Of the draw of these; other labels have another draw.

    Returns:
        The split, in the order of the data (normal samples first among the labeled).

    Raises:
        ValueError: Other values, fewer than 2 unlabeled samples, or a test set of one kind.
    """
    y_train, y_test = np.asarray(y_train), np.asarray(y_test)
    for part, y, allowed in (("y_train", y_train, (1, -1, 0)), ("y_test", y_test, (1, -1))):
        if strange := sorted(set(np.unique(y).tolist()) - set(allowed)):
            shown = ", ".join(map(str, strange[:5]))
            right = ", ".join(map(str, allowed))
            meaning = "1 normal, -1 anomaly" + (", 0 unlabeled" if 0 in allowed else "; samples to score need no label")
            raise ValueError(f"{part} holds {shown}; {right} are allowed ({meaning})")
    unlabeled = np.flatnonzero(y_train == UNLABELED)
    if len(unlabeled) < 2:
        raise ValueError(f"y_train has {len(unlabeled)} unlabeled samples (0); training needs at least 2")
    if len(y_test) and len(np.unique(y_test)) < 2:
        raise ValueError("y_test has one kind only; give both 1 and -1, or no test set")
    normal, anomalous = np.flatnonzero(y_train == NORMAL), np.flatnonzero(y_train == ANOMALY)
    labeled = np.concatenate([normal, anomalous])
    labeled_y = y_train[labeled].astype(np.int8)
    _flip(labeled_y, label_noise, _generator(hashlib.sha256(y_train.astype(np.int8).tobytes()).hexdigest(), seed))
    return Split(unlabeled, labeled, labeled_y, np.arange(len(y_test)))


def is_anomaly(y: np.ndarray, normal_class: int, labels: str) -> np.ndarray:
    """Returns which samples are true anomalies.

    Args:
        y: (n,) class ids, or known labels.
        normal_class: Id of the normal class; not read when `labels` is "known".
        labels: "classes" or "known". With "known", an unlabeled sample (0) is False, which means "unknown".

    Returns:
        (n,) bool.
    """
    return np.asarray(y) == ANOMALY if labels == "known" else np.asarray(y) != normal_class


def stratified(y: np.ndarray, test_fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Splits a data set that comes without a test set, stratified by class.

    Args:
        y: (n,) class ids.
        test_fraction: Share of every class that goes to the test set, in (0, 1), rounded to the nearest sample; a
            class of two or more has at least one sample on both sides.
        seed: Of the draw.

    Returns:
        (training, test): ascending int64 indices.
    """
    generator = np.random.default_rng(seed)
    in_test = np.zeros(len(y), dtype=bool)
    for value in np.unique(y):
        members = generator.permutation(np.flatnonzero(y == value))
        n_test = min(max(1, math.floor(test_fraction * len(members) + 0.5)), len(members) - 1)
        in_test[members[:n_test]] = True
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def describe_classes(y: np.ndarray, class_names: Sequence[str] | None = None, limit: int = 20) -> str:
    """Lists the class ids in `y` for a message, with their names where they have some: `0 (cat), 1 (dog)`."""
    ids = np.unique(y).tolist()
    named = [
        f"{i} ({class_names[i]})" if class_names and 0 <= i < len(class_names) and class_names[i] != str(i) else str(i)
        for i in ids[:limit]
    ]
    return ", ".join(named) + (f" and {len(ids) - limit} more" if len(ids) > limit else "")


@dataclass(frozen=True)
class _Stock:
    """The stock of the training set: how much a request takes from it, and which requests it can serve.

    All counts broadcast, so that the search for values that work is the check itself over an array.
    """

    normal: int
    anomalous: int
    labeled_from: str

    def counts(
        self, pollution: float | np.ndarray, label_ratio: float | np.ndarray, n_train: float | np.ndarray | None
    ) -> tuple[Any, Any, Any]:
        """Returns the numbers of normal samples, of anomalies, and of labeled samples of each kind."""
        if n_train is None:
            n_normal, n_anomalous = self.normal, _floor(pollution * self.normal / (1 - pollution))
        else:
            n_anomalous = _floor(pollution * n_train)
            n_normal = n_train - n_anomalous
        return n_normal, n_anomalous, _floor(label_ratio * (n_normal + n_anomalous) / 2)

    def conditions(self, counts: tuple[Any, Any, Any], wants_labels: bool) -> tuple[Any, ...]:
        """Returns what must hold, in the order of the messages of `explain`."""
        n_normal, n_anomalous, k = counts
        inside, outside = (k, 0 * k) if self.labeled_from == "inside" else (0 * k, k)
        return (
            n_normal + outside <= self.normal,
            n_anomalous + outside <= self.anomalous,
            (k > 0) | (not wants_labels),
            inside <= n_anomalous,
            inside <= n_normal,
            n_normal + n_anomalous - 2 * inside >= 2,
        )

    def serves(self, counts: tuple[Any, Any, Any], wants_labels: bool) -> np.ndarray:
        """Returns whether all conditions hold."""
        return np.logical_and.reduce(np.broadcast_arrays(*self.conditions(counts, wants_labels)))

    def explain(self, pollution: float, label_ratio: float, n_train: int | None) -> str:
        """Says what is wrong with a request that cannot be served, and which change of one value would fix it."""
        n_normal, n_anomalous, k = (int(count) for count in self.counts(pollution, label_ratio, n_train))
        total = n_normal + n_anomalous
        labels = f" and {k} labels" if self.labeled_from == "outside" else ""
        of_set = f"pollution={pollution} draws for n_train={n_train}"
        messages = (
            f"n_train={n_train}: at pollution={pollution} it takes {n_normal} normal samples{labels}, "
            f"and the normal class has {self.normal}",
            f"pollution={pollution}: it takes {n_anomalous} anomalies{labels}, "
            f"and the other classes have {self.anomalous}",
            f"label_ratio={label_ratio}: no labeled sample at all out of {total}",
            f"label_ratio={label_ratio}: {k} labeled anomalies are more than the {n_anomalous} that {of_set}",
            f"label_ratio={label_ratio}: {k} labeled normal samples are more than the {n_normal} that {of_set}",
            f"label_ratio={label_ratio}: {total - 2 * k} of {total} samples stay unlabeled, "
            f"and training needs at least 2",
        )
        held = self.conditions((n_normal, n_anomalous, k), label_ratio > 0)
        wrong = next(message for message, holds in zip(messages, held, strict=True) if not holds)
        *others, last = self._remedies(pollution, label_ratio, n_train) or ["no change of one value alone"]
        return f"{wrong}; {', '.join(others)}{' or ' if others else ''}{last} works"

    def _remedies(self, pollution: float, label_ratio: float, n_train: int | None) -> list[str]:
        """Returns for each key the value nearest to the current one that works with the others as they are."""
        n_normal, n_anomalous, k = (int(count) for count in self.counts(pollution, label_ratio, n_train))
        total, found, wants = n_normal + n_anomalous, [], label_ratio > 0

        def add(key: str, value: float, given: float) -> None:
            found.append(f"{key} of at {'least' if value > given else 'most'} {value}")

        sizes = np.arange(2, self.normal + self.anomalous + 1)
        if (n := _nearest(sizes, self.serves(self.counts(pollution, label_ratio, sizes), wants), total)) is not None:
            add("n_train", n, total)

        a = np.arange(self.anomalous + 1 if n_train is None else min(self.anomalous, n_train) + 1)
        n_by_a = self.normal + a if n_train is None else np.full_like(a, n_train)
        k_by_a = _floor(label_ratio * n_by_a / 2)
        if (b := _nearest(a, self.serves((n_by_a - a, a, k_by_a), wants), n_anomalous)) is not None and b < n_by_a[b]:
            p = _shortest(b / n_by_a[b], lambda p: p < 1 and self.counts(p, 0.0, n_train)[1] == b)
            add("pollution", p, pollution)

        ks = np.arange(1, min(total // 2, self.normal, self.anomalous) + 1)
        if (j := _nearest(ks, self.serves((n_normal, n_anomalous, ks), wants), k)) is not None:
            add("label_ratio", _shortest(2 * j / total, lambda r: _floor(r * total / 2) == j), label_ratio)
        elif wants and self.serves((n_normal, n_anomalous, 0), False):
            found.append("label_ratio=0")

        beyond = _Stock(self.normal, self.anomalous, "outside")
        if self.labeled_from == "inside" and k > n_anomalous and beyond.serves((n_normal, n_anomalous, k), wants):
            found.append("labeled_from=outside")
        return found


def _floor(value: float | np.ndarray) -> Any:
    """Rounds down, forgiving the error of binary fractions: 0.29 * 100 is 29."""
    return np.floor(np.asarray(value) + 1e-9).astype(np.int64)


def _nearest(candidates: np.ndarray, works: np.ndarray, given: int) -> int | None:
    """Returns the working candidate nearest to a number, None if none works."""
    working = candidates[works]
    return int(working[np.argmin(np.abs(working - given))]) if len(working) else None


def _shortest(value: float, works: Callable[[float], bool]) -> float:
    """Rounds a share up to the fewest decimals that still work."""
    for decimals in range(1, 16):
        rounded = round(math.ceil(value * 10**decimals - 1e-9) / 10**decimals, decimals)
        if works(rounded):
            return rounded
    return value

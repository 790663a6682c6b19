"""Scores that are fitted at once, not by gradient: plain tensors, scored by torch alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from elite_pl.models.scores import Score

PIECE = 500  # samples whose distances are taken at a time


class Fitted(Score):
    """A score that is fitted at once, not by gradient: all of it is buffers, whose shapes the data decide."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *options: Any) -> None:
        """Takes the shapes from the state."""
        for name, buffer in self.named_buffers(recurse=False):
            if (kept := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(kept, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *options)

    def check(self, features: int) -> None:
        """Refuses buffers that no fit can have produced, as a file may hold them.

        Args:
            features: Of a flattened sample.

        Raises:
            ValueError: If they are of such shapes or values.
        """
        shapes = {name: tuple(buffer.shape) for name, buffer in self.named_buffers(recurse=False)}
        if shapes != self.shapes(features):
            raise ValueError(f"no {type(self).__name__} of {features} features has the shapes {shapes}")

    def shapes(self, features: int) -> dict[str, tuple[int, ...]]:
        """The shapes that its buffers must have, by their names, for samples of so many features."""
        raise NotImplementedError


class KernelExpansion(Fitted):
    """A kernel machine: `Ω(x) = ρ - Σ_i a_i exp(-γ ||x - x_i||²)` over support vectors x_i, on flattened samples.

    Attributes:
        support: x_i, shape (s, features).
        coefficient: a_i, shape (s,): positive pulls toward normal.
        gamma: γ > 0, shape ().
        offset: ρ, shape ().
    """

    support: Tensor
    coefficient: Tensor
    gamma: Tensor
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("support", torch.zeros(0, 0))
        self.register_buffer("coefficient", torch.zeros(0))
        self.register_buffer("gamma", torch.zeros(()))
        self.register_buffer("offset", torch.zeros(()))

    def set(self, support: Tensor, coefficient: Tensor, gamma: float, offset: float) -> None:
        """Takes a solution; support vectors whose coefficient is 0 are left out."""
        kept = coefficient != 0
        dtype = support.dtype
        self.support, self.coefficient = support[kept], coefficient[kept].to(dtype)
        self.gamma, self.offset = torch.tensor(gamma, dtype=dtype), torch.tensor(offset, dtype=dtype)

    def shapes(self, features: int) -> dict[str, tuple[int, ...]]:
        """See `Fitted.shapes`."""
        support = (len(self.coefficient),)
        return {"support": (*support, features), "coefficient": support, "gamma": (), "offset": ()}

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,), in pieces that need little memory."""
        sample = sample.flatten(1)
        pieces = [sample] if torch.compiler.is_exporting() else sample.split(PIECE)  # a graph cannot count them
        kernels = (rbf(piece, self.support, self.gamma) for piece in pieces)
        return torch.cat([self.offset - kernel @ self.coefficient for kernel in kernels])


def rbf(x: Tensor, y: Tensor, gamma: Tensor | float) -> Tensor:
    """The kernel `k(x, y) = exp(-γ ||x - y||²)`: x (n, features) and y (s, features) give (n, s)."""
    return torch.exp(-gamma * squared_distance(x, y))


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """`||x - y||²`: x (n, features) and y (s, features) give (n, s)."""
    inner = x @ y.T
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * inner).clamp_(min=0)


class Trees(Fitted):
    """The base of ensembles of decision trees: which leaf of each tree a sample ends in.

    All trees stand in one list of nodes. A leaf is its own child on both sides.

    Attributes:
        roots: The trees' first nodes, shape (trees,).
        feature: Index of the feature that a node compares, shape (nodes,).
        threshold: A sample whose feature is at most this goes to the left, shape (nodes,).
        child: Left and right child, shape (nodes, 2).
        depth: Steps from a root to the farthest leaf, shape ().
        steps: The same as a plain number, without which the loop over it could not be exported.
    """

    roots: Tensor
    feature: Tensor
    threshold: Tensor
    child: Tensor
    depth: Tensor
    steps: int

    def __init__(self) -> None:
        super().__init__()
        for name in ("roots", "feature"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.long))
        self.register_buffer("threshold", torch.zeros(0))
        self.register_buffer("child", torch.zeros(0, 2, dtype=torch.long))
        self.register_buffer("depth", torch.zeros((), dtype=torch.long))
        self.steps = 0

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Counts the steps."""
        super()._load_from_state_dict(*arguments)
        self.steps = int(self.depth)

    def grow(self, trees: Sequence[Any]) -> np.ndarray:
        """Takes the structure of scikit-learn's trees, each with its arrays of nodes, the root first.

        Returns:
            The depth of each node: steps from its root, shape (nodes,).
        """
        sizes = [len(tree.feature) for tree in trees]
        roots = np.cumsum([0, *sizes[:-1]])
        children = np.concatenate([np.stack([tree.children_left, tree.children_right], 1) for tree in trees])
        leaf = children[:, 0] < 0
        first = np.repeat(roots, sizes)[:, None]
        children = np.where(leaf[:, None], np.arange(len(leaf))[:, None], children + first)
        depth, level, self.steps = np.zeros(len(leaf)), roots, 0
        while (level := np.setdiff1d(children[level[~leaf[level]]], [])).size:
            self.steps += 1
            depth[level] = self.steps
        threshold = np.concatenate([tree.threshold for tree in trees])
        below = threshold.astype(np.float32)  # the trees compare float32 samples with float64 thresholds
        below = np.where(below > threshold, np.nextafter(below, np.float32(-np.inf)), below)
        self.roots, self.child = torch.as_tensor(roots), torch.as_tensor(children)
        self.feature = torch.as_tensor(np.where(leaf, 0, np.concatenate([tree.feature for tree in trees])))
        self.threshold, self.depth = torch.as_tensor(below), torch.tensor(self.steps)
        return depth

    def shapes(self, features: int) -> dict[str, tuple[int, ...]]:
        """See `Fitted.shapes`."""
        nodes = (len(self.feature),)
        return {"roots": (len(self.roots),), "feature": nodes, "threshold": nodes, "child": (*nodes, 2), "depth": ()}

    def check(self, features: int) -> None:
        """Refuses nodes that lead out of their trees, and trees that have no end."""
        super().check(features)
        nodes = len(self.feature)
        for place, end in ((self.roots, nodes), (self.child, nodes), (self.feature, features), (self.depth, nodes + 1)):
            if place.is_floating_point() or not place.numel() or place.min() < 0 or place.max() >= end:
                raise ValueError("nodes lead out of their trees")

    def leaves(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to the nodes that they end in, shape (n, trees)."""
        sample = sample.flatten(1).float()
        node = self.roots.expand(sample.shape[0], -1)
        for _ in range(self.steps):
            right = sample.gather(1, self.feature[node]) > self.threshold[node]
            node = self.child[node, right.long()]
        return node


class IsolationTrees(Trees):
    """An isolation forest: `Ω(x) = 2^(-E[h(x)] / c)`, with the path length h(x) averaged over the trees, in (0, 1).

    Source: Liu, Ting and Zhou, "Isolation Forest", ICDM 2008, Eq. 2.

    Attributes:
        path: h of the samples that end in a node, shape (nodes,).
        normaliser: c, the mean path length of a tree of so many samples, shape ().
    """

    path: Tensor
    normaliser: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("path", torch.zeros(0))
        self.register_buffer("normaliser", torch.ones(()))

    def shapes(self, features: int) -> dict[str, tuple[int, ...]]:
        """See `Fitted.shapes`."""
        return super().shapes(features) | {"path": (len(self.feature),), "normaliser": ()}

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        depth = self.path[self.leaves(sample)].double().mean(1)  # in float32 it depends on the order of the samples
        return torch.exp2(-depth / self.normaliser).to(self.path.dtype)


class ClassTrees(Trees):
    """Trees that tell anomalies from normal samples: Ω is the anomalies' share of a leaf, averaged over the trees.

    Attributes:
        share: Of anomalies among the training samples of a node, by weight, shape (nodes,).
    """

    share: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.zeros(0))

    def shapes(self, features: int) -> dict[str, tuple[int, ...]]:
        """See `Fitted.shapes`."""
        return super().shapes(features) | {"share": (len(self.feature),)}

    def grow(self, trees: Sequence[Any]) -> np.ndarray:
        """See `Trees.grow`; the trees' classes are normal and anomalous, in this order."""
        weight = np.concatenate([tree.value[:, 0] for tree in trees])
        self.share = torch.as_tensor(weight[:, 1] / weight.sum(1), dtype=torch.float32)
        return super().grow(trees)

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        return self.share[self.leaves(sample)].mean(1)


class Linear(Fitted):
    """A linear function: `Ω(x) = <w, x> + b`, on flattened samples.

    Attributes:
        weight: w, shape (features,).
        bias: b, shape ().
    """

    weight: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(0))
        self.register_buffer("bias", torch.zeros(()))

    def shapes(self, features: int) -> dict[str, tuple[int, ...]]:
        """See `Fitted.shapes`."""
        return {"weight": (features,), "bias": ()}

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        return sample.flatten(1) @ self.weight + self.bias


class NeighborMean(Fitted):
    """The mean value of the nearest training samples, by their places in a linear subspace.

    Attributes:
        mean: Subtracted from a flattened sample, shape (features,).
        components: Rows that span the subspace, shape (dimensions, features).
        unit_length: Whether the places are scaled to length 1, so that angles tell who is near, shape ().
        embedding: The places of the training samples, shape (N, dimensions).
        value: Of each training sample, shape (N,).
        weight: Of the nearest, the second nearest, …, in the mean, shape (neighbors,).
    """

    mean: Tensor
    components: Tensor
    unit_length: Tensor
    embedding: Tensor
    value: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("mean", "value", "weight"):
            self.register_buffer(name, torch.zeros(0))
        for name in ("components", "embedding"):
            self.register_buffer(name, torch.zeros(0, 0))
        self.register_buffer("unit_length", torch.zeros((), dtype=torch.bool))

    def shapes(self, features: int) -> dict[str, tuple[int, ...]]:
        """See `Fitted.shapes`."""
        samples, dimensions = len(self.value), len(self.components)
        return {
            "mean": (features,),
            "value": (samples,),
            "weight": (min(len(self.weight), samples),),
            "components": (dimensions, features),
            "embedding": (samples, dimensions),
            "unit_length": (),
        }

    def embed(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to their places, shape (n, dimensions)."""
        place = (sample.flatten(1) - self.mean) @ self.components.T
        return torch.where(self.unit_length, functional.normalize(place), place)

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        distance = squared_distance(self.embed(sample), self.embedding)
        nearest = distance.topk(len(self.weight), largest=False).indices
        return self.value[nearest] @ self.weight

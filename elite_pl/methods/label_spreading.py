"""Label spreading: labels flow along a graph of nearest neighbors through the unlabeled samples."""

from typing import Annotated, Any, Literal

import torch

from elite_pl import seeding
from elite_pl.annotations import Range, at_least, checked
from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.shallow import ShallowDetector
from elite_pl.models.fitted import NeighborMean


class LabelSpreading(ShallowDetector):
    """scikit-learn's label spreading over all training samples, on principal components of raw features.

    An edge of the graph weighs 1 where both samples are among the nearest of the other, and 1/2 where one is. A
    training sample's value is the anomalies' share of what has reached it, 1/2 where nothing has. Ω of a sample, seen
    or new, is the mean value of the training samples nearest to it: unlike scikit-learn's prediction for new samples it
    may look at another number of neighbors than the graph has.

    Source: Zhou et al., "Learning with Local and Global Consistency", NIPS 2003.

    Args:
        components: How many principal components; all where there are fewer.
        metric: Which samples are near: by the `"euclidean"` distance, or by the `"cosine"` of the centered samples.
        graph_neighbors: How many nearest samples of a sample, itself among them, the graph joins it to.
        alpha: α in (0, 1): the share that a sample takes from its neighbors at each step, and not from its own label.
        score_neighbors: Training samples whose mean is Ω.
        **detector: See `ShallowDetector`.
    """

    score: NeighborMean
    needs_labels = True
    needs_of_each_kind = 1

    @checked
    def __init__(
        self,
        *,
        components: Annotated[int, at_least(1)],
        metric: Literal["euclidean", "cosine"],
        graph_neighbors: Annotated[int, at_least(2)],
        alpha: Annotated[float, Range("a number in (0, 1)", lambda alpha: 0 < alpha < 1)],
        score_neighbors: Annotated[int, at_least(1)],
        **detector: Any,
    ) -> None:
        super().__init__(score=NeighborMean(), **detector)
        self.components, self.metric, self.alpha = components, metric, alpha
        self.graph_neighbors, self.score_neighbors = graph_neighbors, score_neighbors

    def fit(self, data: PollutedData) -> None:
        """Spreads the labels, and keeps the training samples with what has reached them."""
        from sklearn.decomposition import PCA
        from sklearn.neighbors import kneighbors_graph
        from sklearn.semi_supervised import LabelSpreading as Spreading

        x, label = self.training_samples(data)
        seed = seeding.derive(data.seed, "principal components") % 2**32
        pca = PCA(min(self.components, *x.shape), random_state=seed).fit(x.numpy())
        score = self.score
        score.mean, score.components = torch.as_tensor(pca.mean_), torch.as_tensor(pca.components_)
        score.unit_length = torch.tensor(self.metric == "cosine")
        score.embedding = score.embed(x)
        place = score.embedding.numpy()
        nearest = kneighbors_graph(place, min(self.graph_neighbors, len(x)), include_self=True)
        graph = (nearest + nearest.T) / 2
        spreading = Spreading(kernel=lambda *_: graph, alpha=self.alpha, max_iter=100_000)
        kind = torch.where(label == 0, -1, (label < 0).long())  # -1: unlabeled
        normal, anomalous = spreading.fit(place, kind.numpy()).label_distributions_.T
        score.value = torch.as_tensor((1 + anomalous - normal) / 2, dtype=x.dtype)
        neighbors = min(self.score_neighbors, len(x))
        score.weight = torch.full((neighbors,), 1 / neighbors, dtype=x.dtype)

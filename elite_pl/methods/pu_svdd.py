"""PUSVDD: Deep SVDD whose risk on normal samples is worked out from unlabeled samples and labeled anomalies."""

from torch import Tensor

from elite_pl.algorithm.losses import mean_where, positive_unlabeled
from elite_pl.data.datamodule import Batch
from elite_pl.methods.contaminated import Contaminated


class PuSvdd(Contaminated):
    """Minimizes the risk of `losses.positive_unlabeled`; it has no use for labeled normal samples.

    Source: Takahashi et al., "Deep Positive-Unlabeled Anomaly Detection for Contaminated Unlabeled Data", 2024,
    arXiv 2405.18929.
    """

    needs_labels = True
    needs_labeled_anomalies = True

    def loss(self, batch: Batch) -> Tensor:
        """The risk, estimated from the two batches."""
        if self.warming_up:
            return self.unlabeled_score(batch).mean()
        unlabeled, labeled = self.scores(batch)
        anomalous = batch["labeled_y"] < 0
        self.observe(contamination=self.contamination)
        normal_loss, loss = mean_where(anomalous, labeled), mean_where(anomalous, self.anomaly_loss(labeled))
        return positive_unlabeled(unlabeled, normal_loss, loss, self.contamination)

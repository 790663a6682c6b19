"""The methods of which a test runs the command on the digits, each with its own configuration, until it solves them."""

CONTAMINATED = ("loe_hard", "loe_soft", "refine", "soel", "pu_svdd")
SUFFERING = {  # what treats unlabeled samples as normal
    "devnet": (),
    "deep_svdd": (),
    "autoencoder": (),
    "deep_sad": ("method.average=samples", "method.eta=1"),
}
NETWORKS = (*CONTAMINATED, *SUFFERING, "elite_svdd", "elite_ae", "labels_only", "oracle", "prenet", "rosas")
FROM_LABELS = ("extra_trees", "logistic_regression", "label_spreading", "self_training")
SHALLOW = ("isolation_forest", "ocsvm", "ssad", *FROM_LABELS)

"""Public addresses of what a configuration can name, and what they were called before.

A `_target_` is part of `config_hash` and stands in every `detector.pt`. So configurations give short public addresses,
which outlive the layout of the files; the hash goes on seeing the old ones, and files that hold old ones stay readable.
"""

from typing import Any

# Of what was there at commit 31a127d: public address -> the address then. What has come since has one address only.
OLD = {
    "elite_pl.data.digits": "elite_pl.sources.digits",
    "elite_pl.data.npz": "elite_pl.sources.npz",
    "elite_pl.data.torchvision_set": "elite_pl.sources.torchvision_set",
    "elite_pl.models.auto": "elite_pl.networks.auto",
    "elite_pl.models.lenet": "elite_pl.networks.lenet",
    "elite_pl.models.mlp": "elite_pl.networks.mlp",
    "elite_pl.models.strided": "elite_pl.networks.strided",
    "elite_pl.models.Hypersphere": "elite_pl.scores.Hypersphere",
    "elite_pl.models.Reconstruction": "elite_pl.scores.Reconstruction",
    "elite_pl.models.RobustSubspace": "elite_pl.scores.RobustSubspace",
    "elite_pl.models.ScalarHead": "elite_pl.scores.ScalarHead",
    "elite_pl.methods.DeepSad": "elite_pl.methods.deep_sad.DeepSad",
    "elite_pl.methods.DeepSvdd": "elite_pl.methods.deep_svdd.DeepSvdd",
    "elite_pl.methods.DevNet": "elite_pl.methods.devnet.DevNet",
    "elite_pl.methods.Elite": "elite_pl.methods.elite.Elite",
    "elite_pl.methods.IsolationForest": "elite_pl.methods.isolation_forest.IsolationForest",
    "elite_pl.methods.LabelsOnly": "elite_pl.methods.labels_only.LabelsOnly",
    "elite_pl.methods.LatentOutlierExposure": "elite_pl.methods.loe.LatentOutlierExposure",
    "elite_pl.methods.Ocsvm": "elite_pl.methods.ocsvm.Ocsvm",
    "elite_pl.methods.Oracle": "elite_pl.methods.oracle.Oracle",
    "elite_pl.methods.PuSvdd": "elite_pl.methods.pu_svdd.PuSvdd",
    "elite_pl.methods.Rsrae": "elite_pl.methods.rsrae.Rsrae",
    "elite_pl.methods.Soel": "elite_pl.methods.soel.Soel",
    "elite_pl.methods.Ssad": "elite_pl.methods.ssad.Ssad",
    "elite_pl.runs.Ddp": "elite_pl.launch.Ddp",
}
PUBLIC = {old: public for public, old in OLD.items()}


def renamed(node: Any, names: dict[str, str]) -> Any:
    """A copy of a plain configuration whose `_target_`s are renamed, at any depth.

    Args:
        node: Dictionaries, lists and scalars.
        names: `OLD` or `PUBLIC`; a target that is not in it stays.
    """
    if isinstance(node, dict):
        return {
            key: names.get(value, value) if key == "_target_" and isinstance(value, str) else renamed(value, names)
            for key, value in node.items()
        }
    return [renamed(item, names) for item in node] if isinstance(node, list) else node

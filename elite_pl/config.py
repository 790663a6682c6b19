"""The keys that a person types: their types, their ranges, their explanations, and errors that name them."""

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import hydra.utils
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from elite_pl.addresses import PUBLIC, renamed
from elite_pl.errors import InputError


def _key(help: str) -> Any:
    """A root key, whose value stands in `conf/train.yaml` and whose explanation is shown by `--help`."""
    return field(default=MISSING, metadata={"help": help})


@dataclass
class Config:
    """The root of the configuration. Values are in `conf/train.yaml`."""

    pollution: float = _key("r_p: share of anomalies in the training set, labeled ones included, in [0, 1)")
    label_ratio: float = _key("r_l: share of the training set that is labeled, half normal and half anomalous")
    normal_class: int | str = _key("the class that is normal, by number or name; all others are anomalies")
    n_train: int | None = _key("size of the training set; null: every normal sample there is")
    batch_size: int = _key("n: unlabeled samples in a batch, over all processes")
    labeled_batch_size: int | None = _key("m: labeled samples in a batch, class-balanced; null: all, at every step")
    epochs: int = _key("passes over the unlabeled samples")
    seed: int = _key("of the split, the initial network and the order of batches, each a stream of its own")
    threads: int | None = _key("CPU threads; null: PyTorch's choice")
    study: str = _key("name under which runs are kept together: a folder, and the group in W&B")
    output_dir: str = _key("folder of all studies; a run is OUTPUT_DIR/STUDY/<dataset>/<method>/<coordinates>-<hash>/")
    reuse: list[str] = _key("studies and files of cells whose finished runs are taken over instead of run again")
    dataset: Any = _key("what to learn from")
    backbone: Any = _key("the networks; auto picks them by the shape of a sample")
    method: Any = _key("the detector")
    augmentation: Any = _key("random changes of training samples, and views at test time")
    trainer: Any = _key("where it is trained")
    logger: Any = _key("where curves are drawn; history.csv is always written")
    callbacks: Any = _key("what is done besides, at the end of an epoch or a step: Lightning's callbacks, by name")


GROUPS = ("dataset", "backbone", "method", "augmentation", "trainer", "logger", "callbacks")

HELP = """\
elite_pl: deep anomaly detection when the training data is dirty (ELITE, KDD 2021)

  python -m elite_pl.train                                   embedded digits, seconds, no download
  python -m elite_pl.train dataset=cifar10 pollution=0.5
  python -m elite_pl.train -m method=elite_svdd,deep_sad 'normal_class=range(10)' seed=0,1,2

Type KEY=VALUE for any key below, GROUP.KEY=VALUE for a key of a group; -m runs every combination of the values that are
given with commas. The last line on standard output is the run's directory. A finished run is skipped.

Keys
{keys}

Groups
{groups}
  {experiment:<{width}} a named set of values, in conf/experiment/

Choices
$APP_CONFIG_GROUPS
--cfg job shows all values, --cfg job --resolve what they come to. Exit code: 0 success, 2 bad input, 1 failure.
"""


def _help() -> str:
    """The text of `--help`, from the fields of `Config`."""
    explained = {f.name: f.metadata["help"] for f in fields(Config)}
    width = max(map(len, explained))

    def lines(names: list[str]) -> str:
        return "\n".join(f"  {name:<{width}} {explained[name]}" for name in names)

    keys = [name for name in explained if name not in GROUPS]
    return HELP.format(keys=lines(keys), groups=lines(list(GROUPS)), experiment="experiment", width=width)


def register() -> None:
    """Tells Hydra of the schema and of the help text."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="hydra/help", name="elite_pl", node={"app_name": "elite_pl", "template": _help()})


def check(config: Config) -> None:
    """Refuses a value out of its range.

    Raises:
        InputError: Names the key.
    """
    rules = [
        ("pollution", 0 <= config.pollution < 1, "must be in [0, 1), the share of anomalies"),
        ("label_ratio", 0 <= config.label_ratio < 1, "must be in [0, 1), the share of labeled samples"),
        ("n_train", config.n_train is None or config.n_train >= 2, "must be at least 2, or null"),
        ("batch_size", config.batch_size >= 2, "must be at least 2, for batch statistics"),
        (
            "labeled_batch_size",
            config.labeled_batch_size is None or config.labeled_batch_size >= 2,
            "must be 2 or more",
        ),
        ("epochs", config.epochs >= 1, "must be at least 1"),
        ("seed", config.seed >= 0, "must not be negative"),
        ("threads", config.threads is None or config.threads >= 1, "must be at least 1, or null"),
        (
            "study",
            re.fullmatch(r"\w([\w.-]{0,58}\w)?", config.study),
            "must be a plain folder name: up to 60 letters, digits, and . _ - between them",
        ),
        ("output_dir", not config.output_dir.startswith("~"), "must be a whole path, ~ has no meaning here"),
    ]
    for key, ok, rule in rules:
        if not ok:
            raise InputError(f"{key}={getattr(config, key)}: {rule}")


def plain(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries, lists and scalars, with all references resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def instantiate(key: str, node: Any) -> Any:
    """The one place where a config node (`_target_` and its arguments) becomes Python.

    Args:
        key: Where the node stands in the configuration.
        node: The node.

    Returns:
        A callable that takes the arguments that are known at run time only.

    Raises:
        InputError: If a value is not of the type that its argument is annotated with; names the key.
    """
    node = renamed(plain(node) if OmegaConf.is_config(node) else node, PUBLIC)
    _check_types(key, node)
    return hydra.utils.instantiate(node, _partial_=True, _convert_="all")


def _check_types(key: str, node: Any) -> None:
    """Compares the values of a node, and of those in it, with the annotations of their constructors."""
    if isinstance(node, str | int | float | bool):
        raise InputError(f"{key}={node}: is no value but a group of keys; give {key}._target_ and its arguments")
    if not isinstance(node, dict) or "_target_" not in node:
        return
    try:
        accepted = _annotations(hydra.utils.get_object(node["_target_"]))
    except Exception as error:  # whatever the import stumbles over
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"{key}._target_={node['_target_']}: cannot be imported ({reason})") from error
    for name, value in node.items():
        if isinstance(value, dict):
            _check_types(f"{key}.{name}", value)
        elif name in accepted and not _is_of(value, accepted[name]):
            raise InputError(f"{key}.{name}={_typed(value)}: must be {_words(accepted[name])}")


def _annotations(target: Any) -> dict[str, Any]:
    """The types of a callable's arguments by name; of a class also those that it hands on to its bases."""
    found: dict[str, Any] = {}
    classes = reversed(target.__mro__) if isinstance(target, type) else []
    for function in [vars(base).get("__init__") for base in classes] or [target]:
        with contextlib.suppress(Exception):  # an annotation that cannot be looked up tells nothing
            found |= get_type_hints(function)
    return found


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a plain value may be meant for an annotation; what is not plain is none of our business."""
    if get_origin(kind) in (Union, UnionType):
        return any(_is_of(value, part) for part in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in _PLAIN:
        return isinstance(value, _PLAIN[kind]) and (kind is bool or not isinstance(value, bool))
    if get_origin(kind) in (list, tuple, Sequence) and isinstance(value, list):
        parts = [part for part in get_args(kind) if part is not Ellipsis]
        return all(any(_is_of(item, part) for part in parts) for item in value)
    plain_only = get_origin(kind) in (list, tuple, Sequence, Callable) or isinstance(kind, type)
    return not (plain_only and kind is not object and isinstance(value, str | int | float | bool | None))


_PLAIN: dict[Any, Any] = {int: int, float: (int, float), str: str, bool: bool, type(None): type(None)}
_CALLED = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", type(None): "null"}


def _words(kind: Any) -> str:
    """What a value of a type is called."""
    if get_origin(kind) in (Union, UnionType):
        plain_parts = [part for part in get_args(kind) if part in _CALLED or get_origin(part) is not None]
        return " or ".join(dict.fromkeys(map(_words, plain_parts)))
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in (list, tuple, Sequence):
        return "a list, such as [1, 2]"
    return _CALLED.get(kind, "a group of keys with a _target_")


def _typed(value: Any) -> str:
    """A value as a person types it."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))

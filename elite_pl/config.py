"""The keys that a person types: their types, their ranges, their explanations, and errors that name them."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from inspect import isbuiltin
from typing import Annotated, Any, Literal, cast, get_args, get_origin

import hydra.utils
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase
from omegaconf import MISSING, DictConfig, OmegaConf

from elite_pl.addresses import PUBLIC, renamed
from elite_pl.annotations import Fraction, Positive, Share, argument_kinds, at_least
from elite_pl.annotations import check as check_values
from elite_pl.errors import InputError, input_errors

# Hydra's sweeper, which `elite_pl.studies.sweeper.register` replaces.
BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def _key(help: str) -> Any:
    """A root key, whose value stands in `conf/train.yaml` and whose explanation is shown by `--help`."""
    return field(default=MISSING, metadata={"help": help})


@dataclass
class Config:
    """The root of the configuration. Values are in `conf/train.yaml`."""

    pollution: float = _key("r_p: share of anomalies in the training set, labeled ones included, in [0, 1)")
    label_ratio: float = _key("r_l: share of the training set that is labeled, half normal and half anomalous")
    labeled_anomaly_classes: Any = _key("classes that all labeled anomalies come from, numbers or names; null: any")
    label_noise: float = _key("share of the labels that are made wrong, in [0, 1]: to see what that costs")
    normal_class: int | str = _key("the class that is normal, by number or name; all others are anomalies")
    n_train: int | None = _key("size of the training set; null: every normal sample there is")
    batch_size: int = _key("n: unlabeled samples in a batch, over all processes")
    labeled_batch_size: int | None = _key("m: labeled samples in a batch, class-balanced; null: all, at every step")
    epochs: int = _key("passes over the unlabeled samples")
    seed: int = _key("of the split, the initial network and the order of batches, each a stream of its own")
    ensemble: int = _key("trainings from different seeds that score together, by the mean rarity of their scores")
    threads: int | None = _key("CPU threads; null: PyTorch's choice")
    pictures: bool = _key("whether a run draws its pictures, which takes half a second of it")
    study: int | str = _key("name under which runs are kept together: a folder, and the group in W&B")
    output_dir: Any = _key("folder of all studies; a run is OUTPUT_DIR/STUDY/<dataset>/<method>/<coordinates>-<hash>/")
    reuse: list[str] = _key("studies and files of cells whose finished runs are taken over instead of run again")
    dataset: Any = _key("what to learn from")
    backbone: Any = _key("the networks; auto picks them by the shape of a sample")
    method: Any = _key("the detector")
    feature_map: Any = _key("map from samples to what every method sees: richer features, or oriented gradients")
    augmentation: Any = _key("random changes of training samples, and views at test time")
    trainer: Any = _key("where it is trained")
    threshold: Any = _key("how the threshold is chosen, the score above which a sample is called an anomaly")
    logger: Any = _key("where curves are drawn; history.csv is always written")
    callbacks: Any = _key("Lightning's callbacks, by name, besides those that every run needs")


@dataclass(frozen=True)
class Threshold:
    """The keys of the group `threshold`. Values and explanations are in `conf/threshold/crossfit.yaml`."""

    scores: Literal["auto", "cross_fitted", "fitted"]
    rule: Literal["cost", "false_alarm_rate", "contamination"]
    cost_missed: Positive
    cost_false_alarm: Positive
    false_alarm_rate: Share
    contamination: Fraction | None
    folds: Annotated[int, at_least(2)] | None
    fewest: Annotated[int, at_least(2)]


@dataclass
class Sweeper:
    """The keys of `hydra.sweeper`, see `elite_pl.studies.sweeper`: how a sweep is run, and so no part of a run."""

    _target_: str = BASIC
    max_batch_size: int | None = None  # cells that a launcher of several processes gets at a time; null: all
    params: dict[str, str] | None = None
    stack: int | None = None  # cells on vectors that are trained as one; null: each by itself


THRESHOLD = [field.name for field in fields(Threshold)]

GROUPS = ("dataset", "backbone", "method", "feature_map", "augmentation", "trainer", "threshold", "logger", "callbacks")
# Keys of groups without which nothing can be said of a run.
NAMED = ("dataset.name", "dataset.source._target_", "backbone._target_", "method._target_", "method.name")
HYDRA = ("_target_", "_partial_", "_convert_", "_recursive_")  # what a node has besides the arguments of its target

HELP = """\
elite_pl: deep anomaly detection when the training data is dirty (ELITE, KDD 2021)

  python -m elite_pl.train                                   embedded digits, seconds, no download
  python -m elite_pl.train dataset=cifar10 pollution=0.5
  python -m elite_pl.train -m method=elite_svdd,deep_sad 'normal_class=range(10)' seed=0,1,2

Type KEY=VALUE for any key below, GROUP.KEY=VALUE for a key of a group; -m runs every combination of the values that are
separated by commas. The last line on standard output is the run's directory. A finished run is skipped.

Keys
{keys}

Groups
{groups}
  {experiment:<{width}} a named set of values, in conf/experiment/
  {score:<{width}} Ω of a method on a center, a reconstruction or a readout

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
    return HELP.format(
        keys=lines(keys), groups=lines(list(GROUPS)), experiment="experiment", score="score@method.score", width=width
    )


def register() -> None:
    """Tells Hydra of the schema and of the help text."""
    store = ConfigStore.instance()
    store.store(name="elite_pl_schema", node=Config)
    store.store(group="hydra/sweeper", name="elite_pl", node=Sweeper)
    store.store(group="hydra/help", name="elite_pl", node={"app_name": "elite_pl", "template": _help()})


def check(config: Config) -> None:
    """Refuses a value out of its range.

    Raises:
        InputError: Names the key.
    """
    for group in GROUPS:
        if OmegaConf.is_missing(config, group) or not OmegaConf.is_dict(getattr(config, group)):
            raise InputError(f"{group}: has no value; give {group}=NAME, one of those that --help lists")
    most = 2**31 - 1
    rules = [
        ("pollution", 0 <= config.pollution < 1, "must be in [0, 1), the share of anomalies"),
        ("label_ratio", 0 <= config.label_ratio < 1, "must be in [0, 1), the share of labeled samples"),
        ("label_noise", 0 <= config.label_noise <= 1, "must be in [0, 1], the share of wrong labels"),
        ("n_train", config.n_train is None or 2 <= config.n_train <= most, f"must be from 2 to {most}, or null"),
        ("batch_size", config.batch_size >= 2, "must be at least 2, for batch statistics"),
        (
            "labeled_batch_size",
            config.labeled_batch_size is None or config.labeled_batch_size >= 2,
            "must be 2 or more",
        ),
        ("epochs", config.epochs >= 1, "must be at least 1"),
        ("seed", config.seed >= 0, "must not be negative"),
        ("ensemble", 1 <= config.ensemble <= 100, "must be from 1 to 100 trainings"),
        ("threads", config.threads is None or config.threads >= 1, "must be at least 1, or null"),
        (
            "study",
            re.fullmatch(r"\w([\w.-]{0,58}\w)?", str(config.study)),
            "must be a plain folder name: up to 60 letters, digits, and . _ - between them",
        ),
        (
            "output_dir",
            isinstance(folder := config.output_dir, str) and folder.strip() and not folder.startswith("~"),
            "must be the path of a folder; one that looks like a number needs quotes, and ~ has no meaning here",
        ),
    ]
    for key, ok, rule in rules:
        if not ok:
            raise InputError(f"{key}={getattr(config, key)}: {rule}")
    with input_errors("threshold", THRESHOLD):
        check_values(threshold(config.threshold).__dict__, argument_kinds(Threshold))
    for key in NAMED:
        if not isinstance(OmegaConf.select(cast(Any, config), key), str):
            raise InputError(f"{key}: is required: a word, as in the options that --help lists")


def threshold(node: Mapping[str, Any]) -> Threshold:
    """The keys of the group `threshold` in a configuration.

    Raises:
        InputError: If there are others, or one is not there.
    """
    if strange := {*map(str, node)} ^ {*THRESHOLD}:
        key = min(strange)
        raise InputError(f"threshold.{key}: {'has no value' if key in THRESHOLD else 'there is no such key'}")
    return Threshold(**node)


def compose(overrides: Sequence[str]) -> Config:
    """The configuration of the command with these overrides, for a process that may have a Hydra of its own.

    Args:
        overrides: `KEY=VALUE`, as they are typed.

    Raises:
        HydraException, OmegaConfBaseException, ValueError: If one means nothing; see `cli.one_line`.
    """
    running, base = GlobalHydra.instance(), VersionBase.instance()
    before = running.hydra, base.getbase()
    running.clear()
    try:
        register()
        with hydra.initialize_config_module("elite_pl.conf", version_base="1.3"):
            return cast(Config, hydra.compose("train", list(overrides)))
    finally:
        GlobalHydra.instance().hydra, base.version_base = before


def plain(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries, lists and scalars, with all references resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def settle(config: DictConfig, open_keys: Collection[str]) -> None:
    """Resolves in place the references that do not lead to the given root keys: resolving at each access is slow.

    Args:
        config: A composed configuration.
        open_keys: The root keys, which may still change.
    """
    raw, resolved = cast(dict[str, Any], OmegaConf.to_container(config)), plain(config)

    def leads_there(place: tuple[str, ...]) -> bool:
        value = _at(raw, place)
        if place[0] in open_keys or isinstance(value, dict | list):
            return True
        if not isinstance(value, str) or "${" not in value:
            return False
        names = re.findall(r"\$\{(\.*)([\w.]+)\}", value)
        if len(names) != value.count("${"):
            return not value.startswith("${oc.env:")
        return any(leads_there((*(place[: -len(up)] if up else ()), *name.split("."))) for up, name in names)

    for place in _references(raw):
        if not leads_there(place):
            OmegaConf.update(config, ".".join(place), _at(resolved, place))


def _references(node: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places of the references in nested dictionaries."""
    for key, value in node.items():
        if not str(key).isidentifier():
            continue  # no part of a dotted place
        if isinstance(value, dict):
            yield from _references(value, (*above, key))
        elif isinstance(value, str) and "${" in value:
            yield (*above, key)


def _at(node: Any, place: tuple[str, ...]) -> Any:
    for key in place:
        node = node[key] if isinstance(node, dict) else None
    return node


@dataclass(frozen=True)
class Constructor:
    """A node of the configuration as a callable, which takes the arguments that are known at run time only.

    Attributes:
        key: Where the node stands in the configuration.
        target: The function or class that its `_target_` names.
        arguments: Its other values; nodes among them are constructors, or what these have made.
        kind: The class of what it makes.
    """

    key: str
    target: Callable[..., Any]
    arguments: dict[str, Any]
    kind: type

    def __call__(self, *values: Any, **options: Any) -> Any:
        """Calls the target.

        Raises:
            InputError: If it refuses an argument, or makes something else; names the key.
        """
        with input_errors(self.key, self.arguments, (TypeError, ValueError, ArithmeticError)):
            made = self.target(*values, **{**self.arguments, **options})
        if not isinstance(made, self.kind):
            raise InputError(f"{self.key}._target_: makes a {type(made).__name__}; must make a {self.kind.__name__}")
        return made


def instantiate(key: str, node: Any, kind: type = object) -> Constructor:
    """The one place where a config node (`_target_` and its arguments) becomes Python.

    Args:
        key: Where the node stands in the configuration.
        node: The node.
        kind: The class of what it is to make.

    Raises:
        InputError: If the target cannot make that, or a value is not what its argument is annotated with; names the
            key.
    """
    if not OmegaConf.is_config(node):
        return _constructor(key, renamed(node, PUBLIC), kind)
    try:
        return _constructor(key, renamed(plain(node), PUBLIC), kind)
    except InputError as error:
        raise InputError(_where_typed(str(error), key, node)) from error


def _where_typed(message: str, key: str, node: Any) -> str:
    """A message about an argument of a node that is only a reference to a key beside the node, which a person types."""
    written: Any = OmegaConf.to_container(node, resolve=False)
    for name, value in written.items() if isinstance(written, dict) else ():
        if value == f"${{..{name}}}" and message.startswith(f"{key}.{name}="):
            return f"{key.rpartition('.')[0]}{message.removeprefix(key)}"
    return message


def _constructor(key: str, node: Any, kind: type) -> Constructor:
    if not isinstance(node, dict):
        raise InputError(f"{key}={node}: is no value but a group of keys; give {key}._target_ and its arguments")
    if not isinstance(address := node.get("_target_"), str):
        raise InputError(f"{key}._target_: is required: a class or function, as in conf/")
    try:
        target = hydra.utils.get_object(address)
    except Exception as error:  # whatever the import stumbles over
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"{key}._target_={address}: cannot be imported ({reason})") from error
    kinds = argument_kinds(target)
    made = target if isinstance(target, type) else kinds.get("return", Any)
    fits = made is Any or not isinstance(made, type) or issubclass(made, kind) or issubclass(kind, made)
    if kind is not object and not (fits and callable(target) and not isbuiltin(target)):
        raise InputError(f"{key}._target_={address}: must be a class or function that makes a {kind.__name__}")
    given = {name: value for name, value in node.items() if name not in HYDRA}
    with input_errors(key, given):
        check_values({name: value for name, value in given.items() if not isinstance(value, dict)}, kinds)
    if node.get("_recursive_") is False:
        return Constructor(key, target, given, kind)
    arguments = {name: _argument(f"{key}.{name}", value, _made_by(kinds.get(name))) for name, value in given.items()}
    return Constructor(key, target, arguments, kind)


def _argument(key: str, value: Any, kind: type) -> Any:
    """A value with the nodes in it as Python."""
    if isinstance(value, list):
        return [_argument(f"{key}.{i}", item, object) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "_target_" not in value:
        return {name: _argument(f"{key}.{name}", item, object) for name, item in value.items()}
    make = _constructor(key, value, kind)
    return make if value.get("_partial_") else make()


def _made_by(annotation: Any) -> type:
    """The return type of an annotated callable: of `Callable[..., Score] | None`, `Score`."""
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Callable and isinstance(made := get_args(part)[1], type):
            return made
    return object

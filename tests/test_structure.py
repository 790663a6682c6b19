"""What no single module can check: the direction of imports, that every config file is used, and what files name."""

import functools
import graphlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import packages
import pytest
from easy_cases import NETWORKS, SHALLOW
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import OmegaConf
from PIL import Image

from elite_pl import config

PROJECT = Path(__file__).parents[1]
CONF = PROJECT / "conf"

# ------------------------------------------------------------------------------------------------------------ imports

# What comes from outside has its place too: a package, and the rooms or modules that may import it.
PLACES = {
    "hydra": {"config", "cli", "studies", "train", "search"},
    "matplotlib": {"runs.plots", "report.figures"},
    "optuna": {"search"},
    "pandas": {"studies.read"},
    "PIL": {"data.sources.images", "deployment.standalone", "report.gallery"},
    "piqp": {"methods.ssad"},
    "polars": {"data.sources.table", "data.sources.table_parts", "deployment.outputs"},
    "pyod": {"runs.pyod_detector"},
    "pytorch_lightning": {"data.datamodule", "methods", "runs"},
    "scipy": {"report.statistics"},
    "sklearn": {
        "methods.extra_trees",
        "methods.isolation_forest",
        "methods.label_spreading",
        "methods.logistic_regression",
        "methods.ocsvm",
        "methods.self_training",
        "runs.estimator",
        "runs.pyod_detector",
    },
    "timm": {"models.pretrained"},
    "torchvision": {"data.sources.torchvision_sets", "models.pretrained"},
    "wandb": {"runs.loggers", "report.dashboard"},
}
OUTSIDE_OF_ALGORITHM = {"torch", "torchmetrics", "numpy"}


GRAPH = packages.build_graph()
MODULES = packages.own_modules(GRAPH)


def test_imports_go_downward():
    order = list(packages.ROOMS).index
    upward = [f"{a} imports {b}" for a, b in packages.arrows(GRAPH) if order(b) > order(a)]
    assert not upward
    assert {packages.room(module) for module in MODULES} == set(packages.ROOMS), "a room is empty"


def test_there_are_no_cycles():
    imports = {module: GRAPH.find_modules_directly_imported_by(module) & MODULES for module in MODULES}
    graphlib.TopologicalSorter(imports).prepare()


def test_what_comes_from_outside_stays_in_its_place():
    for package, places in PLACES.items():
        found = {module.removeprefix("elite_pl.") for module in GRAPH.find_modules_that_directly_import(package)}
        used = {place for module in found for place in places if f"{module}.".startswith(f"{place}.")}
        astray = {module for module in found if not any(f"{module}.".startswith(f"{place}.") for place in places)}
        assert not astray and used == places, package
    algorithm = [module for module in MODULES if packages.room(module) == "algorithm"]
    others = {name for module in algorithm for name in GRAPH.find_modules_directly_imported_by(module)} - MODULES
    assert others - set(sys.stdlib_module_names) <= OUTSIDE_OF_ALGORITHM


def test_the_picture_of_the_rooms_is_of_these_imports():
    assert (PROJECT / "docs" / "packages.md").read_text() == packages.diagram(), "make map"


def test_who_calls_a_method_reads_nothing_of_configurations():
    for name in ("models", "methods"):
        for path in (PROJECT / "elite_pl" / name).glob("*.py"):
            told = re.findall(r"InputError|\"[^\"]*\b(?:method|backbone|dataset|trainer)\.\w+=", path.read_text())
            assert not told, (path, told)


# ------------------------------------------------------------------------------------------------------------- configs

SHORT = ("epochs=1", "batch_size=32", "threads=1")
KNOWN = ("image_folder", "npy", "table", "tables", "new_tables")  # whose labels are, so that nothing is split

# Groups whose options are a part of another group, as they are typed.
PLACED = {"score": "score@method.score"}

FEWER_TRAININGS = [
    *(f"method.candidates.vectors.{name}.seeds=1" for name in ("elite_tabular", "elite_on_a_center")),
    "method.folds.vectors=2",
]

# What an option needs beside itself; an option that is not named here runs on the digits.
NEEDS = {
    "augmentation/digits": ["dataset=mnist"],
    "augmentation/clothes": ["dataset=fmnist"],
    "augmentation/photos": ["dataset=cifar10", "augmentation.test_views=2"],
    "feature_map/oriented_gradients": ["dataset=mnist"],
    "backbone/efficientnet_lite0": ["dataset=cifar10", "backbone.image_size=16"],
    "backbone/lenet": ["dataset=mnist"],
    "backbone/lenet_fmnist": ["dataset=fmnist"],
    "backbone/lenet_release": ["dataset=cifar10", "dataset.size=32"],
    "backbone/strided": ["dataset=cifar10", "dataset.size=16", "method=elite_ae"],
    "backbone/timm": ["dataset=cifar10", "backbone.image_size=16", "backbone.model=tiny"],
    "backbone/torchvision": ["dataset=cifar10", "backbone.image_size=16", "backbone.model=mobilenet_v3_small"],
    "method/auto": FEWER_TRAININGS,
    "method/elite_two_scores": FEWER_TRAININGS,
    "method/deep_svdd_published": ["dataset=mnist"],
    "method/elite_svdd_release": ["dataset=mnist"],
    "method/elite_ae_release": ["dataset=fmnist"],
    "dataset/image_folder": ["dataset.path=data/photos"],
    "dataset/npy": ["dataset.path=data/own.npy", "dataset.labels_path=data/labels.npy"],
    "dataset/npz": ["dataset.path=data/own.npz", "n_train=null"],
    "dataset/table": ["dataset.path=data/own.csv"],
}
# The augmentation that `augmentation=auto` takes.
SUITS = {
    "mnist": "digits",
    "fmnist": "clothes",
    "cifar10": "photos",
    "image_folder": "photos",
    "digits": "noise",
    "table": "noise",
}
WEIGHTS = {"backbone/timm": "stand_in_for_timm", "backbone/torchvision": "torchvision_file"}  # fixtures


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


EXPERIMENTS = [name for name in options("experiment") if name != "smoke"]  # which makes another one small
FIGURES = [name for name in EXPERIMENTS if name.startswith("fig")]  # test_sweeper.py runs these


GROUPS = sorted(path.name for path in CONF.iterdir() if list(path.glob("*.yaml")))
OPTIONS = [f"{group}/{option}" for group in GROUPS for option in options(group) if group != "experiment"]


@pytest.fixture(scope="module")
def made_files(tmp_path_factory):
    """Files where the data sets look for them: random pixels instead of the real ones, ten of a class to test on."""
    rng = np.random.default_rng(0)
    folder, y = tmp_path_factory.mktemp("data"), np.repeat(np.arange(10, dtype=np.uint8), 60)
    for name in ("MNIST", "FashionMNIST"):
        raw = folder / name / "raw"
        raw.mkdir(parents=True)
        x = rng.integers(0, 256, (600, 28, 28), dtype=np.uint8)
        for part, every in (("train", 1), ("t10k", 6)):
            images, labels = x[::every], y[::every]
            sizes = np.array([2051, *images.shape], dtype=">i4"), np.array([2049, len(labels)], dtype=">i4")
            (raw / f"{part}-images-idx3-ubyte").write_bytes(sizes[0].tobytes() + images.tobytes())
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(sizes[1].tobytes() + labels.tobytes())
    x = rng.integers(0, 256, (600, 3, 32, 32), dtype=np.uint8)
    np.savez(folder / "cifar10.npz", x_train=x, y_train=y, x_test=x[::6], y_test=y[::6])
    np.savez(folder / "own.npz", x=x[:, 0, :3, 0], y=y)
    known = np.where(y < 2, 1 - 2 * (y % 2.0), 0).astype(int)
    np.save(folder / "own.npy", x[:, 0, :3, 0])
    np.save(folder / "labels.npy", known)
    rows = np.column_stack([x[:, 0, :3, 0], known])
    np.savetxt(folder / "own.csv", rows, fmt="%d", delimiter=",", header="a,b,c,label", comments="")
    for i, place in enumerate(("unlabeled", "unlabeled", "labeled/normal", "labeled/anomaly")):
        (folder / "photos" / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[i].transpose(1, 2, 0)).save(folder / "photos" / place / f"{i}.png")
    return folder


@pytest.fixture
def data_folder(made_files, tmp_path):
    """The same, as `data` in the folder of a test."""
    (tmp_path / "data").symlink_to(made_files)
    return tmp_path / "data"


WITHOUT_PRETRAINING = {"auto", "elite_two_scores", *SHALLOW}


@functools.cache
def composed(*overrides: str):
    """The configuration, which no test changes."""
    config.register()
    with initialize_config_module("elite_pl.conf", version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def short(method: str, data: str, n_train: int = 100) -> tuple[str, ...]:
    """What makes a run of a method short; without a network there is nothing to pre-train."""
    split = () if data in KNOWN else (f"n_train={n_train}", "label_ratio=0.1")
    return (*SHORT, *split, *(() if method in WITHOUT_PRETRAINING else ("method.pretrain_epochs=0",)))


def included(path: Path) -> set[str]:
    """The files of its own group that a config file takes its values from, and those that they do."""
    entries = [entry for entry in OmegaConf.load(path).get("defaults", []) if isinstance(entry, str)]
    paths = [(path.parent / entry.split("@")[0]).with_suffix(".yaml") for entry in entries if entry != "_self_"]
    return {*(str(one.relative_to(CONF)) for one in paths), *(name for one in paths for name in included(one))}


def test_every_config_file_belongs_to_a_group_that_is_tested_here():
    assert set(GROUPS) == {*config.GROUPS, "experiment", *PLACED}
    shared = {
        name for group in GROUPS for option in options(group) for name in included(CONF / group / f"{option}.yaml")
    }
    tested = {"train.yaml", "wandb_sweep.yaml", *(f"{option}.yaml" for option in OPTIONS), *shared}
    tested |= {f"experiment/{name}.yaml" for name in options("experiment")}
    tested |= {f"augmentation/by_dataset/{name}.yaml" for name in SUITS}
    assert {str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml")} == tested


@pytest.mark.parametrize("dataset", SUITS)
def test_augmentation_auto_is_the_one_for_the_data_set(dataset):
    choices = (f"augmentation={name}" for name in ("auto", SUITS[dataset]))
    auto, named = (OmegaConf.to_container(composed(f"dataset={dataset}", choice)) for choice in choices)
    assert named["augmentation"]["_target_"]
    assert {**auto, "hydra": None} == {**named, "hydra": None}


@pytest.mark.parametrize("method", [name for name in options("method") if name.endswith("_augmented")])
def test_augmented_methods_take_it_unless_told_otherwise(method):
    assert composed("dataset=fmnist", f"method={method}").augmentation == composed("augmentation=clothes").augmentation
    assert composed(f"method={method}", "augmentation=none").augmentation._target_ is None


@pytest.mark.parametrize("option", sorted({*OPTIONS} - {f"method/{name}" for name in (*NETWORKS, *SHALLOW)}))
def test_every_option_runs(command, data_folder, offline, monkeypatch, request, option):
    monkeypatch.setenv("ELITE_PL_DATA", str(data_folder))
    group, name = option.split("/")
    weights = [f"backbone.weights={request.getfixturevalue(WEIGHTS[option])}"] if option in WEIGHTS else []
    outcome = command(f"{PLACED.get(group, group)}={name}", *short(name, name), *NEEDS.get(option, []), *weights)
    assert outcome.code == 0, outcome.err
    assert (outcome.directory / "metrics.json").is_file()


def nodes(node, path=""):
    """All nodes with a `_target_`, by their places."""
    if isinstance(node, dict):
        if node.get("_target_"):
            yield path, node
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}".strip("."))


@pytest.mark.parametrize("option", OPTIONS)
def test_a_node_is_keyword_arguments_of_its_target(option):
    group, name = option.split("/")
    extra = [typed for typed in NEEDS.get(option, []) if typed.startswith("dataset.path=")]
    key = PLACED.get(group, group)
    node = OmegaConf.select(composed(f"{key}={name}", *extra), key.partition("@")[2] or group)
    plain = OmegaConf.to_container(node, resolve=True)
    for place, node in nodes(plain, group):
        ours = (*config.HYDRA, "channels_last")  # what Lightning's trainer does not get
        arguments = {key: value for key, value in node.items() if key not in ours}
        try:
            inspect.signature(get_object(node["_target_"])).bind_partial(**arguments)
        except TypeError as error:
            pytest.fail(f"{place}: {error}")


@functools.cache
def jobs(name: str) -> list[list[str]]:
    """The overrides of every run of an experiment."""
    hydra = composed(f"experiment={name}").hydra
    assert hydra.mode.name == "MULTIRUN", "an experiment is a sweep, without -m"
    typed = [f"{key}={value}" for key, value in hydra.sweeper.params.items()]
    (found,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(typed), max_batch_size=None)
    return [list(overrides) for overrides in found]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_how_it_is_run_and_how_many_runs_it_is(name):
    header, typed, *rest = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert header == "# @package _global_"
    assert typed == f"# python -m elite_pl.train experiment={name}"
    comment = " ".join(line for line in rest if line.startswith("#"))
    found = jobs(name)
    assert re.search(rf"\b{len(found)} runs\b", comment), f"{len(found)} runs"
    assert composed(f"experiment={name}").study == name
    for overrides in (found[0], found[-1]):
        config.check(composed(f"experiment={name}", *overrides))


ONE_OF_TWINS = [
    pytest.param(name, marks=[pytest.mark.slow] * name.startswith("fmnist"))  # as on MNIST
    for name in EXPERIMENTS
    if name not in FIGURES
]


@pytest.mark.parametrize("name", ONE_OF_TWINS)
def test_every_experiment_runs(command, data_folder, monkeypatch, name):
    monkeypatch.setenv("ELITE_PL_DATA", str(data_folder))
    job = next(job for job in jobs(name) if "method=auto" not in job)  # which takes long, and runs above
    (method,) = (text.removeprefix("method=") for text in job if text.startswith("method="))
    few = (*short(method, name, n_train=60), "trainer.devices=1")  # a class has no more than that here
    if name in ("tables", "new_tables"):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(60, 3)), rng.permutation(np.repeat([1, -1, 0], 20))
        Path("tables/0").mkdir(parents=True)
        (table,) = (text.removeprefix("dataset.name=") for text in job if text.startswith("dataset.name="))
        np.savez(f"tables/0/{table}.npz", x_train=x, y_train=y, x_test=x[y != 0], y_test=y[y != 0])
    outcome = command(f"experiment={name}", "hydra.mode=RUN", *job, *few)
    assert outcome.code == 0, outcome.err
    assert outcome.directory.parts[:2] == ("outputs", name)


# --------------------------------------------------------------------------------------------------------------- files


def test_no_file_names_a_package_index_or_a_place_on_a_machine():
    git = shutil.which("git")
    if git is None or not (PROJECT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = [git, "-C", str(PROJECT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    # Written so that this file does not match itself.
    index = r"--(?:(?:extra-)?index-url|find-links)[ =]"
    place = r"(?<![\w.}/~])/(?:home|root|Users|work|workspace|opt|mnt|data)/[\w.]"
    faults = []
    for name in filter(None, names):
        path = PROJECT / name
        if not path.is_file():
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:  # a picture
            continue
        faults += [
            f"{name}:{i}: {line[:160]}" for i, line in enumerate(lines, 1) if re.search(f"{index}|{place}", line)
        ]
    assert not faults, "\n".join(faults)


def test_requirements_are_pinned():
    lines = [line for line in (PROJECT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\w.+]+( ; .+)?", line) for line in lines)
    names = [re.split(r"\[|=", line)[0] for line in lines]
    assert names == sorted(names)
    assert {"torch", "torchvision", "pytorch-lightning", "pytest", "ruff", "mypy", "uv"} <= set(names)


def test_the_benchmark_of_the_loop_still_runs(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    import loop_overhead

    config.register()
    ratio, milliseconds = loop_overhead.measure("digits MLP", 5)
    assert ratio > 1 and milliseconds > 0

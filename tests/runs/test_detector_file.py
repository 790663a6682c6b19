"""Files of detectors: today's and those of commit 31a127d are read, and no file runs code, hangs or takes memory."""

import collections
import copy
import csv
import io
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import elite_pl
from elite_pl import algorithm, models
from elite_pl.data import digits
from elite_pl.errors import InputError
from elite_pl.models import Backbone, Hypersphere, recipe
from elite_pl.runs import detector_file

OLD = Path(__file__).parents[1] / "at_31a127d"
METHODS = ("elite_svdd", "elite_ae", "isolation_forest", "ssad")


def expected(method):
    with (OLD / method / "scores.csv").open(newline="") as file:
        return np.array([float(row["score"]) for row in csv.DictReader(file)])


@pytest.fixture
def old():
    """What is in a file of commit 31a127d."""
    return torch.load(OLD / "elite_svdd" / "detector.pt", weights_only=True)


@pytest.fixture
def new():
    """The same as it is written today."""
    return {"format_version": detector_file.FORMAT_VERSION, **detector_file.read(OLD / "elite_svdd" / "detector.pt")}


@pytest.fixture
def forest():
    return {"format_version": detector_file.FORMAT_VERSION, **detector_file.read(OLD / "isolation_forest/detector.pt")}


def saved(content, path="bad.pt"):
    torch.save(content, path)
    return path


def refused(path, *words):
    """One line that names the file, and nothing done."""
    before = sorted(os.listdir())
    with pytest.raises(InputError) as caught:
        elite_pl.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 400
    assert all(word in message for word in words), message
    assert sorted(os.listdir()) == before and not Path("executed").exists()


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("method", METHODS)
def test_files_of_31a127d_give_their_scores_and_so_do_their_copies(method):
    detector = elite_pl.load(OLD / method / "detector.pt")
    np.testing.assert_allclose(detector.score(digits().x_test), expected(method), rtol=1e-5)
    assert detector.method == method and detector.training_scores is None
    assert (detector.margin is None) == (method in ("isolation_forest", "ssad"))
    detector.save("copy.pt")
    copied = elite_pl.load("copy.pt")
    assert copied.score(digits().x_test).tolist() == detector.score(digits().x_test).tolist()
    assert (copied.threshold, copied.margin, copied.config) == (detector.threshold, detector.margin, detector.config)


def test_torch_and_numpy_are_enough():
    elite_pl.load(OLD / "elite_svdd" / "detector.pt").save("deep.pt")
    elite_pl.load(OLD / "ssad" / "detector.pt").save("shallow.pt")
    np.save("x.npy", digits().x_test)
    files = ["deep.pt", "shallow.pt", *(str(OLD / method / "detector.pt") for method in ("elite_svdd", "ssad"))]
    program = f"""
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {{
                    "pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "torchmetrics", "sklearn",
                    "torchvision", "wandb", "scipy", "matplotlib", "pandas", "yaml",
                }}:
                    raise ImportError(name)

        sys.meta_path.insert(0, Blocker())
        import numpy as np
        import elite_pl

        x = np.load("x.npy")
        for i, file in enumerate({files!r}):
            detector = elite_pl.load(file)
            scores = detector.score(x)
            assert set(detector.predict(x)) == {{1, -1}}
            np.save(f"{{i}}.npy", scores)
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert process.returncode == 0 and not process.stderr, process.stderr
    for i, method in enumerate(("elite_svdd", "ssad") * 2):
        np.testing.assert_allclose(np.load(f"{i}.npy"), expected(method), rtol=1e-5)


def linear(sample_shape, outputs):
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(sample_shape[0], outputs, bias=False))
    return Backbone("linear", encoder, torch.nn.Linear(outputs, sample_shape[0], bias=False), outputs)


class Squared(Hypersphere):
    """A user's own score."""

    def forward(self, sample):
        return super().forward(sample) ** 2


def test_networks_and_scores_of_ones_own_are_made_by_what_is_passed(new):
    new["network"] = {"constructor": "mine.linear", "arguments": {"outputs": 16}}
    new["score"] = {"constructor": "mine.Squared", "arguments": {"squared": False}}
    new["state"] = {"center": torch.zeros(16), "encoder.1.weight": torch.eye(16, 64)}
    path = saved(new, "own.pt")
    refused(path, "mine.linear", "constructors=")
    detector = elite_pl.load(path, constructors={"mine.linear": linear, "mine.Squared": Squared})
    x = digits().x_test
    np.testing.assert_allclose(detector.score(x), (x[:, :16] ** 2).sum(1), rtol=1e-5)
    new["network"]["arguments"]["outputs"] = 10**9
    with pytest.raises(InputError, match="size mismatch"):
        elite_pl.load(saved(new), constructors={"mine.linear": linear, "mine.Squared": Squared})


def test_reading_leaves_random_numbers_and_types_alone():
    state = torch.get_rng_state()
    elite_pl.load(OLD / "elite_svdd" / "detector.pt")
    assert torch.get_rng_state().equal(state) and torch.get_default_dtype() == torch.float32


def test_all_our_networks_and_scores_are_allowed():
    abstract = {"Score", "Backbone", "pretrained_network"}  # of the last, what is left without its file of weights
    public = {f"elite_pl.models.{name}" for name in dir(models) if name not in abstract}
    assert public | {"elite_pl.models.fine_tuned"} == set(recipe.NETWORKS) | set(recipe.SCORES) | set(recipe.FITTED)
    changes = {f"elite_pl.algorithm.{name}" for name in dir(algorithm) if name != "Augmentation"}
    assert changes == set(recipe.AUGMENTATIONS)


# --------------------------------------------------------------------------------------------------- what is refused

CODE = {"_target_": "numpy.testing.runstring", "astr": "open('executed', 'w')", "dict": {}}
WRITE = {"_target_": "numpy.savetxt", "fname": "executed", "X": [1, 2]}


def with_target(node, *keys):
    """An attack on what was once given to Hydra: a node in the place of another."""

    def change(content):
        holder = content["config"]
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = node

    return change


OLD_ATTACKS = {
    "a network that runs code": with_target(CODE, "backbone"),
    "a network that writes a file": with_target(WRITE, "backbone"),
    "a score that runs code": with_target(CODE, "method", "score"),
    "a score that writes a file": with_target(WRITE, "method", "score"),
    "code in an argument": with_target(CODE, "method", "score", "squared"),
    "nested partials": with_target({**CODE, "_partial_": True, "astr": {**WRITE, "_partial_": True}}, "backbone"),
    "code in a list": with_target([CODE, CODE], "backbone", "hidden"),
    "a module by name": with_target("elite_pl.runs.launch.launch", "backbone", "_target_"),
    "no text for a target": with_target(["mlp"], "backbone", "_target_"),
    "no configuration": lambda content: content.update(config=[1]),
    "a margin of two": lambda content: content.update(margin=torch.ones(2)),
}


@pytest.mark.parametrize("attack", OLD_ATTACKS)
def test_old_files_that_attack(old, attack):
    OLD_ATTACKS[attack](old)
    refused(saved(old))


@pytest.mark.parametrize("key", ["method", "scheduler"])
def test_what_is_not_needed_is_not_even_looked_up(old, key):
    """The method has been trained: only its score is made."""
    place = old["config"] if key == "method" else old["config"]["method"]
    place[key] = {**place["method"], **CODE} if key == "method" else CODE
    detector = elite_pl.load(saved(old))
    np.testing.assert_allclose(detector.score(digits().x_test), expected("elite_svdd"), rtol=1e-5)
    assert not Path("executed").exists()


def network(constructor="elite_pl.models.mlp", **arguments):
    return lambda content: content.update(network={"constructor": constructor, "arguments": arguments})


def state(**tensors):
    return lambda content: content["state"].update(tensors)


def preprocessing(**values):
    return lambda content: content["preprocessing"].update(values)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def laughs():
    value = ["ha"] * 20
    for _ in range(12):
        value = [value] * 20
    return value


def cyclic():
    value = {}
    value["itself"] = value
    return value


class Reduced:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, ("open('executed', 'w')",)


class Bytes:
    """Takes a terabyte when it is unpickled."""

    def __reduce__(self):
        return bytearray, (10**12,)


TREE = torch.zeros((), dtype=torch.long)


def calibration(score, probability):
    made = {"score": torch.tensor(score).double(), "probability": torch.tensor(probability).double()}
    return lambda content: content.update(calibration=made)


ATTACKS = {
    "another constructor": network("os.system", command="touch executed"),
    "a score for a network": network("elite_pl.models.Hypersphere"),
    "a layer of 4 EB": network(hidden=[10**9, 10**9], outputs=16),
    "a layer of 40 GB": network(hidden=[10**5, 10**5], outputs=16),
    "a layer beyond 64 bits": network(hidden=[10**40], outputs=16),
    "ten thousand layers": network(hidden=[1] * 10**4, outputs=16),
    "a negative layer": network(hidden=[-1], outputs=16),
    "a layer of text": network(hidden=["32"], outputs=16),
    "layers that are a group": network(hidden={"_target_": "os.getcwd"}, outputs=16),
    "a flag that is none": network(hidden=[32], outputs=16, norm="loud"),
    "an argument too many": network(hidden=[32], outputs=16, decoder=None),
    "an argument twice": network(hidden=[32], outputs=16, sample_shape=[64]),
    "views of nothing": lambda content: content.update(
        augmentation={"constructor": "elite_pl.algorithm.Affine", "arguments": {}}
    ),
    "a trillion views of nothing": lambda content: content.update(
        augmentation={"constructor": "elite_pl.algorithm.FeatureNoise", "arguments": {}},
        state={f"score.{name}": value for name, value in content["state"].items()} | {"views": torch.zeros(10**12, 0)},
    ),
    "views by code": lambda content: content.update(augmentation={"constructor": "os.system", "arguments": {}}),
    "other weights": state(center=torch.zeros(17)),
    "weights that are missing": lambda content: content["state"].pop("center"),
    "weights too many": state(more=torch.zeros(1)),
    "weights that are whole numbers": state(center=torch.zeros(16, dtype=torch.long)),
    "weights that are NaN": state(center=torch.full((16,), torch.nan)),
    "weights that are text": state(center="zero"),
    "a tensor of 4 TB in 4 bytes": lambda content: content.update(training_scores=torch.zeros(1).expand(10**12)),
    "a sparse tensor": state(center=torch.zeros(16).to_sparse()),
    "a tensor without memory": state(center=torch.zeros(10**15, device="meta")),
    "a parameter": state(center=torch.nn.Parameter(torch.zeros(16))),
    "a complex tensor": state(center=torch.zeros(16, dtype=torch.complex64)),
    "a threshold that is NaN": lambda content: content.update(threshold=float("nan")),
    "a threshold that is text": lambda content: content.update(threshold="0.5"),
    "probabilities without scores": calibration([], []),
    "scores that fall": calibration([1.0, 0.0], [0.1, 0.2]),
    "probabilities that fall": calibration([0.0, 1.0], [0.2, 0.1]),
    "a probability of 2": calibration([0.0, 1.0], [0.2, 2.0]),
    "a probability too many": calibration([0.0], [0.2, 0.3]),
    "alarms in words": lambda content: content.update(alarms="few"),
    "a margin that is infinite": lambda content: content.update(margin=float("inf")),
    "a sample of another shape": lambda content: content.update(sample_shape=[65]),
    "a huge sample": lambda content: content.update(sample_shape=[10**6, 10**6, 10**6]),
    "a sample of no shape": lambda content: content.update(sample_shape=None),
    "a huge picture": preprocessing(size=10**6),
    "division by zero": preprocessing(scale=torch.zeros(())),
    "another scale": preprocessing(scale=torch.ones(63)),
    "a scale too many": preprocessing(more=1),
    "units of its own": lambda content: content["samples"].update(values="decibel"),
    "a cycle": lambda content: content["config"].update(more=cyclic()),
    "containers without end": lambda content: content["config"].update(more=nested(100)),
    "a billion laughs": lambda content: content["config"].update(more=laughs()),
    "a set": lambda content: content["config"].update(more={1, 2}),
    "an object": lambda content: content["config"].update(more=collections.Counter("abc")),
    "code": lambda content: content["config"].update(more=Reduced()),
    "a terabyte": lambda content: content["config"].update(more=Bytes()),
    "names for other features": lambda content: content.update(columns=["a"]),
    "a number for a name": lambda content: content.update(columns=list(range(content["samples"]["shape"][0]))),
    "a name twice": lambda content: content.update(columns=["a"] * content["samples"]["shape"][0]),
    "text for a version": lambda content: content.update(format_version="2"),
    "version 0": lambda content: content.update(format_version=0),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_files_that_attack(new, attack):
    ATTACKS[attack](new)
    refused(saved(new))


TREES = {
    "a child far away": state(child=torch.full((1790, 2), 10**9)),
    "a negative child": state(child=torch.full((1790, 2), -1)),
    "a feature that samples lack": state(feature=torch.full((1790,), 64)),
    "trees without end": state(depth=torch.tensor(10**15)),
    "no trees": state(roots=torch.zeros(0, dtype=torch.long)),
    "nodes that are no whole numbers": state(child=torch.zeros(1790, 2)),
    "arrays of different lengths": state(path=torch.zeros(3)),
    "support vectors": lambda content: content["score"].update(constructor="elite_pl.models.KernelExpansion"),
}


@pytest.mark.parametrize("attack", TREES)
def test_trees_that_attack(forest, attack):
    TREES[attack](forest)
    refused(saved(forest))


def test_whatever_is_missing_is_missed(new):
    for key in set(new) - {"format_version", "columns", "calibration", "alarms"}:  # which older files lack
        content = copy.deepcopy(new)
        del content[key]
        refused(saved(content), key)


def test_support_vectors_of_other_samples():
    content = detector_file.read(OLD / "ssad" / "detector.pt")
    content["state"]["support"] = content["state"]["support"][:, :63]
    refused(saved({"format_version": 2, **content}))


def test_newer_files_name_their_version(new):
    refused(saved(new | {"format_version": 3, "method": ["other"]}), "version 3", "update elite_pl")


def test_other_files():
    (Path("text.pt")).write_text("no detector")
    Path("empty.pt").touch()
    Path("folder.pt").mkdir()
    os.mkfifo("pipe.pt")
    Path("pickle.pt").write_bytes(pickle.dumps(Reduced()))
    torch.save({"weight": torch.ones(3)}, "weights.pt")
    torch.save(torch.ones(3), "tensor.pt")
    torch.save(torch.nn.Linear(2, 2), "module.pt")
    torch.save({"a": 1}, "bare.pt", _use_new_zipfile_serialization=False)
    np.savez("array.npz", x=np.ones(3))
    for name in ["text", "empty", "folder", "pipe", "pickle", "weights", "tensor", "module", "bare", "missing"]:
        refused(f"{name}.pt")
    refused("array.npz")


def packed(how, size=10**7):
    """A file whose tensor has more bytes than the file."""
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(size // 4)}, buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile("bomb.pt", "w", how) as bomb:
        for part in archive.infolist():
            bomb.writestr(part.filename, archive.read(part))


def test_bombs():
    packed(zipfile.ZIP_DEFLATED)
    refused("bomb.pt", "compressed")
    packed(zipfile.ZIP_STORED, 1000)
    data = Path("bomb.pt").read_bytes()
    with zipfile.ZipFile("bomb.pt") as archive:  # all entries of the directory lead to the largest part
        largest = max(archive.infolist(), key=lambda part: part.file_size)
        archive.filelist[:] = [copy.copy(largest) for _ in range(100)]
    with zipfile.ZipFile("bomb.pt", "a") as archive:
        for i in range(100):
            part = copy.copy(largest)
            part.filename = f"bomb/data/{i + 10}"
            archive.filelist.append(part)
        archive._didModify = True
    assert len(Path("bomb.pt").read_bytes()) < len(data) + 100 * 100
    refused("bomb.pt", "overlap")


def test_a_hundred_thousand_lists_in_each_other():
    with zipfile.ZipFile("bad.pt", "w") as archive:
        archive.writestr("bad/data.pkl", b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".")
        archive.writestr("bad/version", "3")
        archive.writestr("bad/byteorder", "little")
    refused("bad.pt", "without end")


def test_half_a_file_and_flipped_bits():
    data = (OLD / "elite_svdd" / "detector.pt").read_bytes()
    for length in range(1, len(data), len(data) // 10):
        Path("bad.pt").write_bytes(data[:length])
        refused("bad.pt")
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data), 200):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.integers(8)
        Path("bad.pt").write_bytes(flipped)
        try:
            detector = elite_pl.load("bad.pt")
        except InputError as error:
            assert str(error).startswith("bad.pt: ") and "\n" not in str(error)
        else:
            np.testing.assert_allclose(detector.score(digits().x_test), expected("elite_svdd"), rtol=1e-5)

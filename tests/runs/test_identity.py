"""A run keeps its identity: what commit 31a127d finished is known by the same hash, wherever files have moved since."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from elite_pl import config
from elite_pl.addresses import OLD, PUBLIC, renamed
from elite_pl.runs import identity

CELLS = json.loads((Path(__file__).parents[1] / "at_31a127d" / "hashes.json").read_text())
STUDIES = sorted({cells["study"] for cells in CELLS})
DEMO = Path(__file__).parents[2] / "benchmarks" / "results" / "demo" / "cells.jsonl"
# Of the copy of CIFAR-10 that the cells were made with.
COPY = "sha256:ec651703a5202ebd29418faae5af3160e22299c5cff67848323427dd1455fdfe"


@pytest.fixture(scope="module")
def composed():
    """Composes data set and method once, for that takes its time."""
    config.register()
    known = {}

    def of(overrides):
        groups = tuple(text for text in overrides if text.split("=")[0] in (*config.GROUPS, "experiment"))
        if groups not in known:
            with initialize_config_module("elite_pl.conf", version_base="1.3"):
                known[groups] = compose("train", list(groups))
        cfg = known[groups].copy()
        for text in overrides:
            if text not in groups:
                key, _, value = text.lstrip("+").partition("=")
                OmegaConf.update(cfg, key, OmegaConf.create(f"x: {value}").x, force_add=text.startswith("+"))
        return config.plain(cfg)

    return of


@pytest.mark.parametrize("study", STUDIES)
def test_committed_cells_have_the_hash_that_they_had(composed, monkeypatch, study):
    different = []
    for cells in (cells for cells in CELLS if cells["study"] == study):
        with monkeypatch.context() as patch:
            if cells.get("copy"):
                patch.setattr(identity, "copy_of", lambda name, root: Path("cifar10.npz"))
                patch.setattr(identity, "_content", lambda path: COPY)
            plain = composed(cells["overrides"])
            for overrides, expected in cells["cells"]:
                cell = plain if not overrides else composed([*cells["overrides"], *overrides])
                if identity.config_hash(cell) != expected:
                    different.append((cells["overrides"], overrides))
    assert not different


def test_cells_of_the_demo_have_the_hash_with_which_they_are_committed(composed):
    """Among them those of `auto`, whose candidates have settings of their own."""
    cells = [json.loads(line)["metrics"] for line in DEMO.read_text().splitlines()]
    keys = ("method", "normal_class", "pollution", "seed")
    for cell in cells:
        overrides = [f"{key}={cell[key]}" for key in keys] + ["augmentation=noise"] * (cell["method"] == "mean_teacher")
        assert identity.config_hash(composed(["experiment=demo", *overrides])) == cell["config_hash"], overrides
    assert {cell["method"] for cell in cells} >= {"auto", "extra_trees", "elite_svdd"}


def test_every_old_address_has_a_public_one_that_is_there(composed):
    assert len(PUBLIC) == len(OLD)
    node = {"_target_": "elite_pl.scores.Hypersphere", "inner": [{"_target_": "torch.optim.SGD"}], "name": "_target_"}
    assert renamed(renamed(node, PUBLIC), OLD) == node
    for public in OLD:
        config.instantiate("method", {"_target_": public})


CANDIDATES = {"images": "extra_trees_pixels", "vectors": "elite_on_a_center"}


@pytest.mark.parametrize(
    ("source", "kinds"),
    [
        ({"_target_": "elite_pl.data.torchvision_set", "name": "MNIST", "root": "nowhere"}, {"images"}),
        ({"_target_": "elite_pl.data.image_folder", "path": "photos"}, {"images"}),
        ({"_target_": "elite_pl.data.npz", "path": "images.npz"}, {"images"}),
        ({"_target_": "elite_pl.data.npz", "path": "not_there.npz"}, {"images", "vectors"}),
        ({"_target_": "elite_pl.data.npz", "path": "damaged.npz"}, {"images", "vectors"}),
        ({"_target_": "elite_pl.data.npy", "path": "x.npy"}, {"images", "vectors"}),
        ({"_target_": "elite_pl.data.npz", "path": "vectors.npz"}, {"vectors"}),
        ({"_target_": "elite_pl.data.digits"}, {"vectors"}),
        ({"_target_": "elite_pl.data.table", "path": "rows.csv"}, {"vectors"}),
    ],
)
@pytest.mark.parametrize("kind", CANDIDATES)
def test_a_candidate_counts_where_there_may_be_its_kind_of_data(composed, tmp_path, monkeypatch, source, kinds, kind):
    """`auto` on other data is what it was before; the hash of its runs on these tells the two apart."""
    monkeypatch.chdir(tmp_path)
    np.savez("images.npz", x=np.zeros((3, 8, 8)), y=[0, 1, 1])
    np.savez("vectors.npz", x_train=np.zeros((3, 8)), y_train=[0, 1, 1])
    np.savez_compressed("damaged.npz", x=np.zeros((3, 8)), y=[0, 1, 1])
    content = bytearray(Path("damaged.npz").read_bytes())
    content[45:60] = bytes(15)  # of the compressed array
    Path("damaged.npz").write_bytes(content)
    plain = composed(["method=auto"])
    plain["dataset"] = {"name": "mine", "source": source}
    before = copy.deepcopy(plain)
    del before["method"]["candidates"][kind][CANDIDATES[kind]]
    assert (identity.config_hash(plain) != identity.config_hash(before)) == (kind in kinds)
    plain["backbone"]["frozen"] = before["backbone"]["frozen"] = True  # features take the place of both
    assert identity.config_hash(plain) == identity.config_hash(before)

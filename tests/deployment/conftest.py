"""Detectors of a table, a folder and arrays, trained once; and the commands that take them to work."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from own_table import table, write_csv
from PIL import Image

import elite_pl
from elite_pl import train

SHORT = ("epochs=1", "method.pretrain_epochs=0", "batch_size=32", "threshold=fitted", "logger=none", "threads=1")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Makes a run of `python -m elite_pl.train` in a folder, and returns its directory."""

    def made(folder: Path, *arguments: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            log = logging.getLogger("elite_pl")
            patch.setattr(log, "handlers", log.handlers)
            patch.setattr(log, "propagate", log.propagate)
            patch.setattr(sys, "argv", ["elite_pl.train", *arguments, *SHORT])
            with pytest.raises(SystemExit) as ended:
                train.main()
            assert not ended.value.code
            (metrics,) = folder.glob("outputs/runs/*/*/*/metrics.json")
            return metrics.parent

    return made


@pytest.fixture(scope="session")
def of_table(trained, tmp_path_factory):
    """The folder of a table `own.csv`, and a run on it."""
    folder = tmp_path_factory.mktemp("table")
    write_csv(folder / "own.csv", table())
    return folder, trained(folder, "dataset=table", "dataset.path=own.csv", "dataset.id_column=id")


@pytest.fixture(scope="session")
def of_folder(trained, tmp_path_factory):
    """The folder of color images `photos` of many sizes, one of them on its side, and a run on it."""
    folder = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for place, count in {"unlabeled": 24, "labeled/normal": 4, "labeled/anomaly": 4}.items():
        (folder / "photos" / place).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(rng.integers(0, 256, (20, 12 + i, 3), dtype=np.uint8))
            exif = image.getexif()
            exif[0x0112] = 6
            image.save(folder / "photos" / place / f"{i:02}.jpg", **({"exif": exif} if i == 3 else {}))
    return folder, trained(folder, "dataset=image_folder", "dataset.path=photos", "dataset.size=16")


@pytest.fixture(scope="session")
def of_vectors():
    """A detector of vectors, and what it was trained on."""
    x = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)
    return elite_pl.fit(x, np.repeat([1, -1, 0], [5, 5, 70]), "elite_svdd", overrides=list(SHORT[:3])), x

"""The pages on a user's own data: their commands run as they stand, and lead from nothing to an exported detector."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"
QUICK = ("epochs=1", "logger=none", "threads=1")


def photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    counts = {"photos/unlabeled": 40, "photos/labeled/normal": 4, "photos/labeled/anomaly": 4, "new_photos": 3}
    for place, count in counts.items():
        (folder / place).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / place / f"{i:02}.png")


def tables(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, n, known in (("rows.csv", 60, 10), ("new_rows.csv", 3, 0)):
        labels = (["normal", "anomaly"] * n)[:known] + [""] * (n - known)
        with open(folder / name, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "age", "job", "label"])
            for i, label in enumerate(labels):
                age = round(rng.normal(40, 5), 1) if i % 7 else ""
                writer.writerow([f"r{i}", age, rng.choice(["nurse", "teacher", "cook"]), label])


PAGES = {
    "own_images": (photos, "path,label\nunlabeled/03.png,anomaly\n", "detector_export"),
    "own_tables": (tables, "id,label\nr30,anomaly\n", "detector_export"),
}


def commands(page: str) -> str:
    (block,) = re.findall(r"```sh\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    assert len(block.splitlines()) <= 10
    return block


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_lead_to_an_exported_detector(tmp_path, page):
    make, labels, exported = PAGES[page]
    make(tmp_path)
    (tmp_path / "labels.csv").write_text(labels)
    block, count = re.subn(r"(elite_pl\.train )", rf"\1{' '.join(QUICK)} ", commands(page))
    assert count == 2
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    bash = shutil.which("bash")
    assert bash
    finished = subprocess.run(
        [bash, "-e", "-o", "pipefail", "-c", block],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 4
    first, again = sorted((tmp_path / "outputs").rglob("detector.pt"), key=lambda path: path.stat().st_mtime)
    assert (again.parent / exported).exists() and (first.parent / "gallery.html").exists()


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_compose(command, tmp_path, page):
    PAGES[page][0](tmp_path)
    lines = commands(page).replace("\\\n", " ").splitlines()
    trainings = [match[1].split() for line in lines if (match := re.search(r"elite_pl\.train (.*) \| tail", line))]
    assert len(trainings) == 2
    for typed in trainings:
        outcome = command("--cfg", "job", "--resolve", *typed)
        assert outcome.code == 0, outcome.err

"""What commit 31a127d left goes on: a run that was killed there is finished here."""

import csv
import shutil
from pathlib import Path

import numpy as np

KEPT = Path(__file__).parents[1] / "at_31a127d"
SMALL = ("backbone=mlp", "backbone.hidden=[32]", "backbone.outputs=16", "method.record_iterations=0")


def column(path, name):
    with open(path, newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_a_run_that_was_killed_then_goes_on_from_its_second_epoch(command, tmp_path):
    shutil.copytree(KEPT / "half" / "digits", tmp_path / "outputs" / "half" / "digits")
    (kept,) = (tmp_path / "outputs").rglob("history.csv")
    before = kept.read_text().splitlines()
    outcome = command("normal_class=3", "seed=1", "threads=1", *SMALL, "epochs=6", "study=half")
    assert outcome.code == 0, outcome.err
    assert outcome.directory.absolute() == kept.parent, "the same hash"
    after = kept.read_text().splitlines()
    assert len(before) == 3 and len(after) == 7 and after[:3] == before
    scores = column(kept.with_name("scores.csv"), "score")
    np.testing.assert_allclose(scores, column(KEPT / "half" / "expected_scores.csv", "score"), rtol=1e-4)

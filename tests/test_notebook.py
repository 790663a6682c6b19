"""The notebooks run from top to bottom, all but one in an empty folder; each ends in a figure."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"


def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(FOLDER / "meta_gradient.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    last = notebook.cells[-1]
    assert "hist" in last.source
    assert any("image/png" in output.get("data", {}) for output in last.outputs)
    metrics = list((tmp_path / "outputs").rglob("metrics.json"))
    assert len(metrics) == 1


def test_from_a_study_to_figure_3():
    notebook = nbformat.read(FOLDER / "study.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(FOLDER)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells if "outputs" in cell for output in cell.outputs]
    text = " ".join(" ".join(data.get("text/plain", "") for data in shown).split())
    assert "elite_svdd 94.4 94.7 94.8" in text and "deep_sad 94.6 93.9 92.9" in text  # as in the page of fig3_pollution
    assert "ssad 0.3 0.9 1.2 1.1 1.3 0.2" in text  # ELITE is ahead, with its standard error, on Fashion-MNIST
    assert "image/png" in shown[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_images", "own_tables"])
def test_from_data_of_ones_own_to_scores(tmp_path, name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any("image/png" in output.get("data", {}) for output in notebook.cells[-1].outputs)
    said = "".join(output.get("text", "") for cell in notebook.cells if "outputs" in cell for output in cell.outputs)
    assert "labeled: 10 30" in said
    found = re.search(r"(\d+) of the first 20 are", said)
    assert found and int(found[1]) >= 8  # twice as many as by chance, or more
    assert len((tmp_path / "after.csv").read_text().splitlines()) > 100

"""The notebooks run from top to bottom: one in an empty folder, one beside the kept cells; both end in a figure."""

from pathlib import Path

import nbclient
import nbformat

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
    assert "elite_svdd 94.4 94.7 94.8" in text and "deep_sad 94.6 93.9 92.9" in text  # as in fig3_pollution/table.md
    assert "ssad 0.3 0.9 1.2 1.1 1.3 0.2" in text  # ELITE is ahead, with its standard error, on Fashion-MNIST
    assert "image/png" in shown[-1]

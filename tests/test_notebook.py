"""The notebook runs from top to bottom in an empty folder, and ends in the two histograms."""

from pathlib import Path

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "meta_gradient.ipynb"


def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    last = notebook.cells[-1]
    assert "hist" in last.source
    assert any("image/png" in output.get("data", {}) for output in last.outputs)
    metrics = list((tmp_path / "outputs").rglob("metrics.json"))
    assert len(metrics) == 1

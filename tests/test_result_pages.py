"""The pages in `benchmarks/results/` show what the cells beside them hold."""

import re

import pytest
import results

PAGES = results.pages()


def test_every_study_has_a_page_that_shows_its_cells():
    studies = {path.parent for path in results.RESULTS.glob("*/cells.jsonl")}
    assert studies == {page.parent for page in PAGES[1:]}
    for page in PAGES[1:]:
        assert re.search(rf"<!-- (table|tests): {page.parent.name}\b", page.read_text()), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_a_page_is_up_to_date(page):
    assert page.read_text() == results.written(page), "make results"


def test_a_page_shows_another_number_when_a_cell_has_one(tmp_path, monkeypatch):
    for name in ("cells.jsonl", "README.md"):
        text = (results.RESULTS / "fig7_training" / name).read_text()
        place = tmp_path / "fig7_training" / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(re.sub(r'"test/auroc": [\d.]+', '"test/auroc": 0.125', text))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    page = tmp_path / "fig7_training" / "README.md"
    assert "12.5" not in page.read_text() and results.written(page).count("| 12.5 ") == 4

"""How Sphinx builds the site: `make docs`. Nothing is fetched, then or by a reader's browser; warnings are errors."""

import re
import shutil
from importlib.metadata import version as version_of
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent

project = "elite_pl"
version = release = version_of("elite_pl")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "elite_pl"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # browsers draw it by themselves

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]

default_role = "literal"  # docstrings mark code as Markdown does
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True


class Diagram(SphinxDirective):
    """A Mermaid diagram, which GitHub draws; the site leaves it out, because its script would have to be fetched."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Nothing."""
        return []


def _inline_math(translator, node) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _display_math(translator, node) -> None:
    translator.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def _as_written(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Keeps `|M|` and `a * b` of docstrings from being taken for markup."""
    code = False
    for i, line in enumerate(lines):
        parts = line.split("`")
        for j, part in enumerate(parts):
            if not code:
                parts[j] = re.sub(r"(?<=\S)( ?)([|*])(?=[^*])|\|", lambda m: f"{m[1] or ''}\\{m[2] or '|'}", part)
            code ^= j < len(parts) - 1
        lines[i] = "`".join(parts)


def _not_ours(app: Sphinx, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """Leaves out what tuples and scikit-learn add to a class; the docstring has the fields of a tuple."""
    field = (getattr(thing, "__doc__", None) or "").startswith("Alias for field number")
    return True if field or re.fullmatch("set_.+_request", name) else None


def _to_the_copies(app: Sphinx, name: str, source: list[str]) -> None:
    """Points links to `benchmarks/results/`, which work in a clone, to the copies that `setup` makes."""
    source[0] = source[0].replace("](../benchmarks/results/", "](results/")


def setup(app: Sphinx) -> None:
    """Copies the pages of `benchmarks/results/`, which Sphinx would not find there, and adds what is ours."""
    place = HERE / "results"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(HERE.parent / "benchmarks" / "results", place, ignore=shutil.ignore_patterns("*.jsonl"))
    app.add_directive("mermaid", Diagram)
    app.connect("source-read", _to_the_copies)
    app.connect("autodoc-process-docstring", _as_written, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", _not_ours)
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))

"""Draws the rooms of `elite_pl` and who imports whom, from the imports themselves: `make map` writes `packages.md`.

A room is a package. Single modules at the top level are commands, or the ground on which everything stands.
"""

from collections import Counter
from pathlib import Path

import grimp

# In the order in which they build on each other: a module imports from its own room and from those before it.
ROOMS = {
    "ground": "typed keys, errors, files, seeds, progress, processes",
    "algorithm": "the mathematics, torch only",
    "data": "arrays and their checks, sources, splits, scaling, batches",
    "models": "networks, and the scores that are made of them",
    "methods": "one file per method",
    "runs": "one run: identity, objects, files, processes",
    "deployment": "a trained detector at work: scores, exports",
    "studies": "many runs: cells, sweeps, what is finished",
    "report": "tables, figures, one page, dashboard",
    "commands": "what a person types",
}
COMMANDS = {"train", "search", "score", "audit", "export"}  # and `report.__main__`

HEAD = """\
# How the code is laid out

The package is built in layers: a module imports from its own layer and from those below it, never upward, and a test
says so. Lightning stays out of `algorithm`, `models` and the arrays of `data`; Hydra is in `config.py`, `cli.py`,
`studies` and the commands; to load a detector and score with it takes torch and NumPy alone. Configurations are in
`conf/`, and a node of them holds exactly the arguments of a constructor. Tests are in folders named as the packages.

Drawn from the imports by `make map`; a test says when it is out of date. An arrow points to what is imported, with the
number of imports; everything also stands on the ground: {ground}.
"""

WHERE = {
    "ground": "`elite_pl/*.py`",
    "commands": "`train.py`, `search.py`, `score.py`, `audit.py`, `export.py`, `report/__main__.py`",
}


def build_graph() -> grimp.ImportGraph:
    """Every import of every module, those inside functions too, but not what only type checkers see."""
    return grimp.build_graph(
        "elite_pl", include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )


def own_modules(graph: grimp.ImportGraph) -> set[str]:
    """Our modules, without the package itself and without the configuration."""
    return {m for m in graph.modules if m.startswith("elite_pl.") and m != "elite_pl.conf"}


def room(module: str) -> str:
    """The room that a module of ours is in."""
    top = module.split(".")[1]
    if top in COMMANDS or module.endswith("__main__"):
        return "commands"
    return top if top in ROOMS else "ground"


def arrows(graph: grimp.ImportGraph) -> Counter[tuple[str, str]]:
    """How many imports lead from one room to another."""
    modules = own_modules(graph)
    pairs = [(m, other) for m in modules for other in graph.find_modules_directly_imported_by(m) if other in modules]
    return Counter((room(m), room(other)) for m, other in pairs if room(m) != room(other))


def diagram() -> str:
    """The page: a Mermaid diagram, which GitHub and most editors draw, and the same as a table."""
    lines = [HEAD.format(ground=ROOMS["ground"]), "```mermaid", "flowchart TD"]
    shown = [name for name in reversed(ROOMS) if name != "ground"]
    lines += [f'    {name}["<b>{name}</b><br>{ROOMS[name]}"]' for name in shown]
    found = arrows(build_graph())
    order = list(ROOMS).index
    for (a, b), count in sorted(found.items(), key=lambda item: (-order(item[0][0]), -order(item[0][1]))):
        if b != "ground":
            lines.append(f"    {a} -->|{count}| {b}")
    lines += ["```", "", "| layer | files | what it has | imports from |", "|---|---|---|---|"]
    for name in reversed(ROOMS):
        below = [f"{other} ({found[name, other]})" for other in reversed(ROOMS) if found[name, other]]
        lines.append(f"| {name} | {WHERE.get(name, f'`elite_pl/{name}/`')} | {ROOMS[name]} | {', '.join(below)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(diagram(), encoding="utf-8")

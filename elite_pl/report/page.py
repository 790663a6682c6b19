"""One HTML page that needs nothing beside itself: no network, no script, pictures inline, light and dark, printable."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from string import Template

_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --soft: #5c6370; --line: #d8dbe0; --back: #ffffff; --band: #f5f6f8;
  --link: #0b5cad; --warn: #a34700; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6ea; --soft: #a3a9b5; --line: #3a3f48; --back: #16181c;
  --band: #1f2227; --link: #7db8f5; --warn: #ffb072; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 76rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .5rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p, ul { max-width: 50rem; } .soft { color: var(--soft); } .warn { color: var(--warn); }
a { color: var(--link); }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; max-width: none; }
dl.facts { display: flex; flex-wrap: wrap; gap: .75rem 2rem; margin: 1rem 0; }
dl.facts dt { color: var(--soft); font-size: .8rem; }
dl.facts dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; overflow-wrap: normal; }
th, td { padding: .22rem .55rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--soft); vertical-align: bottom; }
td.n, th.n { text-align: right; } td.n { white-space: nowrap; }
tbody tr:hover, tbody tr.mark { background: var(--band); } tr.mark td { font-weight: 600; }
td.long { min-width: 14rem; overflow-wrap: anywhere; }
figure { display: inline-block; vertical-align: top; max-width: 100%; margin: 1rem .75rem 1rem 0; }
figcaption { color: var(--soft); font-size: .87rem; max-width: 34rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 4px; padding: .4rem; }
summary { cursor: pointer; color: var(--link); } code { font-size: .92em; }
@media print { :root { color-scheme: light; --text: #000; --soft: #444; --line: #bbb; --back: #fff; --band: #fff;
  --link: #000; --warn: #000; } body { max-width: none; padding: 0; font-size: 10pt; } nav, .files { display: none; }
  .scroll { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: .1rem .35rem; }
  details::details-content { content-visibility: visible; block-size: auto; }
  h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""

# The policy forbids the browser to load anything; what the page shows is in it.
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="soft">$subtitle</p>
</header>
<nav aria-label="Contents"><ul>$contents</ul></nav>
<main>
$body
</main>
</body>
</html>
""")

_NUMBER = re.compile(r"[-+<]? ?\d[\d.,]*( ?(±|to) [-+]?\d[\d.]*)?( ?%)?( \(.+\))?")
_KINDS = {"csv": "text/csv", "md": "text/markdown", "tex": "application/x-tex", "svg": "image/svg+xml"}


@dataclass
class Section:
    """A part of the page under its own heading.

    Attributes:
        heading: Its title, also in the table of contents.
        parts: Pieces of HTML.
    """

    heading: str
    parts: list[str] = field(default_factory=list)


def paragraph(text: str, kind: str = "") -> str:
    """Text as a paragraph, `code` marked as in Markdown; `kind` is a class of the style: soft, warn."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return f'<p class="{kind}">{marked}</p>' if kind else f"<p>{marked}</p>"


def bullets(texts: Sequence[str], kind: str = "") -> str:
    """A list, an entry a text."""
    entries = (paragraph(text, kind).replace("<p", "<li", 1).removesuffix("</p>") + "</li>" for text in texts)
    return f"<ul>{''.join(entries)}</ul>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, side by side."""
    entries = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{"".join(entries)}</dl>'


def html_table(header: Sequence[str], body: Sequence[Sequence[str]], mark: str = "") -> str:
    """A table whose columns of numbers stand to the right; it scrolls by itself where the window is narrow.

    Args:
        header: The names of the columns.
        body: The lines, as texts.
        mark: Lines with this text in one of their cells stand out.
    """
    columns = [[line[i] for line in body] for i in range(len(header))]
    numbers = [any(column) and all(not cell or _NUMBER.fullmatch(cell) for cell in column) for column in columns]
    long = [max(map(len, column), default=0) > 40 for column in columns]

    def cell(i: int, text: str, tag: str) -> str:
        kind = ' class="n"' if numbers[i] else ' class="long"' if long[i] and tag == "td" else ""
        return f"<{tag}{kind}>{escape(text)}</{tag.split()[0]}>"

    head = "".join(cell(i, text, 'th scope="col"') for i, text in enumerate(header))
    lines = (
        ('<tr class="mark">' if mark and mark in line else "<tr>")
        + "".join(cell(i, text, "td") for i, text in enumerate(line))
        + "</tr>"
        for line in body
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


def folded(summary: str, *parts: str) -> str:
    """Parts that open at a click."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def data_address(name: str, content: bytes) -> str:
    """Returns the content of a file as a data URL."""
    return f"data:{_KINDS[name.rsplit('.', 1)[-1]]};base64,{base64.b64encode(content).decode()}"


def picture(name: str, content: bytes, caption: str) -> str:
    """A figure with its caption, which also stands for it where it cannot be seen."""
    address = data_address(name, content)
    return f'<figure><img src="{address}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def downloads(files: dict[str, bytes]) -> str:
    """Links that save files which are part of the page."""
    links = (f'<a download="{escape(n)}" href="{data_address(n, c)}">{escape(n)}</a>' for n, c in files.items())
    return f'<p class="files">Save: {" · ".join(links)}</p>'


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page: its title, a line below it, the table of contents, and the sections that have parts."""
    shown = [(re.sub(r"\W+", "-", section.heading.lower()), section) for section in sections if section.parts]
    contents = "".join(f'<li><a href="#{name}">{escape(section.heading)}</a></li>' for name, section in shown)
    body = "\n".join(
        f'<section><h2 id="{name}">{escape(section.heading)}</h2>\n' + "\n".join(section.parts) + "</section>"
        for name, section in shown
    )
    text = {"title": escape(title), "subtitle": escape(subtitle), "contents": contents, "body": body, "style": _STYLE}
    return _PAGE.substitute(text)

"""A page that needs nothing but itself: plain HTML, its style inside, pictures as data."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: #1c1c1c; background: #fff;
  max-width: 1180px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .4rem; padding-top: .8rem; border-top: 1px solid #d8d8d8; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .3rem 0 .7rem; max-width: 78ch; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: .86rem; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #e6e6e6; vertical-align: top; }
td:last-child { overflow-wrap: anywhere; }
th { font-weight: 600; border-bottom-color: #9a9a9a; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.published { color: #5c5c5c; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.pictures figure { margin: 0; flex: 1 1 480px; max-width: 640px; }
.pictures.wide figure { max-width: 100%; }
figcaption { font-size: .82rem; color: #5c5c5c; }
img { max-width: 100%; height: auto; }
.warning { background: #fff4e0; border-left: 4px solid #D55E00; padding: .5rem .9rem; margin: .8rem 0; }
.warning p, .warning ul { margin: .2rem 0; }
.scroll { overflow-x: auto; }
footer { margin-top: 2.5rem; color: #5c5c5c; font-size: .82rem; }
"""


class Cell(str):
    """A cell that is a number: set to the right."""


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def heading(level: int, text: str) -> str:
    """<h1> to <h3>."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{html.escape(text)}</p>"


def warning(title: str, sentences: Sequence[str]) -> str:
    """A box with a list."""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f'<div class="warning"><p><strong>{html.escape(title)}</strong></p><ul>{items}</ul></div>'


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, published: Sequence[bool] = ()) -> str:
    """A table; a column whose first cell is a Cell is set to the right, rows marked as published are grey."""
    right = [bool(rows) and isinstance(cell, Cell) for cell in (rows[0] if rows else head)]
    top = "".join(_cell("th", text, number) for text, number in zip(head, right))
    lines = []
    for index, row in enumerate(rows):
        kind = ' class="published"' if index < len(published) and published[index] else ""
        lines.append(f"<tr{kind}>" + "".join(_cell("td", text, number) for text, number in zip(row, right)) + "</tr>")
    return f'<div class="scroll"><table>\n<tr>{top}</tr>\n' + "\n".join(lines) + "\n</table></div>"


def pictures(images: Sequence[tuple[bytes, str, str]], *, wide: bool = False) -> str:
    """Side by side: (PNG, description, caption); the caption may be empty."""
    figures = []
    for png, description, caption in images:
        data = base64.b64encode(png).decode()
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        image = f'<img src="data:image/png;base64,{data}" alt="{html.escape(description)}">'
        figures.append(f"<figure>{image}{below}</figure>")
    return f'<div class="pictures{" wide" if wide else ""}">\n' + "\n".join(figures) + "\n</div>"


def footer(text: str) -> str:
    """The last line."""
    return f"<footer>{html.escape(text)}</footer>"


def _cell(tag: str, content: Any, is_number: bool) -> str:
    kind = ' class="number"' if is_number else ""
    return f"<{tag}{kind}>{html.escape(str(content))}</{tag}>"

"""Small pieces of HTML. Every text passes through ``escape`` here, so a hostile status cannot write markup."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Markup:
    """Text that is HTML already."""

    text: str

    def __add__(self, other: Markup) -> Markup:
        return Markup(self.text + other.text)


@dataclass(frozen=True)
class Missing:
    """A value that was not measured, and why."""

    why: str


Cell = str | int | float | Markup | Missing | None


def escape(value: Cell) -> str:
    """One value as HTML; ``None`` and :class:`Missing` say that they were not measured."""
    if isinstance(value, Markup):
        return value.text
    if value is None:
        return '<span class="missing">not measured</span>'
    if isinstance(value, Missing):
        return f'<span class="missing">not measured: {html.escape(value.why)}</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return html.escape(value)


def join(parts: Sequence[Markup]) -> Markup:
    """All parts one after the other."""
    return Markup("\n".join(p.text for p in parts))


def paragraph(*values: Cell, kind: str = "") -> Markup:
    """A paragraph; ``kind`` is its class."""
    mark = f' class="{kind}"' if kind else ""
    return Markup(f"<p{mark}>{''.join(escape(v) for v in values)}</p>")


def strong(value: Cell) -> Markup:
    """Emphasised text."""
    return Markup(f"<strong>{escape(value)}</strong>")


def code(value: str) -> Markup:
    """A command or a name."""
    return Markup(f"<code>{html.escape(value)}</code>")


def section(identity: str, title: str, *parts: Markup) -> Markup:
    """A section with a heading that can be linked to."""
    body = join(parts).text
    return Markup(
        f'<section id="{identity}" aria-labelledby="{identity}-title">'
        f'<h2 id="{identity}-title">{html.escape(title)}</h2>\n{body}\n</section>'
    )


def figure(svg: str, caption: str) -> Markup:
    """A drawing with its caption."""
    return Markup(f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>")


def details(summary: str, body: Markup) -> Markup:
    """A part that can be opened; open in print."""
    return Markup(f"<details><summary>{html.escape(summary)}</summary>{body.text}</details>")


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    words: int = 1,
    remarks: bool = False,
    marked: Sequence[int] = (),
) -> Markup:
    """A table. The first ``words`` columns are text, the others numbers, except
    the last with ``remarks``. ``marked``: positions of rows to stress.
    """
    if not rows:
        return paragraph(caption, ": none.", kind="note")
    last = len(columns) - 1 if remarks else len(columns)
    head = "".join(
        f'<th scope="col"{_kind(number, words, last)}>{html.escape(name)}</th>'
        for number, name in enumerate(columns)
    )
    lines = []
    for position, row in enumerate(rows):
        cells = []
        for number, value in enumerate(row):
            tag, scope = ("th", ' scope="row"') if number == 0 else ("td", "")
            cells.append(f"<{tag}{scope}{_kind(number, words, last)}>{escape(value)}</{tag}>")
        mark = ' class="marked"' if position in marked else ""
        lines.append(f"<tr{mark}>{''.join(cells)}</tr>")
    return Markup(
        f'<div class="table" role="region" aria-label="{html.escape(caption)}" tabindex="0"><table><caption>'
        f"{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _kind(column: int, words: int, last: int) -> str:
    if column < words:
        return ""
    return ' class="number"' if column < last else ' class="remark"'

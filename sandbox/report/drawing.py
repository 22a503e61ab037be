"""Matplotlib figures as SVG that follows the page's colours, without pyplot and its global state.

Figures are drawn with fixed colours. In a page each is replaced by a CSS variable, so that light, dark and print use
one drawing; alone (for the README) the fixed colours stay.
"""

from __future__ import annotations

import html
import io
import re
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1f2430", "#626b7a", "#dfe3e8", "#fefefe"
COLOURS = {"alone": "#9aa5b1", "consortium": "#b3264f", "pooled": "#2c6e8c"}
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    COLOURS["alone"]: "--alone",
    COLOURS["consortium"]: "--consortium",
    COLOURS["pooled"]: "--pooled",
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and follows the page's font
    "svg.hashsalt": "subrosa",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "hatch.linewidth": 0.7,
}


@dataclass(frozen=True)
class Drawing:
    """A figure and what it shows in words."""

    figure: Figure
    title: str
    description: str


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches; its background is left to the page."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    return figure


def calm(axes: Axes, *, grid: Literal["x", "y"] = "y") -> None:
    """Light grid behind the data, no box."""
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom" if grid == "y" else "left"].set_visible(True)
    axes.spines["bottom" if grid == "y" else "left"].set_color(MUTED)
    axes.tick_params(colors=MUTED, length=0, labelsize=9.5)


def svg_for_page(drawing: Drawing, number: int) -> str:
    """Inline SVG with a title and description for screen readers; ids are made unique by ``number``."""
    text = svg_alone(drawing)
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    prefix = f"d{number}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'((?:xlink:)?href="#)', rf"\1{prefix}", text)
    text = text.replace("url(#", f"url(#{prefix}")
    text = text.replace("'DejaVu Sans'", "var(--sans)")
    title, description = html.escape(drawing.title), html.escape(drawing.description)
    return re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>",
        rf'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" \1 role="img" '
        rf'aria-labelledby="{prefix}title {prefix}about"><title id="{prefix}title">{title}</title>'
        rf'<desc id="{prefix}about">{description}</desc>',
        text,
        count=1,
        flags=re.S,
    )


def svg_alone(drawing: Drawing) -> str:
    """A complete SVG document with fixed colours, the same bytes for the same figure."""
    out = io.StringIO()
    with mpl.rc_context(_SETTINGS):
        drawing.figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.S)


def png_alone(drawing: Drawing, dpi: int) -> bytes:
    """A PNG with fixed colours."""
    out = io.BytesIO()
    with mpl.rc_context(_SETTINGS):
        drawing.figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()

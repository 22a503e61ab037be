"""The headline alone, as a picture for a page that shows no HTML."""

from __future__ import annotations

from pathlib import Path

from sandbox.evaluation import Evaluation
from sandbox.report.drawing import PAPER, png_alone, svg_alone
from sandbox.report.plots import headline

DPI = 170


def write_headline_picture(evaluation: Evaluation, path: Path) -> None:
    """Write the bars of alone, consortium and pooled to ``path``; ``.png`` or ``.svg``.

    Raises ``ValueError`` for another suffix or when no random forest was measured.
    """
    drawing = headline(evaluation)
    if drawing is None:
        raise ValueError("there is no picture to draw: the evaluation holds no measured random forest")
    drawing.figure.patch.set_facecolor(PAPER)
    drawing.figure.patch.set_alpha(1.0)
    if path.suffix == ".png":
        path.write_bytes(png_alone(drawing, DPI))
    elif path.suffix == ".svg":
        path.write_text(svg_alone(drawing), encoding="utf-8")
    else:
        raise ValueError(f"a picture is .png or .svg, not {path.suffix!r}")

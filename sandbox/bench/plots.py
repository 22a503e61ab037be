"""Pictures of benchmark results, drawn from the JSON that a benchmark printed with ``--json`` and from nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from sandbox.report.drawing import COLOURS, INK, MUTED, Drawing, calm, new_figure, svg_alone

OWN, OTHER, LIMIT = COLOURS["consortium"], COLOURS["alone"], COLOURS["pooled"]
_LATENCY = re.compile(r"(p50|p99|most) ([0-9][0-9,]*(?:\.[0-9]+)?) (us|ms)")
_MILLISECONDS = {"us": 1e-3, "ms": 1.0}


class ResultError(ValueError):
    """A file is no result of a benchmark, or tells nothing that can be drawn; the text says which."""


def draw(kind: str, texts: Sequence[str]) -> str:
    """The picture ``throughput``, ``latency``, ``parts`` or ``stalls`` of printed results as SVG.

    Raises :class:`ResultError`.
    """
    try:
        results = [json.loads(text) for text in texts]
    except ValueError as error:
        raise ResultError(f"no result of a benchmark: {error}") from error
    if kind == "throughput":
        return svg_alone(throughput(results))
    if kind == "latency":
        return svg_alone(latencies(results))
    if kind not in ("parts", "stalls") or len(results) != 1:
        raise ResultError("draw throughput, latency, or the parts or stalls of one result")
    return svg_alone(shares(results[0]) if kind == "parts" else stalls(results[0]))


def throughput(results: Sequence[Mapping[str, Any]]) -> Drawing:
    """Events a second of each result beside its peers and, where it has one, its bar; a logarithmic axis.

    ``results``: objects as ``BenchResult.as_json`` gives them. Raises :class:`ResultError`.
    """
    rows: list[tuple[str, float, str]] = []
    bars: dict[int, float] = {}
    for result in results:
        name, own = str(_of(result, "name")), float(_of(result, "per_second"))
        for bar in _of(result, "bars"):
            if "a second" in str(bar["what"]) and float(bar["bar"]) >= 1000 and not bars.get(len(rows)):
                bars[len(rows)] = float(bar["bar"])
        rows.append((f"{name}: Subrosa", own, OWN))
        rows += [
            (f"{name}: {peer}", float(told["per_second"]), OTHER) for peer, told in result["peers"].items()
        ]
    if not rows:
        raise ResultError("there is no result to draw")
    figure = new_figure(10.0, 0.9 + 0.42 * len(rows))
    axes = figure.subplots()
    calm(axes, grid="x")
    places = list(range(len(rows)))[::-1]
    for place, (_, rate, colour) in zip(places, rows, strict=True):
        # A bar's length means nothing on a logarithmic axis; a point's place does.
        axes.plot([rate], [place], marker="o", markersize=9, color=colour)
    _label(axes, places, [rate for _, rate, _ in rows], [f"{rate:,.0f}/s" for _, rate, _ in rows], away=8)
    for row, bar in bars.items():
        axes.plot([bar, bar], [places[row] - 0.42, places[row] + 0.42], color=INK, linewidth=1.6)
    axes.set_yticks(places, [name for name, _, _ in rows], color=INK)
    axes.set_xscale("log")
    least, most = min(rate for _, rate, _ in rows), max([*(rate for _, rate, _ in rows), *bars.values()])
    axes.set_xlim(least / 3, most * 6)
    axes.set_xlabel("events a second (logarithmic); a stroke marks the bar", color=MUTED)
    spoken = "; ".join(f"{name} {rate:,.0f} events a second" for name, rate, _ in rows)
    return Drawing(figure, "Throughput", spoken)


def shares(result: Mapping[str, Any]) -> Drawing:
    """Microseconds an event of a pipeline's parts, each by itself, beside the whole; they overlap, so the sum is more.

    Raises :class:`ResultError` for a result without limits.
    """
    parts = [(name, 1e6 / float(told["per_second"])) for name, told in _of(result, "limits").items()]
    if not parts:
        raise ResultError(f"{_of(result, 'name')} tells nothing of its parts")
    rows = [*parts, ("the whole pipeline", 1e6 / float(_of(result, "per_second")))]
    figure = new_figure(10.0, 0.8 + 0.4 * len(rows))
    axes = figure.subplots()
    calm(axes, grid="x")
    places = list(range(len(rows)))[::-1]
    colours = [*(LIMIT for _ in parts), OWN]
    axes.barh(places, [micros for _, micros in rows], height=0.62, color=colours)
    _label(axes, places, [micros for _, micros in rows], [f"{micros:.2f} us" for _, micros in rows])
    axes.set_yticks(places, [name for name, _ in rows], color=INK)
    axes.set_xlim(0, max(micros for _, micros in rows) * 1.18)
    axes.set_xlabel("microseconds an event", color=MUTED)
    spoken = "; ".join(f"{name} {micros:.2f} microseconds an event" for name, micros in rows)
    return Drawing(figure, "Where the time of an event goes", spoken)


def stalls(result: Mapping[str, Any]) -> Drawing:
    """Histograms of a result's milliseconds an update, side by side; counts on a logarithmic axis, the worst named.

    Raises :class:`ResultError` for a result without histograms.
    """
    told = _of(result, "histograms")
    if not told:
        raise ResultError(f"{_of(result, 'name')} has no histogram")
    figure = new_figure(5.0 * len(told), 3.6)
    spoken = []
    for axes, (name, histogram) in zip(
        figure.subplots(1, len(told), squeeze=False)[0], told.items(), strict=True
    ):
        calm(axes)
        edges, counts = histogram["edges"], histogram["counts"]
        places = list(range(len(counts)))
        axes.bar(places, counts, width=0.86, color=OWN)
        for place, count in zip(places, counts, strict=True):
            if count:
                axes.annotate(f"{count:,}", (place, count), ha="center", va="bottom", color=INK, fontsize=9)
        ends = [*(f"{edge:g}" for edge in edges[1:-1]), "more"]
        axes.set_xticks([place + 0.5 for place in places[:-1]] + [places[-1] + 0.1], ends, color=INK)
        axes.set_yscale("log")
        axes.set_ylim(0.7, max(counts) * 4)
        axes.set_xlabel(f"milliseconds an update; worst {histogram['worst']:.2f}", color=MUTED)
        axes.set_title(name, color=INK, fontsize=10.5)
        spoken.append(f"{name}: {sum(counts):,} updates, worst {histogram['worst']:.2f} ms")
    return Drawing(figure, "Processor time of an update", "; ".join(spoken))


def latencies(results: Sequence[Mapping[str, Any]]) -> Drawing:
    """Median and 99th percentile of every load whose latencies the results' notes tell; a logarithmic axis.

    Raises :class:`ResultError` when no note tells any.
    """
    rows: list[tuple[str, dict[str, float]]] = []
    for result in results:
        for note, text in _of(result, "notes").items():
            found = {
                name: float(number.replace(",", "")) * _MILLISECONDS[unit]
                for name, number, unit in _LATENCY.findall(str(text))
            }
            if {"p50", "p99"} <= found.keys():
                rows.append((f"{_of(result, 'name')}: {note}", found))
    if not rows:
        raise ResultError("no note of these results tells p50 and p99")
    figure = new_figure(10.0, 0.9 + 0.5 * len(rows))
    axes = figure.subplots()
    calm(axes, grid="x")
    places = list(range(len(rows)))[::-1]
    for place, (_, found) in zip(places, rows, strict=True):
        axes.plot(
            [found["p50"], found["p99"]], [place, place], color=OTHER, linewidth=5, solid_capstyle="round"
        )
        axes.plot([found["p50"]], [place], marker="o", markersize=9, color=LIMIT)
        axes.plot([found["p99"]], [place], marker="o", markersize=9, color=OWN)
        text = f"p50 {found['p50']:.2f}, p99 {found['p99']:.2f} ms"
        _label(axes, [place], [found["p99"]], [text], away=8)
    axes.set_yticks(places, [name for name, _ in rows], color=INK)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xscale("log")
    least, most = min(found["p50"] for _, found in rows), max(found["p99"] for _, found in rows)
    axes.set_xlim(least / 2, most * 12)
    axes.set_xlabel("milliseconds (logarithmic): median and 99th percentile", color=MUTED)
    spoken = "; ".join(f"{name} p50 {f['p50']:.2f} ms, p99 {f['p99']:.2f} ms" for name, f in rows)
    return Drawing(figure, "Latency of an answer", spoken)


def _label(
    axes: Axes, places: Sequence[int], ends: Sequence[float], texts: Sequence[str], away: int = 5
) -> None:
    for place, end, text in zip(places, ends, texts, strict=True):
        axes.annotate(
            text,
            (end, place),
            textcoords="offset points",
            xytext=(away, 0),
            va="center",
            color=INK,
            fontsize=9.5,
        )


def _of(result: Mapping[str, Any], key: str) -> Any:
    try:
        return result[key]
    except (KeyError, TypeError):
        raise ResultError(f"no result of a benchmark: it has no {key}") from None

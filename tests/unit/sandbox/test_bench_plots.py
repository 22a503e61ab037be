"""Pictures of benchmark results: what they show is what the results say, and nothing is drawn from nothing."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sandbox.bench.cli import app
from sandbox.bench.plots import ResultError, draw, latencies, shares, stalls, throughput
from sandbox.bench.result import Bar, BenchResult, Histogram, Timing


def result(**notes: str) -> dict[str, Any]:
    """Half a million events in four seconds, beside one peer and two parts."""
    return BenchResult(
        "scoring",
        500_000,
        Timing(500_000, (4.0,)),
        limits={"features": 250_000.0, "journal": 2_000_000.0},
        peers={"another": 5_000.0},
        bars=(
            Bar("events a second, batches to journaled verdicts", 125_000.0, 100_000),
            Bar("single event p99 before the disk, ms", 0.9, 1.0, at_most=True),
        ),
        notes={"load": "80 features", **notes},
    ).as_json()


def test_throughput_tells_own_rate_and_peers() -> None:
    drawing = throughput([result()])
    assert "scoring: Subrosa 125,000 events a second" in drawing.description
    assert "scoring: another 5,000 events a second" in drawing.description
    drawn = [np.asarray(line.get_xdata()).tolist() for line in drawing.figure.axes[0].lines]
    assert drawn[:2] == [[125_000.0], [5_000.0]]
    assert drawn[2:] == [[100_000.0, 100_000.0]]  # the bar in events a second, not the one in milliseconds


def test_parts_are_microseconds_an_event() -> None:
    spoken = shares(result()).description
    assert spoken == (
        "features 4.00 microseconds an event; journal 0.50 microseconds an event; "
        "the whole pipeline 8.00 microseconds an event"
    )


def test_stalls_are_histograms_with_their_worst() -> None:
    told = BenchResult(
        "features",
        10,
        Timing(10, (1.0,)),
        histograms={"a hot key": Histogram((0.0, 1.0, 5.0, 10.0), (7, 2, 1), 12.5)},
    ).as_json()
    drawing = stalls(told)
    assert drawing.description == "a hot key: 10 updates, worst 12.50 ms"
    heights = [bar.get_height() for bar in drawing.figure.axes[0].patches]
    assert heights == [7, 2, 1]
    assert "<svg" in draw("stalls", [json.dumps(told)])
    with pytest.raises(ResultError, match="no histogram"):
        stalls(result())


def test_latencies_are_read_from_notes_in_milliseconds() -> None:
    drawing = latencies(
        [result(**{"single event": "p50 480 us, p99 1,700 us", "lane": "p50 2.5 ms, p99 9.0 ms over 16"})]
    )
    assert drawing.description == (
        "scoring: single event p50 0.48 ms, p99 1.70 ms; scoring: lane p50 2.50 ms, p99 9.00 ms"
    )


@pytest.mark.parametrize("text", ["[1, 2", "[]", "{}", '"text"'])
def test_what_is_no_result_is_refused(text: str) -> None:
    with pytest.raises(ResultError):
        draw("throughput", [text])


def test_nothing_is_drawn_from_nothing() -> None:
    for kind, texts in (
        ("throughput", []),
        ("latency", [json.dumps(result())]),
        ("parts", [json.dumps({**result(), "limits": {}})]),
        ("parts", [json.dumps(result())] * 2),
        ("pie", [json.dumps(result())]),
    ):
        with pytest.raises(ResultError):
            draw(kind, texts)


@pytest.mark.parametrize("kind", ["throughput", "latency", "parts"])
def test_the_command_writes_an_svg(kind: str, tmp_path: Path) -> None:
    given, out = tmp_path / "scoring.json", tmp_path / "picture.svg"
    given.write_text(json.dumps(result(single="p50 480 us, p99 1700 us")))
    answer = CliRunner().invoke(app, ["plot", str(given), "--out", str(out), "--kind", kind])
    assert answer.exit_code == 0, answer.output
    root = ET.fromstring(out.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    given = tmp_path / "scoring.json"
    given.write_text("{}")
    answer = CliRunner().invoke(app, ["plot", str(given), "--out", str(tmp_path / "x.svg")])
    assert answer.exit_code == 2
    assert not (tmp_path / "x.svg").exists()

"""The benchmark compares like with like: the engine's windows are DuckDB's, row by row."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from sandbox.bench import feature_peers
from sandbox.bench.features import SPEC, WINDOWS_DAYS, seeded_stream
from sandbox.bench.peer_environment import Interpreter, Peer, interpreters
from scoring.features import FeatureEngine, parse_spec

# As much of the peer as its measurement calls.
RIVER = """
class Mean:
    n = 1
    def get(self): return 1.0

class Rolling:
    mean = Mean()
    def __init__(self, kind, period): pass
    def update(self, value, t): pass
    def get(self): return 1.0

class utils: TimeRolling = Rolling
class stats: Var = None
"""


def test_the_engine_and_duckdb_compute_the_same_windows() -> None:
    stream = seeded_stream(30_000)
    pairs = stream.customer * 10_000_000 + stream.seconds
    _, places, counts = np.unique(pairs, return_index=True, return_counts=True)
    assert len(places) > 29_000
    theirs = feature_peers.duckdb_query(stream.table(), WINDOWS_DAYS)()
    keys = theirs["customer"].to_numpy() * 10_000_000 + theirs["seconds"].to_numpy()
    order = np.argsort(keys, kind="stable")
    engine = FeatureEngine(parse_spec(SPEC))
    values = np.concatenate([engine.update(batch).values for batch in stream.batches()])
    alone = counts == 1  # a query sees events of the same second, a stream only those that came before
    for place, name in enumerate(engine.names):
        other = theirs[name].to_numpy()[order][np.searchsorted(keys[order], pairs[places])].astype(np.float64)
        ours = values[places, place]
        assert np.allclose(ours[alone], other[alone], rtol=1e-9, atol=1e-9, equal_nan=True), name


def test_absent_peers_are_said_to_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Peer("no_such_module_of_any_peer", "no-such-package", 10)
    flink = Peer("json", "json", 10, java=True)  # a module that is there, and Java that is not
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    answers = feature_peers.slow_peers(
        seeded_stream(2000).table(), WINDOWS_DAYS, interpreters([absent, flink], None)
    )
    assert "pip install no-such-package" in str(answers[absent.name])
    assert "--peers-env" in str(answers[absent.name])
    assert "JAVA_HOME" in str(answers["json"])


def test_a_peer_answers_from_an_interpreter_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = seeded_stream(2000).table()
    peer = Peer("river", "river", 1500)
    modules = tmp_path / "modules"
    (modules / "river").mkdir(parents=True)
    (modules / "river" / "__init__.py").write_text(RIVER)
    there = Interpreter(sys.executable, {"PYTHONPATH": str(modules)})
    rate = feature_peers.slow_peers(stream, WINDOWS_DAYS, [(peer, there)])["river"]
    assert isinstance(rate, float)
    assert rate > 0
    (modules / "river" / "__init__.py").write_text("raise RuntimeError('not on this machine')")
    said = feature_peers.slow_peers(stream, WINDOWS_DAYS, [(peer, there)])["river"]
    assert said == "river failed: RuntimeError: not on this machine"


def test_an_environment_that_cannot_be_filled_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    [(_, answer)] = interpreters([Peer("no_such_module_of_any_peer", "no-such-package", 10)], tmp_path)
    assert "pip could not install no-such-package" in str(answer)
    [(_, ready)] = interpreters(
        [Peer("json", "json", 10)], tmp_path
    )  # it has what it needs: nothing is installed
    assert isinstance(ready, Interpreter)
    assert Path(ready.python).is_relative_to(tmp_path / "json")


def test_rounds_alternate() -> None:
    calls: list[str] = []
    one, other = feature_peers.alternate(lambda: calls.append("a"), lambda: calls.append("b"), 10, 3)
    assert calls == ["a", "b"] * 4
    assert len(one.seconds) == len(other.seconds) == 3

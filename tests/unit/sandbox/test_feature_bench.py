"""The benchmark compares like with like: the engine's windows are DuckDB's, row by row."""

from __future__ import annotations

import importlib.util

import numpy as np

from sandbox.bench import feature_peers
from sandbox.bench.features import SPEC, WINDOWS_DAYS, seeded_stream
from scoring.features import FeatureEngine, parse_spec


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


def test_absent_peers_are_said_to_be_absent() -> None:
    for name, answer in feature_peers.slow_peers(seeded_stream(2000).table(), WINDOWS_DAYS).items():
        if importlib.util.find_spec(name) is None:
            assert isinstance(answer, str)
            assert "pip install" in answer
        else:
            assert isinstance(answer, float)
            assert answer > 0


def test_rounds_alternate() -> None:
    calls: list[str] = []
    one, other = feature_peers.alternate(lambda: calls.append("a"), lambda: calls.append("b"), 10, 3)
    assert calls == ["a", "b"] * 4
    assert len(one.seconds) == len(other.seconds) == 3

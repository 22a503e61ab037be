"""Lists and devices at a million entries (``pytest tests/bench --benchmark-enable``)."""

from __future__ import annotations

import time

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from sandbox.browsers import DAY, START, bundle_of, visits, windows
from scoring.devices import DeviceLinker
from scoring.devices.agents import Agent
from scoring.devices.fingerprint import COMPONENTS, SET_WORDS, Fingerprint
from scoring.lists import FOREVER_US, ListKind, ListSet, ListTable, empty_list
from scoring.schema import entity_keys

BATCH = 4096


def filled(entries: int) -> tuple[ListTable, list[str]]:
    values = [f"DE{10**15 + 7919 * i}" for i in range(entries)]
    return empty_list("l", ListKind.BLOCK, "payee").added(values, np.full(entries, FOREVER_US)), values


@pytest.mark.parametrize("hit_share", [0.0, 0.01, 1.0])
def test_probe_of_a_batch(hit_share: float, benchmark: BenchmarkFixture) -> None:
    entries = 1_000_000 if not benchmark.disabled else 10_000
    table, values = filled(entries)
    lists = ListSet([table])
    random = np.random.default_rng(1)
    batches = []
    for _ in range(60):
        # Never the same keys twice, so that the cache is as cold as in a stream.
        keys = random.integers(1, 2**63, BATCH).astype(np.uint64)
        hits = random.random(BATCH) < hit_share
        keys[hits] = entity_keys([values[i] for i in random.integers(0, entries, int(hits.sum()))])
        batches.append((keys, hits))
    times = np.full(BATCH, START)
    for keys, hits in batches[:2]:
        assert lists.probe({"payee": keys}, times)["listed_l"].tolist() == hits.tolist()
    waiting = iter(batches[2:])
    benchmark.pedantic(lambda: lists.probe({"payee": next(waiting)[0]}, times), rounds=50)
    if benchmark.stats:
        benchmark.extra_info["ns_per_probe"] = round(1e9 * benchmark.stats["median"] / BATCH, 1)
        benchmark.extra_info["bytes_per_entry"] = round(table.nbytes / entries, 1)


def test_one_more_entry(benchmark: BenchmarkFixture) -> None:
    entries = 1_000_000 if not benchmark.disabled else 10_000
    table, _ = filled(entries)
    numbers = iter(range(10**6))
    held = {"table": table}

    def add() -> None:
        held["table"] = held["table"].added([f"new {next(numbers)}"], np.array([FOREVER_US]))

    begun = time.perf_counter()
    worst = 0.0
    for _ in range(20_000 if not benchmark.disabled else 200):
        before = time.perf_counter()
        add()
        worst = max(worst, time.perf_counter() - before)
    benchmark.extra_info["mean_us"] = round((time.perf_counter() - begun) / 20_000 * 1e6, 1)
    benchmark.extra_info["worst_ms"] = round(worst * 1000, 2)
    benchmark.pedantic(add, rounds=200)


def synthetic(random: np.random.Generator, block: int) -> Fingerprint:
    """A fingerprint of one of many devices that share their immutable part, without the cost of its bundle."""
    return Fingerprint(
        Agent("chrome", 120, "windows", 10, "", False),
        block,
        random.integers(1, 2**32, len(COMPONENTS)).astype(np.uint32),
        random.integers(0, 2**63, SET_WORDS).astype(np.uint64),
        np.array([120, 10]),
        np.append(random.integers(1, 2**63, 4), [0, 0]).astype(np.uint64),
    )


def test_devices_link_at_a_million_known(benchmark: BenchmarkFixture) -> None:
    devices = 1_000_000 if not benchmark.disabled else 2_000
    random = np.random.default_rng(2)
    linker = DeviceLinker(b"k" * 16, max_devices=devices + 100_000)
    for i in range(devices):
        linker._link(synthetic(random, 1 + i % 5000), START)
    benchmark.extra_info["bytes_per_device"] = round(linker.nbytes / max(len(linker), 1))
    bundles, truth, times, _ = visits(1, 200, 0, 60)
    who = (truth + 1).astype(np.uint64)
    half = len(bundles) // 2
    linker.observe(bundles[:half], who[:half], times[:half])
    rest = iter(range(half, len(bundles)))

    def observe() -> None:
        i = next(rest)
        linker.observe(bundles[i : i + 1], who[i : i + 1], times[i : i + 1])

    benchmark.pedantic(observe, rounds=min(len(bundles) - half, 500))


def test_the_most_crowded_bucket_is_bounded(benchmark: BenchmarkFixture) -> None:
    """Thousands of machines of one make, differing in canvas only: the look-up stays within its candidates."""
    random = np.random.default_rng(4)
    linker = DeviceLinker(b"k" * 16)
    made = windows(random)
    n = 5000 if not benchmark.disabled else 300
    fresh = []
    for i in range(n):
        bundle = bundle_of(made)
        bundle["canvas"]["value"]["text"] = f"t{i}"
        fresh.append(bundle)
    linker.observe(fresh, np.ones(n, np.uint64), START + np.arange(n) * (DAY // n))
    assert len(linker) == n
    odd = bundle_of(made)
    odd["canvas"]["value"]["text"] = "unseen"
    print_of = linker._fingerprint
    from scoring.devices.bundle import read_bundle

    fingerprint = print_of(read_bundle(odd))
    benchmark.pedantic(lambda: linker._chains.first(fingerprint.buckets), rounds=100)
    one = np.ones(1, np.uint64)
    begun = time.perf_counter()
    linker.observe([odd], one, np.array([START + DAY]))
    benchmark.extra_info["observe_us"] = round(1e6 * (time.perf_counter() - begun))

"""Speed of serving and explaining a model of 200 trees x 31 leaves on 60 features (``--benchmark-enable``)."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from scoring.models.artefact import encode_artefact
from scoring.models.dataset import NEVER, DataWindow, LabelledRows
from scoring.models.served import ServedModel
from scoring.models.training import TrainingOptions, train

FEATURES = 60
ROWS = 20_000


@pytest.fixture(scope="module")
def content(pytestconfig: pytest.Config) -> bytes:
    """The whole model where it is timed; without ``--benchmark-enable`` a tenth of its trees shows as much."""
    timed = pytestconfig.getoption("benchmark_enable")
    trees = 200 if timed else 20
    random = np.random.default_rng(0)
    features = random.normal(size=(ROWS, FEATURES))
    features[random.random(features.shape) < 0.05] = np.nan
    signal = np.nan_to_num(features)
    fraud = (
        signal[:, 0]
        + signal[:, 1] * signal[:, 2]
        + signal[:, 3:20].sum(axis=1) / 3
        + random.normal(size=ROWS)
        > 3
    )
    times = np.arange(ROWS)
    rows = LabelledRows(
        names=tuple(f"f{i}" for i in range(FEATURES)),
        features=features,
        fraud_known_us=np.where(fraud, times, NEVER),
        time_us=times,
        amount=np.ones(ROWS),
        customer=times,
        weight=np.ones(ROWS),
    )
    options = TrainingOptions(trees=trees, leaves=31, threads=1)
    artefact = train("bench", rows, DataWindow(0, 18_000, 0, ROWS), options)
    assert len(artefact.trees.feature) == trees * 61, "every tree has its 31 leaves"
    return encode_artefact(artefact)


@pytest.fixture(scope="module")
def model(content: bytes) -> ServedModel:
    return ServedModel.load(content)


def columns(rows: int) -> dict[str, NDArray[np.float64]]:
    random = np.random.default_rng(1)
    return {f"f{i}": random.normal(size=rows) for i in range(FEATURES)}


def per_row(benchmark: BenchmarkFixture, rows: int) -> None:
    if benchmark.stats:
        benchmark.extra_info["us_per_row"] = round(benchmark.stats["median"] / rows * 1e6, 3)


@pytest.mark.parametrize("rows", [1, 256, 4096])
def test_score(benchmark: BenchmarkFixture, model: ServedModel, rows: int) -> None:
    """From columns to probabilities."""
    given = columns(rows)
    benchmark(lambda: model.score(given, rows))
    per_row(benchmark, rows)


@pytest.mark.parametrize("rows", [256, 4096])
def test_score_on_two_threads(benchmark: BenchmarkFixture, content: bytes, rows: int) -> None:
    threaded = ServedModel.load(content, threads=2)
    given = columns(rows)
    benchmark(lambda: threaded.score(given, rows))
    per_row(benchmark, rows)
    threaded.close()


def test_gather_inputs(benchmark: BenchmarkFixture, model: ServedModel) -> None:
    given = columns(4096)
    benchmark(lambda: model.inputs(given, 4096))
    per_row(benchmark, 4096)


@pytest.mark.parametrize("rows", [1, 50])
def test_explain(benchmark: BenchmarkFixture, model: ServedModel, rows: int) -> None:
    """Exact SHAP values, which only transactions that are not allowed get."""
    matrix = model.inputs(columns(rows), np.arange(rows))
    model.contributions(matrix)
    benchmark(lambda: model.contributions(matrix))
    per_row(benchmark, rows)


def test_load(benchmark: BenchmarkFixture, content: bytes) -> None:
    benchmark(lambda: ServedModel.load(content))

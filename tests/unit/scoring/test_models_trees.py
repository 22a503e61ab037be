"""Tree arrays, exact SHAP and ONNX against LightGBM itself, over many random ensembles."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import lightgbm
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from scoring.models.onnx_export import INPUT, OUTPUT, onnx_bytes
from scoring.models.shap import LeafPaths, ShapError
from scoring.models.training import probabilities
from scoring.models.trees import MAX_TREES, TreeEnsemble, TreeError, as_inputs, floor32, trees_of


def booster(seed: int, **changes: Any) -> tuple[Any, NDArray[np.float32]]:
    """A LightGBM model of a random shape and rows it has and has not seen, with NaN where the shape says so."""
    random = np.random.default_rng(seed)
    n, f = int(random.integers(60, 500)), int(random.integers(1, 9))
    rows = random.normal(size=(n, f)) * 10.0 ** random.integers(-3, 6, f)
    if seed % 3 == 0:
        rows = np.round(rows)
    if seed % 2:
        rows[random.random(rows.shape) < 0.2] = np.nan
    rows = as_inputs(rows)
    signal = np.nan_to_num(rows[:, 0] / max(1e-9, float(np.nanstd(rows[:, 0])))) + np.isnan(rows[:, -1])
    label = (signal + random.normal(size=n) * 0.5 > 0.5).astype(float)
    parameters = {
        "objective": "binary",
        "num_leaves": int(random.integers(2, 40)),
        "min_data_in_leaf": int(random.integers(1, 8)),
        "use_missing": seed % 5 != 0,
        "verbosity": -1,
        "num_threads": 1,
        "seed": seed,
        **changes,
    }
    model = lightgbm.train(parameters, lightgbm.Dataset(rows, label), int(random.integers(1, 15)))
    fresh = as_inputs(random.normal(size=(30, f)) * 10.0 ** random.integers(-3, 6, f))
    fresh[random.random(fresh.shape) < 0.3] = np.nan
    fresh[0], fresh[1] = np.inf, -np.inf
    return model, np.concatenate([rows[:40], fresh])


@pytest.mark.parametrize("seed", range(30))
def test_predictions_and_contributions_are_lightgbms(seed: int) -> None:
    model, rows = booster(seed)
    trees = trees_of(model.dump_model())
    raw = model.predict(rows, raw_score=True)
    np.testing.assert_allclose(trees.predict(rows), raw, rtol=0, atol=1e-12)
    paths = LeafPaths.of(trees, rows.shape[1])
    reference = model.predict(rows, pred_contrib=True)
    found = paths.contributions(rows)
    np.testing.assert_allclose(found, reference[:, :-1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(paths.expected, reference[:, -1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1) + paths.expected, raw, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(0, 30, 3))
def test_onnx_decides_as_lightgbm_does(seed: int) -> None:
    model, rows = booster(seed)
    trees = trees_of(model.dump_model())
    session = onnxruntime.InferenceSession(
        onnx_bytes(trees, rows.shape[1]), providers=["CPUExecutionProvider"]
    )
    # Values on both sides of every threshold, as near as float32 goes: a rounded threshold would send some astray.
    edges = trees.threshold[trees.feature >= 0]
    with np.errstate(over="ignore"):
        above = np.nextafter(edges, np.float32(np.inf))
    near = np.concatenate([edges, above, [np.float32(0), np.float32(np.nan)]])
    near[np.abs(near) <= 1.1e-35] = 0  # LightGBM takes such values for 0
    rows = np.concatenate([rows, np.repeat(near[:, None], rows.shape[1], axis=1).astype(np.float32)])
    found = session.run([OUTPUT], {INPUT: rows})[0][:, 0]
    np.testing.assert_allclose(found, model.predict(rows), rtol=0, atol=1e-6)
    np.testing.assert_allclose(probabilities(trees.predict(rows)), model.predict(rows), rtol=0, atol=1e-12)


def brute_force(trees: TreeEnsemble, row: NDArray[np.float32], features: int) -> NDArray[np.float64]:
    """Shapley values by their definition over all subsets; a subset's worth by Lundberg's EXPVALUE (algorithm 1)."""

    def worth(known: frozenset[int], node: int) -> float:
        f = int(trees.feature[node])
        if f < 0:
            return float(trees.value[node])
        left, right = int(trees.left[node]), int(trees.right[node])
        if f in known:
            x = row[f]
            goes_left = trees.missing_left[node] if np.isnan(x) else x <= trees.threshold[node]
            return worth(known, left if goes_left else right)
        share = trees.cover[left] / trees.cover[node]
        return float(share * worth(known, left) + (1 - share) * worth(known, right))

    phi = np.zeros(features)
    for i in range(features):
        others = [j for j in range(features) if j != i]
        for size in range(features):
            weight = math.factorial(size) * math.factorial(features - size - 1) / math.factorial(features)
            for chosen in itertools.combinations(others, size):
                without, known = frozenset(chosen), frozenset((*chosen, i))
                for root in trees.roots.tolist():
                    phi[i] += weight * (worth(known, root) - worth(without, root))
    return phi


@pytest.mark.parametrize("seed", [1, 4, 7, 10])
def test_contributions_are_shapley_values_by_their_definition(seed: int) -> None:
    model, rows = booster(seed)
    trees = trees_of(model.dump_model())
    features = rows.shape[1]
    paths = LeafPaths.of(trees, features)
    for row in rows[38:44]:
        np.testing.assert_allclose(
            paths.contributions(row[None])[0], brute_force(trees, row, features), rtol=0, atol=1e-9
        )


def chain(depth: int) -> TreeEnsemble:
    """One tree that tests ``depth`` different inputs one after the other; half of the rows leave at each."""
    nodes = 2 * depth + 1
    feature = np.full(nodes, -1, np.int32)
    left, right = np.full(nodes, -1), np.full(nodes, -1)
    feature[0 : 2 * depth : 2] = np.arange(depth)
    left[0 : 2 * depth : 2] = np.arange(1, 2 * depth, 2)
    right[0 : 2 * depth : 2] = np.arange(2, 2 * depth + 1, 2)
    cover = np.repeat(2.0 ** np.arange(depth, -1, -1), 2)[1:]
    return TreeEnsemble(
        roots=np.zeros(1, np.int64),
        feature=feature,
        threshold=np.zeros(nodes, np.float32),
        missing_left=np.zeros(nodes, np.bool_),
        left=left.astype(np.int64),
        right=right.astype(np.int64),
        value=np.where(feature < 0, np.arange(nodes, dtype=float), 0.0),
        cover=np.maximum(cover, 1.0),
    )


def test_long_paths_stay_exact_and_longer_ones_are_refused() -> None:
    trees = chain(120)
    trees.check(120)
    paths = LeafPaths.of(trees, 120)
    random = np.random.default_rng(0)
    rows = as_inputs(np.concatenate([np.ones((1, 120)), random.normal(size=(20, 120)) + 2]))
    found = paths.contributions(rows)
    np.testing.assert_allclose(found.sum(axis=1) + paths.expected, trees.predict(rows), rtol=1e-9)
    with pytest.raises(ShapError, match="129 inputs"):
        LeafPaths.of(chain(129), 129)


def test_a_chain_that_would_fill_the_memory_is_refused_before_it_does() -> None:
    depth = 500_000
    with np.errstate(over="ignore"):
        trees = chain(depth)
    trees = replace(
        trees, feature=np.where(trees.feature >= 0, 0, -1).astype(np.int32), cover=np.ones(2 * depth + 1)
    )
    trees.check(1)
    with pytest.raises(ShapError, match=f"{depth * (depth + 1) // 2 + depth} tests"):
        LeafPaths.of(trees, 1)


def test_more_trees_than_a_row_can_pay_for_are_refused() -> None:
    many = MAX_TREES + 1
    leaves = TreeEnsemble(
        roots=np.arange(many),
        feature=np.full(many, -1, np.int32),
        threshold=np.zeros(many, np.float32),
        missing_left=np.zeros(many, np.bool_),
        left=np.full(many, -1),
        right=np.full(many, -1),
        value=np.zeros(many),
        cover=np.ones(many),
    )
    with pytest.raises(TreeError, match=f"at most {MAX_TREES} trees"):
        leaves.check(1)


def test_thresholds_round_down() -> None:
    assert floor32(1e300) == np.inf
    for value in (0.1, -0.1, 3e38, 1 / 3, -1e-50, 16777217.0, 0.0):
        rounded = float(floor32(value))
        assert rounded <= value
        assert float(np.nextafter(np.float32(rounded), np.float32(np.inf))) > value


def test_a_single_leaf_is_a_constant() -> None:
    rows = as_inputs(np.zeros((50, 2)))
    model = lightgbm.train(
        {"objective": "binary", "verbosity": -1}, lightgbm.Dataset(rows, np.arange(50) % 2), 3
    )
    trees = trees_of(model.dump_model())
    paths = LeafPaths.of(trees, 2)
    assert np.array_equal(paths.contributions(rows[:2]), np.zeros((2, 2)))
    np.testing.assert_allclose(paths.expected, model.predict(rows[:1], raw_score=True), atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "regression"}, "only binary log loss"),
        ({"zero_as_missing": True, "use_missing": True}, "zero_as_missing"),
        ({"linear_tree": True}, "linear"),
        ({"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}, "averaged"),
    ],
)
def test_what_is_not_served_is_refused(changes: dict[str, Any], words: str) -> None:
    model, _ = booster(2, **changes)
    with pytest.raises(TreeError, match=words):
        trees_of(model.dump_model())


def test_categorical_splits_are_refused() -> None:
    random = np.random.default_rng(0)
    rows = random.integers(0, 6, (300, 1)).astype(float)
    data = lightgbm.Dataset(rows, np.isin(rows[:, 0], [1, 4]), categorical_feature=[0])
    model = lightgbm.train({"objective": "binary", "verbosity": -1, "min_data_per_group": 1}, data, 2)
    with pytest.raises(TreeError, match="category"):
        trees_of(model.dump_model())


def test_arrays_that_would_be_walked_out_of_bounds_are_refused() -> None:
    good = chain(3)
    good.check(3)
    inner = np.flatnonzero(good.feature >= 0)

    def changed(name: str, place: int, value: float) -> TreeEnsemble:
        array = getattr(good, name).copy()
        array[place] = value
        return replace(good, **{name: array})

    for bad in (
        changed("left", inner[1], 0),  # a loop
        changed("right", inner[2], 7),  # past the end
        changed("left", inner[0], -1),
        changed("feature", inner[0], 3),
        changed("feature", inner[0], -2),
        changed("left", 1, 2),  # a leaf with a child
        changed("threshold", inner[0], np.nan),
        changed("value", 1, np.inf),
        changed("cover", 1, 0.0),
        changed("roots", 0, 1),
        replace(good, left=good.left[:-1]),
        replace(good, value=good.value.astype(np.float32)),
        replace(good, roots=np.empty(0, np.int64)),
    ):
        with pytest.raises(TreeError):
            bad.check(3)

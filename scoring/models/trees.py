"""A boosted ensemble of binary trees as plain arrays: the one form that is served, explained and kept.

A model's inputs are float32 by definition: it is trained on float32 values, and every threshold is rounded towards
minus infinity to float32. For a float32 value x and a real threshold t, ``x <= t`` holds exactly when
``x <= floor32(t)``, so rounding changes no decision; rounding to nearest, as converters do, would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled

MAX_NODES = 4_000_000
# What one row may cost: every tree is walked for it.
MAX_TREES = 10_000
LEAF = -1
_GREATEST = float(np.finfo(np.float32).max)


class TreeError(ValueError):
    """The trees are of a kind this engine does not serve, or their arrays contradict each other."""


@dataclass(frozen=True, eq=False)
class TreeEnsemble:
    """``t`` trees with ``m`` nodes in all; a row's raw score (log odds) is the sum of its leaves' values.

    roots         int64 [t]: the node each tree starts at; a tree's nodes are consecutive, its root first
    feature       int32 [m]: the input compared at a node, -1 at a leaf
    threshold     float32 [m]: a value goes left when ``value <= threshold``
    missing_left  bool [m]: whether NaN goes left
    left, right   int64 [m]: the children (greater than the node itself), -1 at a leaf
    value         float64 [m]: log odds a leaf adds, 0 elsewhere
    cover         float64 [m]: training rows that reached the node, at least 1
    """

    roots: NDArray[np.int64]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    missing_left: NDArray[np.bool_]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: NDArray[np.float64]
    cover: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.roots)

    def check(self, features: int) -> None:
        """Raise :class:`TreeError` unless every walk from every root ends at a leaf and reads only given inputs.

        Arrays that pass may be walked without bounds checks, whoever made them.
        """
        for field in fields(self):
            array = getattr(self, field.name)
            if array.dtype != _DTYPES[field.name] or array.ndim != 1:
                raise TreeError(f"{field.name} holds {array.dtype} of {array.ndim} dimensions")
        nodes = len(self.feature)
        if any(len(getattr(self, name)) != nodes for name in _DTYPES if name != "roots"):
            raise TreeError("the arrays of the nodes differ in length")
        if not 0 < nodes <= MAX_NODES or not 0 < len(self.roots) <= min(nodes, MAX_TREES):
            raise TreeError(
                f"{len(self.roots)} trees of {nodes} nodes: at most {MAX_TREES} trees and {MAX_NODES} nodes are served"
            )
        starts = self.roots
        if starts[0] != 0 or np.any(np.diff(starts) <= 0) or starts[-1] >= nodes:
            raise TreeError("trees do not follow each other")
        ends = np.repeat(np.append(starts[1:], nodes), np.diff(np.append(starts, nodes)))
        places = np.arange(nodes)
        inner = self.feature != LEAF
        for child in (self.left, self.right):
            if np.any(child[~inner] != LEAF):
                raise TreeError("a leaf has children")
            if np.any((child[inner] <= places[inner]) | (child[inner] >= ends[inner])):
                raise TreeError("a child does not come after its parent within its tree")
        if np.any((self.feature < LEAF) | (self.feature >= features)):
            raise TreeError(f"a node reads an input that is none of the {features}")
        if np.isnan(self.threshold[inner]).any() or not np.isfinite(self.value).all():
            raise TreeError("a threshold or a leaf's value is not a number")
        if not (np.isfinite(self.cover).all() and np.all(self.cover >= 1)):
            raise TreeError("a node was reached by no training row")

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Raw scores float64 [n] of rows float32 [n, f], summed in the order of the trees."""
        return _predict(
            rows,
            self.roots,
            self.feature,
            self.threshold,
            self.missing_left,
            self.left,
            self.right,
            self.value,
        )


_DTYPES = {
    "roots": np.dtype(np.int64),
    "feature": np.dtype(np.int32),
    "threshold": np.dtype(np.float32),
    "missing_left": np.dtype(np.bool_),
    "left": np.dtype(np.int64),
    "right": np.dtype(np.int64),
    "value": np.dtype(np.float64),
    "cover": np.dtype(np.float64),
}


def as_inputs(values: NDArray[Any]) -> NDArray[np.float32]:
    """``values`` as models read them: float32, C order; what exceeds float32 becomes infinite, NaN stays."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)


def floor32(threshold: float) -> np.float32:
    """The greatest float32 that is not greater than ``threshold``; infinity for what exceeds float32.

    LightGBM parts missing values from all others by a threshold of infinity, and spells it 1e300.
    """
    if threshold > _GREATEST:
        return np.float32(np.inf)
    nearest = np.float32(max(threshold, -_GREATEST))
    if float(nearest) > threshold:
        return np.float32(np.nextafter(nearest, np.float32(-np.inf)))
    return nearest


def trees_of(dump: Mapping[str, Any]) -> TreeEnsemble:
    """The trees of a LightGBM model as ``Booster.dump_model()`` describes it.

    Raises :class:`TreeError` for what is not served: objectives other than binary log loss, categorical splits,
    zeros taken as missing, linear leaves, averaged forests.
    """
    objective = str(dump.get("objective", ""))
    if objective.split() != ["binary", "sigmoid:1"] or dump["num_tree_per_iteration"] != 1:
        raise TreeError(f"objective {objective!r}: only binary log loss is served")
    if dump.get("average_output"):
        raise TreeError("an averaged forest is not served, only boosting")
    nodes: list[tuple[int, np.float32, bool, int, int, float, float]] = []
    roots = []
    for tree in dump["tree_info"]:
        if tree["num_cat"]:
            raise TreeError(f"tree {tree['tree_index']} splits by category: only numeric splits are served")
        roots.append(len(nodes))
        _append(nodes, tree["tree_structure"])
    columns = list(zip(*nodes, strict=True)) or [()] * 7
    ensemble = TreeEnsemble(
        roots=np.array(roots, np.int64),
        feature=np.array(columns[0], np.int32),
        threshold=np.array(columns[1], np.float32),
        missing_left=np.array(columns[2], np.bool_),
        left=np.array(columns[3], np.int64),
        right=np.array(columns[4], np.int64),
        value=np.array(columns[5], np.float64),
        cover=np.array(columns[6], np.float64),
    )
    ensemble.check(int(dump["max_feature_idx"]) + 1)
    return ensemble


def _append(
    nodes: list[tuple[int, np.float32, bool, int, int, float, float]], root: Mapping[str, Any]
) -> None:
    """Append a tree, parents before children (without recursion: a tree may be as deep as it has leaves)."""
    waiting: list[tuple[Mapping[str, Any], int, bool]] = [(root, -1, False)]
    while waiting:
        node, parent, is_left = waiting.pop()
        place = len(nodes)
        if parent >= 0:
            known = list(nodes[parent])
            known[3 if is_left else 4] = place
            nodes[parent] = tuple(known)  # type: ignore[assignment]
        if "split_feature" not in node:
            if "leaf_coeff" in node:
                raise TreeError("a leaf holds a linear model: only constant leaves are served")
            # A tree that is one leaf does not say how many rows it saw; nothing is ever divided by that.
            cover = float(node.get("leaf_count", 1))
            nodes.append((LEAF, np.float32(0), False, LEAF, LEAF, float(node["leaf_value"]), cover))
            continue
        if node["decision_type"] != "<=":
            raise TreeError(f"decision {node['decision_type']!r}: only numeric splits are served")
        threshold = float(node["threshold"])
        match node["missing_type"]:
            case "NaN":
                missing_left = bool(node["default_left"])
            case "None":
                # No value was missing in training: LightGBM then reads NaN as 0.
                missing_left = threshold >= 0
            case other:
                raise TreeError(f"missing values are taken as {other!r}: train without zero_as_missing")
        nodes.append(
            (
                int(node["split_feature"]),
                floor32(threshold),
                missing_left,
                LEAF,
                LEAF,
                0.0,
                float(node["internal_count"]),
            )
        )
        waiting.append((node["right_child"], place, False))
        waiting.append((node["left_child"], place, True))


@compiled
def _predict(
    rows: NDArray[np.float32],
    roots: NDArray[np.int64],
    feature: NDArray[np.int32],
    threshold: NDArray[np.float32],
    missing_left: NDArray[np.bool_],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    value: NDArray[np.float64],
) -> NDArray[np.float64]:
    raw = np.zeros(len(rows))
    for i in range(len(rows)):
        for root in roots:
            node = root
            while feature[node] >= 0:
                x = rows[i, feature[node]]
                goes_left = missing_left[node] if np.isnan(x) else x <= threshold[node]
                node = left[node] if goes_left else right[node]
            raw[i] += value[node]
    return raw

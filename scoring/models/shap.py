"""Exact SHAP values of tree ensembles, path-dependent: Lundberg et al. 2020, "From local explanations to global
understanding with explainable AI for trees", algorithm 2, computed leaf by leaf.

A leaf of value v whose path tests d distinct inputs defines a game: with the inputs of a set S known, it is worth
v * prod(o_j for j in S) * prod(z_j for j outside S), where o_j is 1 when the row passes all tests of input j on the
path (else 0) and z_j is the share of training rows that pass them, given the rest of the path. The ensemble's
game is the sum of its leaves' games, and so are its Shapley values. With P the inputs the row passes and F those it
fails, e_m the elementary symmetric polynomials and w(k) = k!(d-1-k)!/d!:

    phi_i = -v * prod(z_F) * sum_k w(k) e_{|P|-k}(z_P)                    for i in F: one sum for all of them
    phi_i = v * (1 - z_i) * prod(z_F) * sum_k w(k) e_{|P|-1-k}(z_{P \\ i})  for i in P

Only the passed inputs need polynomials, and a row passes about half of a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled
from scoring.models.trees import TreeEnsemble

# Shapley weights are needed up to as many distinct inputs as one path may test.
MAX_PATH = 128
# Tests on all paths together: 5,000 trees of 255 leaves have half as many, a chain of a million nodes ten thousand
# times more than memory holds.
MAX_TESTS = 1 << 25


class ShapError(ValueError):
    """The trees cannot be explained exactly; the text says why."""


@dataclass(frozen=True, eq=False)
class LeafPaths:
    """Every leaf with the tests on its path, one for each distinct input: value in (low, high], or NaN.

    start    int64 [leaves + 1]: the leaf's tests are ``start[leaf]:start[leaf + 1]``
    value    float64 [leaves]
    feature  int32 [tests]; low, high float32 [tests]; missing bool [tests]: whether NaN passes
    share    float64 [tests]: training rows that pass, given the rest of the path, in (0, 1]
    weights  float64 [MAX_PATH + 1, MAX_PATH]: ``weights[d, k]`` = k!(d-1-k)!/d!
    expected float: the mean raw score over the training rows
    features int: how many inputs there are
    """

    start: NDArray[np.int64]
    value: NDArray[np.float64]
    feature: NDArray[np.int32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    missing: NDArray[np.bool_]
    share: NDArray[np.float64]
    weights: NDArray[np.float64]
    expected: float
    features: int

    @classmethod
    def of(cls, trees: TreeEnsemble, features: int) -> LeafPaths:
        """The paths of checked trees. Raises :class:`ShapError` for more than ``MAX_TESTS`` tests on them, or a path of
        more than ``MAX_PATH`` inputs."""
        tests = _count_tests(trees.feature, trees.left, trees.right)
        if tests > MAX_TESTS:
            raise ShapError(f"its paths have {tests} tests; at most {MAX_TESTS} are explained")
        start, value, feature, low, high, missing, share, expected, widest = _paths(
            trees.roots,
            trees.feature,
            trees.threshold,
            trees.missing_left,
            trees.left,
            trees.right,
            trees.value,
            trees.cover,
            features,
        )
        if widest > MAX_PATH:
            raise ShapError(f"a path tests {widest} inputs; at most {MAX_PATH} are explained")
        return cls(start, value, feature, low, high, missing, share, _weights(), expected, features)

    def contributions(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Contributions float64 [n, features] of rows float32 [n, features], in log odds.

        A row's contributions and ``expected`` add up to its raw score.
        """
        phi = np.zeros((len(rows), self.features))
        _contributions(
            rows,
            self.start,
            self.value,
            self.feature,
            self.low,
            self.high,
            self.missing,
            self.share,
            self.weights,
            phi,
        )
        return phi


def _weights() -> NDArray[np.float64]:
    weights = np.zeros((MAX_PATH + 1, MAX_PATH))
    for d in range(1, MAX_PATH + 1):
        weights[d, 0] = 1.0 / d
        for k in range(1, d):
            weights[d, k] = weights[d, k - 1] * k / (d - k)
    return weights


@compiled
def _count_tests(feature: NDArray[np.int32], left: NDArray[np.int64], right: NDArray[np.int64]) -> int:
    """The depths of all leaves, added up."""
    depth = np.zeros(len(feature), np.int64)
    tests = 0
    for node in range(len(feature)):
        if feature[node] >= 0:
            for child in (left[node], right[node]):
                depth[child] = depth[node] + 1
        else:
            tests += depth[node]
    return tests


@compiled
def _paths(
    roots: NDArray[np.int64],
    feature: NDArray[np.int32],
    threshold: NDArray[np.float32],
    missing_left: NDArray[np.bool_],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    value: NDArray[np.float64],
    cover: NDArray[np.float64],
    features: int,
) -> Any:
    nodes = len(feature)
    parent = np.full(nodes, -1, np.int64)
    depth = np.zeros(nodes, np.int64)
    leaves, tests = 0, 0
    for node in range(nodes):
        if feature[node] >= 0:
            for child in (left[node], right[node]):
                parent[child] = node
                depth[child] = depth[node] + 1
        else:
            leaves += 1
            tests += depth[node]
    start = np.zeros(leaves + 1, np.int64)
    leaf_value = np.zeros(leaves)
    path_feature = np.zeros(tests, np.int32)
    low = np.full(tests, -np.inf, np.float32)
    high = np.full(tests, np.inf, np.float32)
    # (-inf, inf] would leave out -inf itself: an open lower end is NaN, which no comparison passes.
    unbounded = np.float32(np.nan)
    missing = np.ones(tests, np.bool_)
    share = np.ones(tests)
    place_of = np.full(features, -1, np.int64)
    expected = 0.0
    leaf, end, widest = 0, 0, 0
    for tree in range(len(roots)):
        root = roots[tree]
        last = roots[tree + 1] if tree + 1 < len(roots) else nodes
        for node in range(root, last):
            if feature[node] >= 0:
                continue
            expected += value[node] * cover[node] / cover[root]
            begin = end
            child = node
            while child != root:
                above = parent[child]
                f = feature[above]
                if place_of[f] < 0:
                    place_of[f] = end
                    path_feature[end] = f
                    low[end] = unbounded
                    end += 1
                place = place_of[f]
                if child == left[above]:
                    high[place] = min(high[place], threshold[above])
                    missing[place] = missing[place] and missing_left[above]
                else:
                    if np.isnan(low[place]) or threshold[above] > low[place]:
                        low[place] = threshold[above]
                    missing[place] = missing[place] and not missing_left[above]
                share[place] *= cover[child] / cover[above]
                child = above
            for place in range(begin, end):
                place_of[path_feature[place]] = -1
            widest = max(widest, end - begin)
            leaf_value[leaf] = value[node]
            leaf += 1
            start[leaf] = end
    return (
        start,
        leaf_value,
        path_feature[:end].copy(),
        low[:end].copy(),
        high[:end].copy(),
        missing[:end].copy(),
        share[:end].copy(),
        expected,
        widest,
    )


@compiled
def _contributions(
    rows: NDArray[np.float32],
    start: NDArray[np.int64],
    value: NDArray[np.float64],
    feature: NDArray[np.int32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    missing: NDArray[np.bool_],
    share: NDArray[np.float64],
    weights: NDArray[np.float64],
    phi: NDArray[np.float64],
) -> None:
    passed = np.empty(MAX_PATH, np.int64)
    failed = np.empty(MAX_PATH, np.int64)
    e = np.empty(MAX_PATH + 1)
    for i in range(len(rows)):
        for leaf in range(len(value)):
            p, q = 0, 0
            scale = value[leaf]
            for place in range(start[leaf], start[leaf + 1]):
                x = rows[i, feature[place]]
                passes = missing[place] if np.isnan(x) else (x <= high[place] and not x <= low[place])
                if passes:
                    passed[p] = place
                    p += 1
                else:
                    failed[q] = place
                    q += 1
                    scale *= share[place]
            d = p + q
            # e_m of the passed inputs' shares
            e[0] = 1.0
            for j in range(p):
                z = share[passed[j]]
                e[j + 1] = e[j] * z
                for m in range(j, 0, -1):
                    e[m] += e[m - 1] * z
            if q:
                total = 0.0
                for k in range(p + 1):
                    total += weights[d, k] * e[p - k]
                for j in range(q):
                    phi[i, feature[failed[j]]] -= scale * total
            for j in range(p):
                z = share[passed[j]]
                # Synthetic division: b_m of all passed inputs but this one; z <= 1 keeps the error from growing.
                b, total = 1.0, weights[d, p - 1]
                for m in range(1, p):
                    b = e[m] - z * b
                    total += weights[d, p - 1 - m] * b
                phi[i, feature[passed[j]]] += scale * (1.0 - z) * total

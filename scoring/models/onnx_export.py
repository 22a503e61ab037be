"""Tree ensembles as ONNX: one TreeEnsembleRegressor and a sigmoid, float32 in, one probability a row out.

Written from the ensemble's own arrays, so that what is served and what is explained cannot differ: a converter that
rounds thresholds to the nearest float32 sends some rows the other way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scoring.models.trees import LEAF, TreeEnsemble

INPUT, OUTPUT = "features", "probability"
# The newest versions that the operators used here need; every runtime since 2021 knows them.
_IR_VERSION, _OPSET, _ML_OPSET = 8, 13, 3


class OnnxError(ValueError):
    """An ONNX graph is not the one of its trees."""


def onnx_bytes(trees: TreeEnsemble, features: int) -> bytes:
    """A model that maps ``features`` float32 [n, features] to ``probability`` float32 [n, 1].

    NaN follows ``missing_left``. Imports the onnx package: for training only.
    """
    from onnx import TensorProto, checker, helper

    nodes = len(trees.feature)
    tree_of = np.repeat(np.arange(len(trees)), np.diff(np.append(trees.roots, nodes)))
    place = np.arange(nodes) - trees.roots[tree_of]
    is_leaf = trees.feature == LEAF
    leaves = np.flatnonzero(is_leaf)

    def child(places: NDArray[np.int64]) -> list[int]:
        within: list[int] = np.where(is_leaf, 0, places - trees.roots[tree_of]).tolist()
        return within

    ensemble = helper.make_node(
        "TreeEnsembleRegressor",
        [INPUT],
        ["log_odds"],
        domain="ai.onnx.ml",
        n_targets=1,
        aggregate_function="SUM",
        post_transform="NONE",
        nodes_treeids=tree_of.tolist(),
        nodes_nodeids=place.tolist(),
        nodes_featureids=np.where(is_leaf, 0, trees.feature).tolist(),
        nodes_modes=["LEAF" if leaf else "BRANCH_LEQ" for leaf in is_leaf.tolist()],
        nodes_values=trees.threshold.tolist(),
        nodes_truenodeids=child(trees.left),
        nodes_falsenodeids=child(trees.right),
        nodes_missing_value_tracks_true=trees.missing_left.astype(int).tolist(),
        target_treeids=tree_of[leaves].tolist(),
        target_nodeids=place[leaves].tolist(),
        target_ids=[0] * len(leaves),
        target_weights=trees.value[leaves].tolist(),
    )
    graph = helper.make_graph(
        [ensemble, helper.make_node("Sigmoid", ["log_odds"], [OUTPUT])],
        "fraud",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, features])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 1])],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)],
        ir_version=_IR_VERSION,
        producer_name="subrosa",
    )
    checker.check_model(model)
    return bytes(model.SerializeToString())


def check_onnx(onnx: bytes, trees: TreeEnsemble, features: int) -> None:
    """Raise :class:`OnnxError` unless ``onnx`` is byte for byte what :func:`onnx_bytes` makes of the trees.

    A file may come from anybody on the staff. What serves must be what the explanations and the card speak of: an
    operator more, or one leaf less for a certain amount, would show in no probe row. It also keeps a graph from loops,
    huge constants and paths of other files. Call it before a runtime opens ``onnx``. Imports the onnx package.
    """
    if onnx != onnx_bytes(trees, features):
        raise OnnxError("what it would serve is not made of its trees by this version: train it again here")

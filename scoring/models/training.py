"""Training: gradient-boosted trees on one window of labelled rows, measured on a later one.

LightGBM is imported here and only when a model is trained; what serves the model never needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from scoring.drift import Baseline, baseline
from scoring.models.artefact import ModelArtefact, ModelCard, check_name
from scoring.models.dataset import DatasetError, DataWindow, LabelledRows, split
from scoring.models.metrics import measure
from scoring.models.onnx_export import onnx_bytes
from scoring.models.served import open_session, run_session
from scoring.models.trees import TreeEnsemble, as_inputs, trees_of

PROBES = 64


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. Equal options and rows give the same model, whatever ``threads`` is.

    ``trees`` of at most ``leaves`` leaves with at least ``least_leaf_rows`` training rows each; ``target_precision``:
    of the threshold that is suggested.
    """

    trees: int = 200
    leaves: int = 31
    learning_rate: float = 0.05
    least_leaf_rows: int = 20
    seed: int = 0
    threads: int = 1
    target_precision: float = 0.9

    def __post_init__(self) -> None:
        bounds = {
            "trees": (1, 5000),
            "leaves": (2, 1024),
            "learning_rate": (1e-4, 1.0),
            "least_leaf_rows": (1, 10**6),
            "seed": (0, 2**31 - 1),
            "threads": (1, 256),
            "target_precision": (0.0, 1.0),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise DatasetError(f"{name} must lie within {low}..{high}, it is {getattr(self, name)}")


def train(
    name: str,
    rows: LabelledRows,
    window: DataWindow,
    options: TrainingOptions = TrainingOptions(),
    *,
    advance: Callable[[int, int], None] = lambda _done, _of: None,
) -> ModelArtefact:
    """Train on ``window`` of ``rows`` and measure on its validation part.

    ``advance`` is told after each tree how many there are of how many. Raises :class:`DatasetError`, and
    :class:`~scoring.models.artefact.ArtefactError` for a bad name. Imports lightgbm, onnx and scikit-learn.
    """
    check_name(name)
    parts = split(rows, window)
    inputs = as_inputs(parts.train.features)
    trees = boost(inputs, parts.train_fraud, parts.train.weight, options, advance=advance)
    onnx = onnx_bytes(trees, len(rows.names))
    # As it will be served: a threshold is of use only to the last bit of a score.
    scores = run_session(open_session(onnx, len(rows.names)), as_inputs(parts.valid.features))
    metrics = measure(
        scores,
        parts.valid_fraud,
        parts.valid.amount,
        customer=parts.valid.customer,
        time_us=parts.valid.time_us,
        target_precision=options.target_precision,
    )
    baselines = tuple(baseline(inputs[:, i]) for i in range(len(rows.names)))
    probes = _probes(baselines, options.seed)
    return ModelArtefact(
        card=ModelCard(
            name=name,
            features=rows.names,
            window=window,
            metrics=metrics,
            train_rows=len(parts.train),
            train_frauds=int(parts.train_fraud.sum()),
            parameters={key: value for key, value in asdict(options).items() if key != "threads"},
            trained_with=_trainer(),
        ),
        onnx=onnx,
        trees=trees,
        baselines=baselines,
        # Scores of rows that trained the model are too good: those it had not seen are what it gives when it serves.
        score_baseline=baseline(scores),
        probes=probes,
        probe_scores=probabilities(trees.predict(probes)),
    )


def boost(
    inputs: NDArray[np.float32],
    fraud: NDArray[np.bool_],
    weight: NDArray[np.float64],
    options: TrainingOptions,
    *,
    advance: Callable[[int, int], None] = lambda _done, _of: None,
) -> TreeEnsemble:
    """LightGBM on inputs [n, f], labels [n] and weights [n]; binary log loss, NaN as missing."""
    import lightgbm

    parameters = {
        "objective": "binary",
        "num_leaves": options.leaves,
        "learning_rate": options.learning_rate,
        "min_data_in_leaf": options.least_leaf_rows,
        "seed": options.seed,
        "num_threads": options.threads,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    dataset = lightgbm.Dataset(inputs, label=fraud.astype(np.float32), weight=weight, params=parameters)
    booster = lightgbm.train(
        parameters,
        dataset,
        num_boost_round=options.trees,
        callbacks=[lambda state: advance(state.iteration + 1, options.trees)],
    )
    return trees_of(booster.dump_model())


def probabilities(raw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log odds as probabilities, without overflow."""
    weaker = np.exp(-np.abs(raw))
    return np.where(raw >= 0, 1.0, weaker) / (1.0 + weaker)


def _probes(baselines: Sequence[Baseline], seed: int) -> NDArray[np.float32]:
    """Made-up rows [PROBES, f]: each value an edge of its column's histogram, some missing."""
    random = np.random.default_rng(seed)
    rows = np.full((PROBES, len(baselines)), np.nan)
    for place, each in enumerate(baselines):
        if len(each.fine.edges):
            rows[:, place] = random.choice(each.fine.edges, PROBES)
    rows[random.random(rows.shape) < 0.05] = np.nan
    return as_inputs(rows)


def _trainer() -> str:
    import lightgbm

    return f"lightgbm {lightgbm.__version__}"

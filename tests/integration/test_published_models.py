"""The published models of the card stream, from our features; and a model of ours, served, on the same split.

Features come from the streaming engine under the handbook spec. Rows, standardisation and the removal of customers
already known as compromised are the handbook's (see ``../shared/data/README.md``).
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from sandbox.evaluation.calendar import EPOCH, Weeks
from scoring.features import FeatureEngine, parse_spec
from scoring.features.spec import FieldFeature
from scoring.models.artefact import encode_artefact
from scoring.models.dataset import NEVER, DataWindow, LabelledRows
from scoring.models.metrics import card_precision
from scoring.models.served import ServedModel
from scoring.models.training import TrainingOptions, train
from scoring.schema import OutcomeBatch, transaction_batch

ROOT = Path(__file__).resolve().parents[2]
EVENTS = ROOT.parent / "shared" / "data" / "handbook" / "transactions.parquet"
DAY = 86_400_000_000
BATCH = 32_768
WEEKS = Weeks(dt.date(2018, 7, 25), 7, 7, 7)
# The widest window reaches 30 days behind a label delay of 7.
FIRST_DAY = WEEKS.first_train_day - 38

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not EVENTS.exists(), reason="../shared/data/handbook is not here"),
]


@dataclass(frozen=True)
class Split:
    """The rows of the two weeks with their features (amount first), as the handbook's models see them."""

    names: tuple[str, ...]
    features: NDArray[np.float64]
    fraud: NDArray[np.int8]
    customer: NDArray[np.int64]
    amount: NDArray[np.float64]
    time: NDArray[np.int64]
    train: NDArray[np.bool_]
    test: NDArray[np.bool_]

    def scaled(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Standardised by the training rows."""
        scaler = StandardScaler()
        return scaler.fit_transform(self.features[self.train]), scaler.transform(self.features[self.test])


@pytest.fixture(scope="module")
def split() -> Split:
    rows = pl.read_parquet(EVENTS)
    time = rows["TX_DATETIME"].dt.epoch("us").to_numpy().astype(np.int64)
    kept = time >= FIRST_DAY * DAY
    rows, time = rows.filter(pl.Series(kept)), time[kept]
    ids = rows["TRANSACTION_ID"].to_numpy().astype(np.int64)
    fraud = rows["TX_FRAUD"].to_numpy().astype(np.int8)
    batch = transaction_batch(
        event_id=ids,
        time_us=time,
        amount=rows["TX_AMOUNT"].to_numpy(),
        channel="card",
        entities={
            "customer": rows["CUSTOMER_ID"].to_numpy().astype(np.int64),
            "terminal": rows["TERMINAL_ID"].to_numpy().astype(np.int64),
        },
    )
    spec = parse_spec((ROOT / "sandbox" / "features" / "handbook.toml").read_text())
    engine = FeatureEngine(spec)
    names = [each.name for each in spec.features if not isinstance(each, FieldFeature)]
    places = [spec.names.index(name) for name in names]
    parts = []
    for begin in range(0, len(batch), BATCH):
        part = slice(begin, begin + BATCH)
        outcomes = OutcomeBatch(ids[part], fraud[part] == 1, time[part] + 7 * DAY)
        parts.append(engine.update(batch.take(part), outcomes).values[:, places])
    amount = rows["TX_AMOUNT"].to_numpy()
    features = np.column_stack([amount, np.concatenate(parts)])
    customer = rows["CUSTOMER_ID"].to_numpy().astype(np.int64)
    day = time // DAY
    found = Split(
        names=("amount", *names),
        features=features,
        fraud=fraud,
        customer=customer,
        amount=amount,
        time=time,
        train=WEEKS.train_rows(day),
        test=WEEKS.test_rows(day, customer, fraud),
    )
    # The published sizes: the split is the handbook's, before any model.
    assert (int(found.train.sum()), int(fraud[found.train].sum())) == (67_240, 598)
    assert (int(found.test.sum()), int(fraud[found.test].sum())) == (58_264, 385)
    assert EPOCH + dt.timedelta(WEEKS.first_test_day) == dt.date(2018, 8, 8)
    return found


def check(split: Split, score: NDArray[np.float64], auc: float, average: float, cards: float) -> None:
    fraud = split.fraud[split.test]
    assert roc_auc_score(fraud, score) == pytest.approx(auc, abs=0.005)
    assert average_precision_score(fraud, score) == pytest.approx(average, abs=0.005)
    found = card_precision(score, fraud, split.customer[split.test], split.time[split.test] // DAY)
    assert found == pytest.approx(cards, abs=0.005)


@pytest.mark.parametrize(
    ("model", "auc", "average", "cards"),
    [
        (LogisticRegression(random_state=0), 0.871, 0.606, 0.291),
        (DecisionTreeClassifier(max_depth=2, random_state=0), 0.763, 0.496, 0.241),
        (RandomForestClassifier(random_state=0, n_jobs=2), 0.867, 0.658, 0.287),
    ],
    ids=["logistic regression", "tree of depth 2", "random forest"],
)
def test_published(split: Split, model: Any, auc: float, average: float, cards: float) -> None:
    train_rows, test_rows = split.scaled()
    model.fit(train_rows, split.fraud[split.train])
    check(split, model.predict_proba(test_rows)[:, 1], auc, average, cards)


def test_published_xgboost(split: Split) -> None:
    xgboost = pytest.importorskip(
        "xgboost", reason="xgboost is not installed: its published figure is not checked"
    )
    train_rows, test_rows = split.scaled()
    model = xgboost.XGBClassifier(tree_method="exact", base_score=0.5, random_state=0, n_jobs=1)
    model.fit(train_rows, split.fraud[split.train])
    check(split, model.predict_proba(test_rows)[:, 1].astype(float), 0.862, 0.639, 0.273)


def test_ours_as_it_is_served(split: Split) -> None:
    """LightGBM on the same rows, through the artefact and ONNX Runtime: as good as the published boosted trees."""
    rows = LabelledRows(
        names=split.names,
        features=split.features,
        fraud_known_us=np.where(split.fraud == 1, split.time + 7 * DAY, NEVER),
        time_us=split.time,
        amount=split.amount,
        customer=split.customer,
        weight=np.ones(len(split.fraud)),
    )
    first = WEEKS.first_train_day * DAY
    window = DataWindow(first, first + 7 * DAY, 7 * DAY, first + 21 * DAY)
    options = TrainingOptions(trees=100, leaves=15, least_leaf_rows=20, threads=2)
    trained = train("handbook", rows, window, options)
    assert (trained.card.train_rows, trained.card.train_frauds) == (67_240, 598)
    served = ServedModel.load(encode_artefact(trained), columns=split.names)
    columns = dict(zip(split.names, split.features[split.test].T, strict=True))
    score = served.score(columns, int(split.test.sum()))
    fraud = split.fraud[split.test]
    assert roc_auc_score(fraud, score) > 0.857
    assert average_precision_score(fraud, score) > 0.634
    # What the training told of itself is about all rows of the week, known victims included.
    assert trained.card.metrics.average_precision > 0.634

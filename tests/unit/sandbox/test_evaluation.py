"""From histories on disk to every number of the report."""

import dataclasses
import datetime as dt
import shutil

import numpy as np
import polars as pl
import pytest

from sandbox.evaluation import Weeks, evaluate, load_stream
from sandbox.evaluation.models import train_and_score
from sandbox.evaluation.pooling import model_features, pooled_features, shared_features
from sandbox.evaluation.results import ALONE, CONSORTIUM, FOREST, LOGISTIC, POOLED
from sandbox.evaluation.stream import HistoryError
from sandbox.evaluation.windows import trailing

DAY_US = 86_400_000_000
WEEKS = Weeks(dt.date(1970, 1, 1) + dt.timedelta(20_006), 7, 2, 7)
DELAY_DAYS = 2


@pytest.fixture(scope="module")
def evaluation(made):
    spoken = []
    found = evaluate(
        made.stream,
        weeks=WEEKS,
        spec=made.spec,
        models=(FOREST, LOGISTIC),
        count_delay_days=DELAY_DAYS,
        n_jobs=1,
        announce=spoken.append,
    )
    assert any("random forest, pooled" in line for line in spoken)
    return found


def test_every_event_is_scored_once_and_by_time(made):
    stream = made.stream
    assert len(stream) == made.events.height
    assert (np.diff(stream.time_us) >= 0).all()
    assert stream.unscored == {"bank-a": 0, "bank-b": 0, "bank-c": 0}
    assert stream.fraud.sum() == made.events["FRAUD"].sum()


def test_each_view_is_measured(evaluation):
    views = {(row.model, row.view) for row in evaluation.models}
    assert views == {(m, v) for m in (FOREST, LOGISTIC) for v in (ALONE, CONSORTIUM, POOLED)}
    for row in evaluation.models:
        assert 0 < row.joint.average_precision <= 1
        assert set(row.banks) == {"bank-a", "bank-b", "bank-c"}
        assert sum(q.rows for q in row.banks.values()) == row.joint.rows == evaluation.test_rows


def test_an_events_id_is_no_input_of_a_model(made, evaluation):
    assert model_features(made.spec) == ["CUSTOMER_COUNT", "TERMINAL_COUNT", "TERMINAL_RISK"]
    assert evaluation.features == ("amount", "CUSTOMER_COUNT", "TERMINAL_COUNT", "TERMINAL_RISK")
    assert evaluation.pooled_features == ("TERMINAL_COUNT", "TERMINAL_RISK")


def test_others_come_before_all(evaluation):
    names = evaluation.consortium_features
    assert names == ("consortium_terminals_fraud_5d_others", "consortium_terminals_fraud_5d_all")


def test_pooled_features_cover_all_banks(made):
    pooled = pooled_features(made.stream, made.spec, DELAY_DAYS * DAY_US)
    key = made.stream.codes("terminal")
    count, frauds = trailing(
        key, made.stream.time_us, made.stream.fraud.astype(float), 7 * DAY_US, DELAY_DAYS * DAY_US
    )
    assert (pooled["TERMINAL_COUNT"] == count).all()
    assert pooled["TERMINAL_RISK"] == pytest.approx(np.where(count > 0, frauds / np.maximum(count, 1), 0))
    assert (count >= made.stream.frame["TERMINAL_COUNT"].to_numpy()).all()
    assert [f.name for f in shared_features(made.spec)] == ["TERMINAL_COUNT", "TERMINAL_RISK"]


def test_verdicts_add_up(made, evaluation):
    fraud = made.stream.fraud == 1
    for view, verdict in ((ALONE, made.stream.verdict_alone), (CONSORTIUM, made.stream.verdict)):
        table = evaluation.verdict("all", view)
        blocked = table.rows[-1]
        assert blocked.verdict == "block"
        assert blocked.frauds == (fraud & (verdict == 3)).sum()
        assert blocked.genuine_money == pytest.approx(made.stream.amount[~fraud & (verdict == 3)].sum())
        assert table.sum_of("frauds") == fraud.sum()
        per_bank = sum(evaluation.verdict(b, view).sum_of("genuine", ("block",)) for b in made.stream.banks)
        assert per_bank == blocked.genuine


def test_tiers_count_hits_at_or_above(made, evaluation):
    rows = {(r.tier, r.evidence): r for r in evaluation.tiers}
    victims = made.stream.victims("terminal", "all")
    assert rows["challenge", "all"].hits == (victims >= 2).sum()
    assert rows["block", "own"].hits == (made.stream.victims("terminal", "own") >= 4).sum()
    assert rows["watch", "all"].precision == pytest.approx((made.stream.fraud[victims >= 1]).mean())


def test_growth_ends_where_the_consortium_is(made, evaluation):
    steps = evaluation.growth
    assert [s.members for s in steps] == [1, 2, 3]
    own, everybody = (made.stream.victims("terminal", who) >= 2 for who in ("own", "all"))
    fraud = made.stream.fraud == 1
    assert steps[0].frauds_flagged == (own & fraud).sum()
    assert steps[-1].frauds_flagged == (everybody & fraud).sum()
    assert steps[-1].genuine_flagged == (everybody & ~fraud).sum()
    assert steps[0].frauds_flagged < steps[1].frauds_flagged <= steps[-1].frauds_flagged
    assert [s.counterfactual for s in steps] == [False, True, False]
    assert [s.refused_by_policy is not None for s in steps] == [False, True, False]
    assert steps[-1].average_precision == evaluation.model(FOREST, CONSORTIUM).joint.average_precision


def test_protocols_that_return_the_truth_are_said_to(evaluation):
    assert len(evaluation.exactness) == 3
    assert all(check.different == 0 and check.rows > 0 for check in evaluation.exactness)


def test_a_wrong_sum_is_counted(made):
    frame = made.stream.frame.with_columns(
        pl.when(pl.int_range(pl.len()) == 2_500)
        .then(pl.col("consortium_terminals_fraud_5d_others") + 1)
        .otherwise(pl.col("consortium_terminals_fraud_5d_others"))
        .alias("consortium_terminals_fraud_5d_others")
    )
    found = evaluate(
        dataclasses.replace(made.stream, frame=frame),
        weeks=WEEKS,
        spec=made.spec,
        models=(),
        count_delay_days=DELAY_DAYS,
    )
    assert [c.different for c in found.exactness] == [1, 0, 0]
    assert found.growth[0].average_precision is None


def test_a_bank_without_fraud_to_learn_from_is_named(made):
    found = evaluate(
        made.stream,
        weeks=Weeks(dt.date(1970, 1, 1) + dt.timedelta(20_000), 1, 0, 20),
        spec=made.spec,
        models=(LOGISTIC,),
        count_delay_days=DELAY_DAYS,
    )
    assert found.model(LOGISTIC, ALONE).untrained == made.stream.banks
    assert found.model(FOREST, ALONE) is None


def test_undefined_features_do_not_stop_a_model():
    x = np.array([[np.nan, 1.0], [np.inf, 2.0], [0.0, 3.0], [1.0, 4.0]])
    fraud, rows = np.array([0, 1, 0, 1], np.int8), np.ones(4, bool)
    for model in (FOREST, LOGISTIC):
        assert np.isfinite(train_and_score(model, x, fraud, rows, rows, 1)).all()


def test_an_unknown_model_is_refused():
    rows = np.ones(2, bool)
    with pytest.raises(ValueError, match="oracle"):
        train_and_score("oracle", np.zeros((2, 1)), np.array([0, 1], np.int8), rows, rows, 1)


@pytest.fixture
def histories(made, tmp_path):
    for party, folder in made.histories.items():
        shutil.copytree(folder, tmp_path / party)
    return {party: tmp_path / party for party in made.histories}


def test_rows_a_bank_did_not_score_are_counted(made, histories):
    (histories["bank-b"] / "0002.parquet").unlink()
    stream = load_stream(histories, made.truth, cells=12)
    assert stream.unscored["bank-b"] == made.events.height - len(stream) > 0


def test_an_empty_history_is_named(made, histories):
    shutil.rmtree(histories["bank-c"])
    with pytest.raises(HistoryError, match="bank-c has no history"):
        load_stream(histories, made.truth, cells=12)


def test_an_event_scored_twice_is_named(made, histories):
    shutil.copy(histories["bank-a"] / "0001.parquet", histories["bank-a"] / "0003.parquet")
    with pytest.raises(HistoryError, match="bank-a: its history holds an event twice"):
        load_stream(histories, made.truth, cells=12)


def test_an_event_of_another_bank_is_named(made, histories):
    shutil.copy(histories["bank-a"] / "0001.parquet", histories["bank-b"] / "0003.parquet")
    with pytest.raises(HistoryError, match="bank-b: 400 scored events are not in its own stream"):
        load_stream(histories, made.truth, cells=12)


def test_a_label_by_a_stranger_is_refused(made, histories):
    file = histories["bank-a"] / "0001.parquet"
    frame = pl.read_parquet(file).with_columns(terminal_labels=pl.lit('{"bank-z": 3}'))
    frame.write_parquet(file)
    stream = load_stream(histories, made.truth, cells=12)
    with pytest.raises(HistoryError, match="bank-z"):
        stream.victims_by_bank("terminal")


def test_event_ids_may_be_texts(made, histories):
    for folder in histories.values():
        for file in folder.iterdir():
            pl.read_parquet(file).with_columns(pl.col("event_id").cast(pl.String)).write_parquet(file)
    assert len(load_stream(histories, made.truth, cells=12)) == made.events.height


def test_the_channel_is_an_input_where_it_varies(made, histories):
    for number, file in enumerate(f for folder in histories.values() for f in sorted(folder.iterdir())):
        word = "card" if number % 2 else "withdrawal"
        pl.read_parquet(file).with_columns(channel=pl.lit(word)).write_parquet(file)
    stream = load_stream(histories, made.truth, cells=12)
    found = evaluate(stream, weeks=WEEKS, spec=made.spec, models=(), count_delay_days=DELAY_DAYS)
    assert found.features[-1] == "channel"

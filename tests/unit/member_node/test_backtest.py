"""Backtests: exact over their own history, and sums that a plain count of the rows confirms."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from member_node.service.backtest import Backtest, run_backtest
from member_node.service.stored_rows import StoredRowsError, read_history, wanted_columns
from scoring.brake import Brake
from scoring.rules.columns import Column, ColumnSchema, ColumnType, TextColumn
from scoring.rules.deployment import Deployment
from scoring.rules.ruleset import load_ruleset
from scoring.schema import Channel
from scoring.verdicts import VERDICT_LABELS, EvidenceTier, TierTable, Verdict

NUMBER, BOOLEAN, TEXT = ColumnType.NUMBER, ColumnType.BOOLEAN, ColumnType.TEXT
SCHEMA = ColumnSchema(
    [
        Column("amount", NUMBER),
        Column("channel", TEXT),
        Column("hour", NUMBER),
        Column("mean", NUMBER),
        Column("listed_mules", BOOLEAN),
        Column("terminal_victims_all", NUMBER, evidence="terminal"),
        Column("terminal_tier", TEXT, evidence="terminal"),
        Column("model_score", NUMBER),
    ]
)
ACTIVE = """
name = "cards"
[brake]
min_events = 50
window_minutes = 60
[[rule]]
id = "large"
when = "amount / mean > 3 and channel in ('card', 'transfer')"
verdict = "challenge"
max_share = 0.9
reason = "{amount}"
[[rule]]
id = "terminal"
when = "terminal_tier == 'watch' or terminal_victims_all >= 2"
verdict = "block"
evidence = "terminal"
max_share = 0.9
reason = "{terminal_victims_all}"
[[rule]]
id = "runaway"
when = "hour >= 12 and amount > 60"
verdict = "review"
max_share = 0.1
reason = "{amount}"
[[rule]]
id = "counted"
when = "listed_mules or missing(mean)"
verdict = "allow"
reason = "x"
"""
CANDIDATE = ACTIVE.replace("amount / mean > 3", "amount / mean > 2").replace(
    'when = "hour >= 12 and amount > 60"', 'when = "amount > 250"'
)
ROWS = 3000
HOUR_US = 3_600_000_000
TIERS = TierTable([EvidenceTier("watch", 1, Verdict.CHALLENGE), EvidenceTier("stop", 3, Verdict.BLOCK)])
CHANNELS = tuple(channel.text for channel in Channel)


def derive(amount, channel, time_us):
    return {
        "amount": amount,
        "channel": TextColumn(channel.astype(np.int32) - 1, CHANNELS),
        "hour": (time_us // HOUR_US % 24).astype(np.float64),
    }


@pytest.fixture(scope="module")
def stream():
    """A stream judged in batches by a deployment with brake, exemptions and lists, and what the history keeps of it."""
    rng = np.random.default_rng(11)
    active = load_ruleset(ACTIVE, SCHEMA, 3)
    deployment, brake = Deployment(1, active), Brake()
    time_us = np.sort(rng.integers(0, 20 * HOUR_US, ROWS)) + 480_000 * HOUR_US
    amount = rng.exponential(60, ROWS).round(2)
    channel = rng.choice([Channel.CARD, Channel.TRANSFER, Channel.LOGIN], ROWS).astype(np.uint8)
    victims = rng.choice([0.0, 1.0, 2.0, 5.0], ROWS, p=[0.9, 0.05, 0.03, 0.02])
    rank = TIERS.rank(victims)
    mean = np.where(rng.random(ROWS) < 0.05, np.nan, np.where(rng.random(ROWS) < 0.1, 0.0, 40.0))
    columns = {
        **derive(amount, channel, time_us),
        "mean": mean,
        "listed_mules": rng.random(ROWS) < 0.1,
        "terminal_victims_all": victims,
        "terminal_tier": TextColumn(rank.astype(np.int32), TIERS.names),
        "model_score": np.full(ROWS, np.nan),
    }
    limit = TIERS.verdict(rank)
    exempt = np.zeros((ROWS, 4), bool)
    exempt[rng.random(ROWS) < 0.1, 0] = True
    exempt[rng.random(ROWS) < 0.02] = True
    forced = rng.random(ROWS) < 0.03
    verdict, braked = np.zeros(ROWS, np.uint8), [[] for _ in range(ROWS)]
    alarms = []
    for start in range(0, ROWS, 250):
        part = slice(start, start + 250)
        cut = {
            name: TextColumn(values.codes[part], values.vocabulary)
            if isinstance(values, TextColumn)
            else values[part]
            for name, values in columns.items()
        }
        judged = deployment.evaluate(
            cut, 250, {"terminal": limit[part]}, np.zeros(250, np.uint64), lambda ids, p=part: exempt[p]
        )
        stands, tripped = brake.apply(deployment, judged, time_us[part])
        alarms += tripped
        verdict[part] = stands.live.verdict
        for row, rule in np.argwhere(judged.live.effective != stands.live.effective):
            braked[start + row].append(active.ids[rule])
    assert [alarm.rule for alarm in alarms] == ["runaway"]
    verdict = np.where(forced, np.uint8(Verdict.BLOCK), verdict)
    whole = exempt.all(axis=1)
    table = pa.table(
        {
            "event_id": pa.array(np.arange(ROWS)),
            "time_us": time_us,
            "channel": [CHANNELS[code - 1] for code in channel],
            "amount": amount,
            "verdict": [VERDICT_LABELS[v] for v in verdict],
            "rule": [("list:mules" if f else "large") for f in forced],
            "rule_version": np.full(ROWS, 3, np.int16),
            "mean": pa.array(mean, mask=np.isnan(mean)),
            "listed_mules": columns["listed_mules"],
            "terminal_victims_all": victims.astype(np.int32),
            "terminal_tier": [TIERS.names[r] for r in rank],
            "terminal_limit": limit,
            "exempt": pa.array(
                [[""] if w else ["large"] if e[0] else None for w, e in zip(whole, exempt, strict=True)],
                pa.list_(pa.string()),
            ),
            "braked": pa.array([each or None for each in braked], pa.list_(pa.string())),
        }
    )
    known = rng.random(ROWS) < 0.8
    fraud = rng.random(ROWS) < 0.05 + 0.3 * (victims > 0)
    outcomes = pa.table(
        {
            "event_id": pa.array([str(i) for i in np.flatnonzero(known)], pa.string()),
            "fraud": pa.array(fraud[known]),
            "known_at_us": time_us[known],
        }
    )
    return {
        "table": table, "outcomes": outcomes, "active": active, "verdict": verdict, "amount": amount,
        "known": known, "fraud": fraud, "columns": columns, "limit": limit, "exempt": exempt, "forced": forced,
        "braked": np.array(["runaway" in each for each in braked]), "time_us": time_us,
    }  # fmt: skip


def backtest(stream, text, version=4):
    tested = load_ruleset(text, SCHEMA, version)
    return Backtest(tested, stream["active"], SCHEMA, derive, stream["outcomes"])


def test_the_active_version_gives_its_stored_verdicts_again(stream):
    assert stream["braked"].sum() > 100
    assert (stream["verdict"] > 0).sum() > 100
    told = []
    tables = [stream["table"].slice(start, 700) for start in range(0, ROWS, 700)]
    report = run_backtest(backtest(stream, ACTIVE), tables, told.append)
    assert (report["rows"], report["compared"], report["unexplained"]) == (ROWS, ROWS, 0)
    assert told == [700, 1400, 2100, 2800, 3000]
    stored = np.bincount(stream["verdict"], minlength=4)
    assert report["changes"] == np.diag(stored).tolist()
    assert report["in_all"]["tested"] == report["in_all"]["active"]


def test_without_the_record_of_stopped_rules_the_difference_is_told(stream):
    report = run_backtest(backtest(stream, ACTIVE), [stream["table"].drop_columns(["braked"])])
    assert report["unexplained"] > 100


def test_a_candidate_is_compared_with_money_and_outcomes(stream):
    report = run_backtest(backtest(stream, CANDIDATE), [stream["table"]])
    tested = load_ruleset(CANDIDATE, SCHEMA, 4)
    judged = tested.evaluate(stream["columns"], ROWS, {"terminal": stream["limit"]}, stream["exempt"])
    effective = judged.effective.copy()
    # The stopped rule has the same id in the tested version: it stays silent there too.
    effective[stream["braked"], 2] = 0
    verdict = np.where(stream["forced"], 3, effective.max(axis=1))
    changes = np.zeros((4, 4), int)
    for was, now in zip(stream["verdict"], verdict, strict=True):
        changes[was, now] += 1
    assert report["changes"] == changes.tolist()
    known, fraud, amount = stream["known"], stream["fraud"], stream["amount"]
    confirmed, genuine = known & fraud, known & ~fraud
    assert (report["known"], report["frauds"]) == (known.sum(), confirmed.sum())
    for name, rows in [("tested", verdict > 0), ("active", stream["verdict"] > 0)]:
        told = report["in_all"][name]
        assert told["hits"] == rows.sum()
        assert told["precision"] == pytest.approx((rows & confirmed).sum() / (rows & known).sum())
        assert told["recall"] == pytest.approx((rows & confirmed).sum() / confirmed.sum())
        assert told["money_caught"] == pytest.approx(amount[rows & confirmed].sum())
        assert told["disturbed"] == (rows & genuine).sum()
        assert told["money_disturbed"] == pytest.approx(amount[rows & genuine].sum())
    for index, told in enumerate(report["rules"]):
        rows = judged.hits[:, index] if index == 3 else effective[:, index] > 0
        assert told["rule"] == tested.ids[index]
        assert (told["hits"], told["frauds"]) == (rows.sum(), (rows & confirmed).sum())
        assert told["exempted"] == judged.exempted[index]
    assert report["rules"][0]["errors"] == judged.errors[0] > 0
    both = np.array(report["changes_fraud"]) + np.array(report["changes_genuine"])
    assert both.sum() == known.sum()


def test_history_is_read_in_its_order_and_window(stream, tmp_path):
    times = stream["time_us"]
    for place, start in enumerate(range(0, ROWS, 1000)):
        table = stream["table"].slice(start, 1000)
        pq.write_table(table if place else table.drop_columns(["braked"]), tmp_path / f"{place}.parquet")
    wanted = wanted_columns([stream["active"]])
    assert {"terminal_limit", "braked", "mean", "event_id"} <= set(wanted)
    first, until = int(times[500]), int(times[2500])
    files = [pq.ParquetFile(path) for path in sorted(tmp_path.glob("*.parquet"))]
    tables = list(read_history(files, wanted, first, until))
    ids = np.concatenate([table.column("event_id").to_numpy() for table in tables])
    np.testing.assert_array_equal(ids, np.flatnonzero((times >= first) & (times < until)))
    assert run_backtest(backtest(stream, CANDIDATE), tables)["rows"] == len(ids)


def test_what_the_history_does_not_hold_is_named(stream):
    table = stream["table"].drop_columns(["terminal_limit", "mean"])
    with pytest.raises(StoredRowsError, match="mean, terminal_limit"):
        run_backtest(backtest(stream, CANDIDATE), [table])
    # No model was in force: its score is missing, as the rules saw it.
    with_model = CANDIDATE.replace("hour >= 12", "model_score > 0.5 and hour >= 12")
    assert run_backtest(backtest(stream, with_model), [stream["table"]])["rows"] == ROWS


def test_bounds_that_were_not_kept_follow_from_the_tiers(stream):
    table = stream["table"].drop_columns(["terminal_limit", "terminal_tier"])
    test = backtest(stream, ACTIVE)
    test.tiers = TIERS
    assert run_backtest(test, [table])["unexplained"] == 0
    test = backtest(stream, ACTIVE)
    test.tiers = TierTable([EvidenceTier("watch", 1, Verdict.ALLOW)])
    assert run_backtest(test, [table])["unexplained"] > 0


def test_an_empty_history_reports_zeros(stream):
    report = run_backtest(backtest(stream, CANDIDATE), [])
    assert (report["rows"], report["in_all"]["tested"]["precision"]) == (0, None)

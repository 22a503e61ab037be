"""Backtests over the history of a real stream: lists, exemptions, brake, rollout, evidence, devices, model."""

import json
import shutil

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from member_node.service.backtest import Backtest, run_backtest
from member_node.service.history import HistoryStore
from member_node.service.history_feed import HistoryFeed
from member_node.service.labels import LabelView
from member_node.service.last_judged import LastJudged
from member_node.service.layout import rule_columns, transaction_columns
from member_node.service.scoring import ScoringService
from member_node.service.stored_rows import StoredRowsError, read_history, wanted_columns
from member_node.service.surroundings import Surveyor
from member_node.streams.journal import Journal
from member_node.streams.mapping import StreamMapping
from scoring.devices.linker import NUMBERS as DEVICE_NUMBERS
from scoring.devices.linker import DeviceLinker
from scoring.engine import ScoringCore
from scoring.features.engine import FeatureEngine
from scoring.features.spec import parse_spec
from scoring.lists import ListKind, ListSet, empty_list
from scoring.models.served import Serving
from scoring.models.words import feature_words
from scoring.rules.deployment import Deployment
from scoring.rules.ruleset import load_ruleset
from scoring.scored import InForce
from scoring.verdicts import EvidenceTier, TierTable, Verdict

SPEC = parse_spec(
    """
[[feature]]
name = "spent_1h"
entity = "customer"
aggregation = "sum"
value = "amount"
window = "1h"
[[feature]]
name = "heat"
entity = "device"
aggregation = "max"
value = "warmth"
window = "1h"
"""
)
MAPPING = StreamMapping(
    name="test",
    columns={
        name: name
        for name in (
            "event_id",
            "time",
            "amount",
            "customer",
            "terminal",
            "payee",
            "correction",
            "device_components",
        )
    },
    types={"event_id": "integer", "customer": "integer", "payee": "integer"},
    channel="card",
    numbers={"warmth": "warmth", "pressure": "pressure"},
    indicators={"terminal": "terminal"},
    zone="Europe/Berlin",
)
NEVER = np.iinfo(np.int64).max
START = 1_780_000_000_000_000
ROWS, BATCH = 3000, 250
LISTS = ListSet(
    [
        empty_list("bad", ListKind.BLOCK, "payee").added(["7"], np.array([NEVER])),
        empty_list("good", ListKind.ALLOW, "customer").added(["11"], np.array([NEVER])),
        empty_list("watched", ListKind.WATCH, "payee").added(
            ["1", "2", "3"], np.full(3, START + ROWS * 10_000_000)
        ),
        empty_list("cleared", ListKind.EXEMPTION, "customer").added(
            ["2", "3", "4"], np.array([NEVER, START + ROWS * 10_000_000, NEVER]), ["spends", "spends", ""]
        ),
    ]
)
WITHOUT_WATCHED = ListSet([table for table in LISTS.tables if table.name != "watched"])
TIERS = TierTable([EvidenceTier("watch", 1, Verdict.CHALLENGE), EvidenceTier("stop", 4, Verdict.BLOCK)])
COLUMNS = rule_columns(MAPPING, SPEC.names, [], numbers=DEVICE_NUMBERS, lists=LISTS.columns())
RULES = """
name = "cards"
version = {version}
[brake]
min_events = 100
window_minutes = 240
review = 0.12
[[rule]]
id = "spends"
when = "spent_1h > {limit}"
verdict = "challenge"
max_share = 0.9
reason = "{{spent_1h}}"
[[rule]]
id = "terminal"
when = "terminal_reporters >= 1 and terminal_tier != 'none'"
verdict = "block"
evidence = "terminal"
max_share = 0.9
reason = "{{terminal_victims_all}} by {{terminal_reporters}}"
[[rule]]
id = "runaway"
when = "hour >= 0 and amount > 30"
verdict = "review"
reason = "{{amount}}"
[[rule]]
id = "unwatched"
when = "not listed_watched and amount > 46"
verdict = "challenge"
reason = "{{amount}}"
[[rule]]
id = "shared"
when = "device_customers >= 3 and device_tampering > 0.3"
verdict = "challenge"
max_share = 0.9
reason = "{{device_customers}} customers"
[[rule]]
id = "scored"
when = "model_score > 0.85"
verdict = "block"
max_share = 0.9
reason = "{{model_score}}"
[[rule]]
id = "blind"
when = "model_degraded and amount > 44"
verdict = "challenge"
reason = "no model"
[[rule]]
id = "pressed"
when = "missing(pressure) and heat > 11 and weekday < 7"
verdict = "challenge"
max_share = 0.9
reason = "{{heat}}"
"""


class Access:
    """Tags and labels of two terminals; out of reach when told so."""

    away = False

    def tags(self, kind, values):
        if self.away:
            raise ConnectionError("nobody is there")

    def evidence(self, kind, values):
        def label(party, victims):
            return LabelView(party, 0, 2**52, victims, "mule-account", "confirmed", 1, 2)

        held = {
            "T3": [label("bank-b", 2)],
            "T4": [label("bank-b", 3), label("bank", 1)],
            "T5": [label("bank", 1)],
        }
        return {value: held[value] for value in values if value in held}


class Model:
    """Scores by the amount, and not at all where that ends in 9; it fails from the event 2000 on."""

    name, version, features = "steps 3", 3, ("amount", "device_tampering", "spent_1h")

    def score_or_degrade(self, values, rows):
        amount = values["amount"]
        lost = (amount % 10 == 9) | self.failing
        return np.where(lost, np.nan, amount / 50), lost

    failing = False

    def inputs(self, columns, rows):
        return np.stack([columns[name][rows] for name in self.features], axis=1).astype(np.float32)

    def contributions(self, matrix):
        return np.tile([2.0, 0.5, 1.0], (len(matrix), 1))


def bundle(row):
    if row % 4 == 0:
        return None
    return json.dumps(
        {"os": "android", "model": "Pixel 9", "installId": f"i{row % 9}", "rooted": row % 9 in (1, 2, 4)}
    )


def events(first, last):
    """Rows; every fiftieth corrects one of the batch before, on another amount."""
    numbers = np.arange(first, last)
    again = (numbers % 50 == 49) & (first > 0)
    columns = {
        "event_id": pa.array(np.where(again, numbers - BATCH - 1, numbers)),
        "time_us": pa.array(START + numbers * 10_000_000),
        "channel": pa.array(np.full(len(numbers), 5, np.uint8)),
        "amount": pa.array((numbers * 37 % 50).astype(float)),
        "customer": pa.array(numbers % 13),
        "terminal": pa.array([f"T{number % 17}" for number in numbers]),
        "payee": pa.array(numbers % 19),
        "correction": pa.array(again),
        "device_components": pa.array([bundle(row) for row in numbers], pa.string()),
        "warmth": pa.array((numbers % 13).astype(float)),
    }
    if first % (2 * BATCH):
        columns["pressure"] = pa.array(np.where(numbers % 3, 1.0, np.nan), mask=numbers % 3 == 0)
    return pa.record_batch(columns)


class Node:
    """The stream; which deployment, lists and model are in force follows from the row it has come to."""

    def __init__(self, directory):
        one, two = (self.ruleset(number) for number in (1, 2))
        self.deployments = {1: Deployment(1, one), 2: Deployment(2, one, (two, 75.0), (self.ruleset(3),))}
        self.access, self.model = Access(), Model()
        self.at = 0
        self.journal = Journal(directory / "journal")
        self.history = HistoryStore(directory / "history", flush_rows=700)
        self.feed = HistoryFeed(self.history, None)
        self.service = ScoringService(
            core=ScoringCore(
                FeatureEngine(SPEC), features=SPEC.names, linker=DeviceLinker(), words=feature_words(SPEC)
            ),
            surveyor=Surveyor(
                "bank", MAPPING, tags=self.access, mirror=self.access, tiers=lambda: TIERS, counts=None
            ),
            in_force=self.in_force,
            deployment_at=self.deployments.__getitem__,
            journal=self.journal,
            feed=self.feed,
            numbers=("warmth",),
        )

    @staticmethod
    def ruleset(number):
        return load_ruleset(RULES.format(version=number, limit=(None, 150, 120, 60)[number]), COLUMNS)

    def in_force(self):
        lists = WITHOUT_WATCHED if 1500 <= self.at < 2250 else LISTS
        models = Serving() if self.at < 500 else Serving(active=self.model)
        return InForce(self.deployments[1 if self.at < 1000 else 2], lists, models)

    def play(self, first, last):
        batches = []
        for start in range(first, last, BATCH):
            self.at = start
            self.access.away = start == 1250
            self.model.failing = start == 2000
            batches.append(self.service.score(events(start, start + BATCH)))
        return batches

    def close(self):
        self.service.close()
        self.feed.close()
        self.history.close()
        self.journal.close()


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """The history's directory, the batches as they were answered, and what a restart made of the history again."""
    directory = tmp_path_factory.mktemp("stream")
    node = Node(directory)
    batches = node.play(0, ROWS)
    node.close()
    shutil.copytree(directory / "history", directory / "first")
    shutil.rmtree(directory / "history")
    node = Node(directory)
    node.service.restore()
    node.close()
    return directory, batches


def stored(directory):
    return pa.concat_tables(
        [pq.read_table(path) for path in sorted(directory.glob("*.parquet"))], promote_options="permissive"
    )


def backtest(directory, tested, active, outcomes, *, last=False):
    test = Backtest(
        tested,
        active,
        COLUMNS,
        lambda amount, channel, time_us: transaction_columns(MAPPING, amount, channel, time_us),
        outcomes,
    )
    files = [pq.ParquetFile(path) for path in sorted(directory.glob("*.parquet"))]
    assert files  # how many depends on when they were flushed
    counted = LastJudged(files) if last else None
    return run_backtest(test, read_history(files, wanted_columns((tested, active)), 0, NEVER, counted))


def outcomes_of(table):
    """Every third event has an outcome; frauds are those of one terminal."""
    ids = np.unique(table.column("event_id").to_numpy())
    known = ids[ids % 3 == 0]
    return pa.table(
        {
            "event_id": pa.array([str(each) for each in known]),
            "fraud": pa.array(known % 17 == 4),
            "known_at_us": pa.array(np.full(len(known), NEVER)),
        }
    )


def test_the_stream_had_all_of_it(stream):
    """Else the tests below would say little."""
    directory, batches = stream
    rows = stored(directory / "first")
    assert rows.num_rows == sum(len(batch) for batch in batches) == ROWS
    said = {rule for batch in batches for given in batch.reasons.values() for rule in (r.rule for r in given)}
    assert {rule.id for rule in Node.ruleset(1).rules} <= said
    assert {"list:bad", "model:steps 3", "device"} <= said
    assert "runaway" in {alarm.rule for batch in batches for alarm in batch.scored.alarms}
    exempt = rows.column("exempt").to_pylist()
    assert exempt.count(["spends"]) > 200
    assert exempt.count([""]) > 200
    assert sum(each == ["runaway"] for each in rows.column("braked").to_pylist()) > 500
    assert rows.column("rule").to_pylist().count("list:good") > 200
    assert set(rows.column("rule_version").to_pylist()) == {1, 2}
    assert 0 < rows.column("listed_watched").null_count < ROWS
    assert rows.column("corrected").to_numpy().sum() > 50
    assert set(rows.column("terminal_limit").to_pylist()) == {0, 1, 3}
    assert set(rows.column("terminal_tier").to_pylist()) >= {"watch", "stop"}


def test_the_active_version_over_its_own_history_changes_nothing(stream):
    directory, _ = stream
    rows = stored(directory / "first")
    versions = np.array(rows.column("rule_version").to_pylist())
    verdicts = rows.column("verdict").to_pylist()
    for number in (1, 2):
        ruleset = Node.ruleset(number)
        report = backtest(directory / "first", ruleset, ruleset, outcomes_of(rows))
        assert (report["rows"], report["compared"]) == (ROWS, np.count_nonzero(versions == number))
        assert report["unexplained"] == 0
        changes = np.array(report["changes"])
        assert (changes == np.diag(np.diag(changes))).all()
    assert {"allow", "challenge", "review", "block"} == set(verdicts)


@pytest.mark.parametrize(
    "lost", ["exempt", "braked", "terminal_limit", "device_customers", "model_score", "listed_watched"]
)
def test_every_kept_column_is_needed(stream, lost, tmp_path):
    directory, _ = stream
    rows = stored(directory / "first")
    for part in range(3):
        pq.write_table(rows.slice(part * 1000, 1000).drop_columns([lost]), tmp_path / f"{part}.parquet")
    ruleset = Node.ruleset(1)
    if lost in ("terminal_limit", "device_customers"):
        with pytest.raises(StoredRowsError, match=lost):
            backtest(tmp_path, ruleset, ruleset, outcomes_of(rows))
    else:
        assert backtest(tmp_path, ruleset, ruleset, outcomes_of(rows))["unexplained"] > 0


def test_a_changed_rule_reports_what_a_plain_count_gives(stream):
    directory, _ = stream
    rows = stored(directory / "first")
    outcomes = outcomes_of(rows)
    text = RULES.format(version=4, limit=60)
    report = backtest(directory / "first", load_ruleset(text, COLUMNS), Node.ruleset(1), outcomes)
    fraud = dict(zip(outcomes["event_id"].to_pylist(), outcomes["fraud"].to_pylist(), strict=True))
    frauds = sum(bool(fraud.get(str(row))) for row in rows.column("event_id").to_pylist())
    hits = known = caught = disturbed = 0
    money = 0.0
    for row in rows.select(["event_id", "spent_1h", "exempt", "braked", "amount"]).to_pylist():
        if row["spent_1h"] > 60 and not row["exempt"] and "spends" not in (row["braked"] or ()):
            hits += 1
            outcome = fraud.get(str(row["event_id"]))
            known += outcome is not None
            caught += outcome is True
            disturbed += outcome is False
            money += row["amount"] if outcome else 0.0
    told = report["rules"][0]
    assert told["rule"] == "spends"
    assert (told["hits"], told["known"], told["frauds"], told["disturbed"]) == (
        hits,
        known,
        caught,
        disturbed,
    )
    assert told["precision"] == pytest.approx(caught / known)
    assert told["recall"] == pytest.approx(caught / frauds)
    assert told["money_caught"] == pytest.approx(money)
    assert told["exempted"] > 100
    assert report["frauds"] == frauds > 20
    changes = np.array(report["changes"])
    assert changes.sum() == ROWS
    assert changes[0, 1] > 0
    assert np.tril(changes, -1).sum() == 0
    # Where the watched list was gone, the rule that reads it was in error.
    unwatched = next(each for each in report["rules"] if each["rule"] == "unwatched")
    assert unwatched["errors"] == rows.column("listed_watched").null_count


def test_a_corrected_event_counts_once_as_it_was_judged_last(stream):
    directory, _ = stream
    rows = stored(directory / "first")
    last = {}
    for row in rows.select(["event_id", "amount", "journal_frame", "corrected"]).to_pylist():
        key = (row["journal_frame"], row["corrected"])
        if row["event_id"] not in last or key > last[row["event_id"]][0]:
            last[row["event_id"]] = key, row
    told = [row for _, row in last.values()]
    assert ROWS - len(told) == sum(rows.column("corrected").to_pylist()) > 50
    ruleset = Node.ruleset(1)
    outcomes = outcomes_of(rows)
    report = backtest(directory / "first", ruleset, ruleset, outcomes, last=True)
    assert (report["rows"], report["known"], report["unexplained"]) == (len(told), outcomes.num_rows, 0)
    fraud = dict(zip(outcomes["event_id"].to_pylist(), outcomes["fraud"].to_pylist(), strict=True))
    frauds = [row["amount"] for row in told if fraud.get(str(row["event_id"]))]
    assert (report["frauds"], report["fraud_money"]) == (sum(fraud.values()), sum(frauds))
    assert backtest(directory / "first", ruleset, ruleset, outcomes)["frauds"] > report["frauds"]


def test_a_restart_writes_the_same_history_again(stream):
    directory, _ = stream
    first, again = stored(directory / "first"), stored(directory / "history")
    first, again = (pl.from_arrow(rows.select(sorted(rows.column_names))) for rows in (first, again))
    assert first.sort("journal_frame", maintain_order=True).equals(
        again.sort("journal_frame", maintain_order=True)
    )


def test_reasons_say_features_and_signs_in_words(stream):
    _, batches = stream
    reasons = [given for batch in batches for given in batch.reasons.values()]
    model = next(r for given in reasons for r in given if r.rule.startswith("model:"))
    assert "sum of amount of the customer over 1 hour is" in model.text
    assert "signs of tampering with the device, from 0 to 1 is" in model.text
    assert "spent_1h" not in model.text
    shared = [given for given in reasons if any(r.rule == "shared" for r in given)]
    assert all(
        [r.text for r in given if r.rule == "device"] == ["signs of tampering: rooted"] for given in shared
    )
    assert all(r.rule != "device" for given in reasons if given not in shared for r in given)

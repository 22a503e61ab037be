"""A bank's stream from file to verdicts: two banks over a simulated consortium, crashes, degraded mode, live rows."""

import datetime as dt
import json

import numpy as np
import polars as pl
import pytest

from crypto.errors import InvalidSignatureError
from governance.log.follow import UntrustedCheckpointError
from governance.members import MembershipError
from governance.messages.codec import MalformedError
from governance.messages.http_signatures import HttpSignatureError
from governance.policy.decision import PolicyError
from governance.policy.default import default_bundle
from member_node.service.history import HistoryStore
from member_node.service.index import SyncReport
from member_node.service.inquiry import InquiryFailedError
from member_node.service.labels import LabelView
from member_node.service.lookup import ConsortiumUnavailableError
from member_node.service.replay import StreamService
from member_node.service.stream_parts import StreamError, StreamParts
from member_node.storage.database import Database
from member_node.storage.outcomes import OutcomeStore, StreamStore
from scoring.features.engine import FeatureEngine
from scoring.features.spec import parse_spec

DAY_MS = 86_400_000
FIRST = (dt.date(2026, 3, 2) - dt.date(1970, 1, 1)).days
DAYS, DELAY, CELLS = 14, 2, 12
MAPPING = f"""
[columns]
event_id = "ID"
time = "AT"
amount = "EUR"
customer = "WHO"
terminal = "WHERE"
[types]
event_id = "integer"
[constants]
channel = "card"
[labels]
column = "FRAUD"
delay_days = {DELAY}
[indicators]
terminal = "terminal"
[directory]
dataset = "terminals"
entity = "terminal"
"""
FEATURES = """
[[feature]]
name = "ID"
field = "event_id"
[[feature]]
name = "spent_1d"
entity = "customer"
aggregation = "sum"
value = "amount"
window = "1d"
[[feature]]
name = "risk_3d"
entity = "terminal"
aggregation = "rate"
window = "3d"
delay = "2d"
"""
RULES = """
name = "test"
version = 1
[[rule]]
id = "flagged"
when = "terminal_victims_all >= 1"
verdict = "block"
evidence = "terminal"
reason = "{terminal_victims_all} victims"
[[rule]]
id = "large"
when = "amount > 190 or spent_1d / (risk_3d * 0 + 1) > 900"
verdict = "review"
reason = "{amount}"
[[rule]]
id = "counts"
when = "consortium_terminals_fraud_7d_all > 3"
verdict = "challenge"
reason = "{consortium_terminals_fraud_7d_others} elsewhere"
"""


class Consortium:
    """Labels and sums in the clear; every bank's stream is a member."""

    def __init__(self):
        self.labels = {}
        self.streams = {}
        self.unreachable = False
        self.failing_inquiries = 0


class Access:
    """What one bank's node would give its stream: tags, mirror, contribution and inquiries."""

    def __init__(self, consortium, party):
        self.consortium = consortium
        self.party = party
        self.asked = []

    def tags(self, kind, values):
        if self.consortium.unreachable:
            raise ConsortiumUnavailableError(2, {"bank-x": "silent"})
        self.asked.extend(values)

    def sync(self, now_ms):
        return SyncReport(0, 0, (), (), 0)

    def evidence(self, kind, values):
        held = self.consortium.labels.get(kind, {})
        return {value: tuple(held[value].values()) for value in values if value in held}

    def contribute(self, findings, now_ms):
        if self.consortium.unreachable:
            raise ConsortiumUnavailableError(2, {"bank-x": "silent"})
        for finding in findings:
            views = self.consortium.labels.setdefault(finding.kind, {}).setdefault(finding.value, {})
            views[self.party] = LabelView(
                self.party,
                now_ms,
                now_ms + 7 * DAY_MS,
                finding.distinct_victims,
                finding.typology,
                "confirmed",
                finding.first_seen_ms,
                finding.last_seen_ms,
            )
        return len(findings)

    def ask(self, first_day, last_day):
        if self.consortium.failing_inquiries:
            self.consortium.failing_inquiries -= 1
            raise InquiryFailedError("the inquiry ran out of time", missing=["bank-b"])
        return sum(
            stream.statistic.counts(first_day, last_day) for stream in self.consortium.streams.values()
        )


def make_events(bank):
    random = np.random.default_rng(bank)
    rows = 60 * DAYS
    at = np.sort(random.integers(0, DAYS * 86_400, rows))
    terminal = random.integers(0, CELLS, rows)
    # Terminal 3 is compromised from the second day on; it hurts the first bank most.
    fraud = (random.random(rows) < np.where((terminal == 3) & (at > 86_400), (0.7, 0.1)[bank], 0.01)).astype(
        np.int8
    )
    return pl.DataFrame(
        {
            "ID": np.arange(rows) * 2 + bank,
            "AT": np.datetime64("2026-03-02", "us") + at * np.timedelta64(1_000_000, "us"),
            "EUR": random.integers(1, 200, rows).astype(np.float64),
            "WHO": [f"c{bank}-{i}" for i in random.integers(0, 20, rows)],
            "WHERE": [f"T{i}" for i in terminal],
            "FRAUD": fraud,
        }
    )


class Bank:
    def __init__(self, consortium, number, directory):
        self.consortium = consortium
        self.party = f"bank-{'ab'[number]}"
        self.directory = directory / self.party
        self.directory.mkdir(parents=True)
        self.events = make_events(number)
        self.file = self.directory / "events.parquet"
        self.events.write_parquet(self.file)
        self.paths = {}
        for name, text in (("mapping", MAPPING), ("features", FEATURES), ("rules", RULES)):
            self.paths[name] = directory / f"{name}.toml"
            self.paths[name].write_text(text)
        self.start()

    def start(self):
        self.access = Access(self.consortium, self.party)
        self.database = Database.in_directory(self.directory)
        self.outcomes = OutcomeStore(self.database)
        self.stream = StreamService(
            StreamParts(
                party=self.party,
                directory=self.directory,
                public_ids=[f"T{i}" for i in range(CELLS)],
                outcomes=self.outcomes,
                stream=StreamStore(self.database),
                tags=self.access,
                mirror=self.access,
                contributor=self.access,
                asker=self.access,
                policy=default_bundle,
                engine=FeatureEngine,
            )
        )
        self.consortium.streams[self.party] = self.stream

    def open(self, live=False):
        return self.stream.open(
            self.paths["mapping"], self.paths["features"], self.paths["rules"], None if live else self.file
        )

    def stop(self):
        self.stream.close()
        self.database.close()

    def restart(self):
        self.stop()
        self.start()

    def history(self):
        self.stream.flush()
        return pl.concat(
            [pl.read_parquet(file) for file in sorted((self.directory / "history").glob("*.parquet"))]
        )


@pytest.fixture
def banks(tmp_path):
    consortium = Consortium()
    made = [Bank(consortium, number, tmp_path) for number in range(2)]
    yield made
    for bank in made:
        bank.stop()


def play(banks, first=0, last=DAYS, before=None):
    for day in range(first, last):
        start = (FIRST + day) * DAY_MS
        for verb in (
            lambda bank, at=start: bank.stream.confirm(at),
            lambda bank, d=FIRST + day: bank.stream.share(d),
            lambda bank, at=start: bank.stream.score(at + DAY_MS),
        ):
            for bank in banks:
                if before is not None:
                    before(bank, day)
                verb(bank)


def test_a_whole_run_against_plain_loops(banks):
    for bank in banks:
        report = bank.open()
        assert (report.rows, report.rejected, report.scored) == (bank.events.height, 0, 0)
    play(banks)
    both = pl.concat([bank.events for bank in banks])
    for bank in banks:
        history = bank.history()
        assert history["event_id"].to_list() == bank.events["ID"].to_list()
        assert not history["degraded"].any()
        assert "ID" not in history.columns
        direct = FeatureEngine(parse_spec(FEATURES))
        assert direct.names == ("ID", "spent_1d", "risk_3d")
        spent, counts, others = [], [], []
        for row in bank.events.iter_rows(named=True):
            mine = bank.events.filter(
                (pl.col("WHO") == row["WHO"])
                & (pl.col("AT") > row["AT"] - dt.timedelta(days=1))
                & (pl.col("AT") <= row["AT"])
            )
            spent.append(mine["EUR"].sum())
            day = row["AT"].date()
            matured = both.filter(
                (pl.col("WHERE") == row["WHERE"])
                & (pl.col("FRAUD") == 1)
                & (pl.col("AT").dt.date() >= day - dt.timedelta(days=DELAY + 7))
                & (pl.col("AT").dt.date() <= day - dt.timedelta(days=DELAY + 1))
            )
            counts.append(matured.height)
            others.append(matured.filter(pl.col("ID") % 2 != bank.events["ID"][0] % 2).height)
        # Equal times of one customer are told apart by arrival order, which the plain sum does not do.
        assert np.mean(np.isclose(history["spent_1d"].to_numpy(), spent)) > 0.98
        assert history["consortium_terminals_fraud_7d_all"].to_list() == counts
        assert history["consortium_terminals_fraud_7d_others"].to_list() == others
        assert {"allow", "review", "block"} <= set(history["verdict"])
    # The second bank has few victims of its own at the compromised terminal: it gains most.
    assert max(others) > 3
    assert (history["verdict"] == "block").sum() > (history["verdict_alone"] == "block").sum()


def test_evidence_is_that_of_the_event_time(banks):
    for bank in banks:
        bank.open()
    play(banks)
    history = banks[0].history().filter(pl.col("terminal") == "T3")
    flagged = history.filter(pl.col("terminal_victims_all") > 0)
    assert flagged.height > 10
    for row in flagged.iter_rows(named=True):
        labels = json.loads(row["terminal_labels"])
        assert sum(labels.values()) == row["terminal_victims_all"]
        assert labels.get("bank-a", 0) == row["terminal_victims_own"]
    # No label can exist before the first compromised day's outcomes were known.
    earliest = np.datetime64("2026-03-03", "us").astype(int) + DELAY * 86_400_000_000
    assert flagged["time_us"].min() >= earliest
    blocked = history.filter(pl.col("rule") == "flagged")
    assert set(blocked.filter(pl.col("verdict") == "block")["terminal_victims_all"].to_list()) <= set(
        range(4, 200)
    )
    assert set(blocked.filter(pl.col("verdict") == "challenge")["terminal_victims_all"].to_list()) <= {2, 3}
    assert history.filter(pl.col("terminal_victims_all") == 1)["rule"].to_list().count("flagged") == 0


def test_verbs_are_idempotent_and_a_second_stream_is_refused(banks):
    bank = banks[0]
    for each in banks:
        each.open()
    play(banks, 0, 5)
    at = (FIRST + 5) * DAY_MS
    assert bank.stream.score(at).scored == 0
    assert bank.stream.confirm(at - DAY_MS).outcomes == 0
    asked = bank.stream.share(FIRST + 4)
    assert (asked.days_asked, asked.counts_until) == (0, FIRST + 4 - DELAY - 1)
    assert bank.open().scored == bank.history().height
    bank.paths["rules"].write_text(RULES.replace("version = 1", "version = 2"))
    with pytest.raises(StreamError, match=r"another stream already \(rules differ\)"):
        bank.open()
    assert bank.stream.report()["ruleset"]["version"] == 1


def test_an_unopened_stream_says_so(banks):
    with pytest.raises(StreamError, match="call replay/open first"):
        banks[0].stream.score(0)
    assert banks[0].stream.report() == {"open": False}


def test_another_stream_may_be_opened_before_the_first_event(banks):
    bank = banks[0]
    bank.open()
    bank.paths["rules"].write_text(RULES.replace("version = 1", "version = 2"))
    bank.open()
    assert bank.stream.report()["ruleset"]["version"] == 2


def test_a_changed_file_is_refused_after_a_restart(banks):
    bank = banks[0]
    bank.open()
    bank.stream.score((FIRST + 1) * DAY_MS)
    bank.events.head(500).write_parquet(bank.file)
    bank.restart()
    with pytest.raises(StreamError, match="has changed since"):
        bank.stream.score((FIRST + 2) * DAY_MS)


@pytest.mark.parametrize("broken_write", [1, 6])
def test_a_crash_between_journal_and_history_loses_and_repeats_nothing(
    banks, tmp_path, monkeypatch, broken_write
):
    for bank in banks:
        bank.open()
    write, calls = HistoryStore.write, []

    def failing(self, sequence, table):
        calls.append(sequence)
        if len(calls) == broken_write:
            raise OSError("the process dies here")
        return write(self, sequence, table)

    def restart_daily(bank, day):
        if day % 3 == 1:
            bank.restart()

    monkeypatch.setattr(HistoryStore, "write", failing)
    day = 0
    while day < DAYS:
        try:
            play(banks, day, day + 1, before=restart_daily)
            day += 1
        except OSError:
            for bank in banks:
                bank.restart()
    consortium = Consortium()
    smooth = [Bank(consortium, number, tmp_path / "smooth") for number in range(2)]
    for bank in smooth:
        bank.open()
    play(smooth)
    for bank, wanted in zip(banks, smooth, strict=True):
        assert bank.history().equals(wanted.history())
        assert bank.outcomes.totals() == wanted.outcomes.totals()
        wanted.stop()


@pytest.mark.parametrize(
    "error",
    [
        MembershipError("", "the roll has no key for terminals"),
        UntrustedCheckpointError("not signed by the log's key"),
        InvalidSignatureError("the roll's signature does not verify"),
        MalformedError("MembershipRoll: truncated"),
        PolicyError("the bundle has no tiers"),
        HttpSignatureError("signature-profile", "bank-c", "an authority of another form"),
        ValueError("not an address"),
        KeyError("bank-c"),
        OverflowError("too large for a column"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_lying_coordinator_cannot_stop_a_bank_from_scoring(banks, monkeypatch, error):
    def refuse(self, kind, values):
        raise error

    bank = banks[0]
    bank.open()
    monkeypatch.setattr(Access, "tags", refuse)
    report = bank.stream.score((FIRST + 1) * DAY_MS)
    assert report.degraded == report.scored > 0
    assert str(error) in report.reason


@pytest.mark.parametrize("part", ["tags", "evidence"])
def test_events_whose_lookup_fails_in_any_way_have_a_verdict(banks, monkeypatch, part):
    def refuse(self, kind, values):
        raise ValueError("not an address")

    bank = banks[0]
    bank.open()
    monkeypatch.setattr(Access, part, refuse)
    report = bank.stream.score((FIRST + 1) * DAY_MS)
    assert bank.history().height == report.scored > 0
    assert bank.history()["degraded"].all()


def test_without_the_consortium_the_bank_scores_on_and_says_so(banks):
    bank = banks[0]
    for each in banks:
        each.open()
    play(banks, 0, 8)
    bank.consortium.unreachable = True
    start = (FIRST + 8) * DAY_MS
    confirmed = bank.stream.confirm(start)
    assert confirmed.waiting > 0
    assert "bank-x: silent" in confirmed.reason
    report = bank.stream.score(start + DAY_MS)
    assert report.degraded == report.scored > 0
    assert "bank-x" in report.reason
    last = bank.history().filter(pl.col("degraded"))
    assert last.height == report.scored
    # What the mirror holds still counts.
    assert last.filter(pl.col("terminal") == "T3")["terminal_victims_all"].max() > 0
    bank.consortium.unreachable = False
    assert bank.stream.confirm(start).contributed == confirmed.waiting
    assert bank.outcomes.pending() == []


def test_a_failed_inquiry_is_caught_up_later(banks):
    for each in banks:
        each.open()
    play(banks, 0, 6)
    bank = banks[0]
    for each in banks:
        each.stream.confirm((FIRST + 6) * DAY_MS)
    bank.consortium.failing_inquiries = 2
    report = bank.stream.share(FIRST + 6)
    assert report.days_asked == 0
    assert "bank-b" in report.reason
    assert bank.stream.score((FIRST + 7) * DAY_MS).degraded > 0
    for each in banks:
        each.stream.score((FIRST + 7) * DAY_MS)
        each.stream.confirm((FIRST + 7) * DAY_MS)
    bank.consortium.failing_inquiries = 1
    report = bank.stream.share(FIRST + 7)
    assert (report.days_asked, report.reason) == (2, "")
    assert bank.stream.score((FIRST + 8) * DAY_MS).degraded == 0


def test_live_rows_duplicates_outcomes_and_reasons(banks):
    bank = banks[0]
    bank.open(live=True)
    rows = [
        {"event_id": 1, "time": "2026-03-02T10:00:00", "amount": 195, "customer": "a", "terminal": "T1"},
        {"event_id": 2, "time": "2026-03-02T10:00:01", "amount": 5, "customer": "b", "terminal": "T1"},
        {"event_id": 3, "time": "2026-03-02T10:00:02", "amount": "much", "customer": "b", "terminal": "T1"},
    ]
    answers, rejects = bank.stream.score_rows(rows)
    assert [(reject.row, reject.column) for reject in rejects] == [(3, "amount")]
    assert [answer["verdict"] for answer in answers] == ["review", "allow"]
    assert answers[0]["reasons"] == [{"rule": "large", "verdict": "review", "text": "195"}]
    assert answers[1]["reasons"] == []
    again, _ = bank.stream.score_rows(rows[:1])
    # The first answer again, whoever asks and whatever the rules say by then.
    assert again == [answers[0] | {"disposition": "duplicate"}]
    assert bank.history()["event_id"].to_list() == [1, 2]
    known = (FIRST + 2) * DAY_MS
    assert bank.stream.learn([("1", True, known), ("2", False, known)]) == 2
    assert bank.stream.learn([("1", True, known)]) == 0
    with pytest.raises(StreamError, match="not scored"):
        bank.stream.learn([("77", True, known)])
    report = bank.stream.confirm(known)
    assert (report.findings, report.contributed) == (1, 1)
    bank.restart()
    late = {"event_id": 9, "time": "2026-03-04T12:00:00", "amount": 5, "customer": "b", "terminal": "T1"}
    answers, _ = bank.stream.score_rows([late])
    history = bank.history().filter(pl.col("event_id") == 9)
    assert history["terminal_victims_own"].to_list() == [1]
    assert history["risk_3d"].to_list() == [0.5]
    assert answers[0]["verdict"] == "allow"


def test_rows_outside_the_directory_and_without_terminal(banks):
    bank = banks[0]
    bank.open(live=True)
    rows = [
        {"event_id": 1, "time": "2026-03-02T10:00:00", "amount": 1, "customer": "a", "terminal": "unlisted"},
        {"event_id": 2, "time": "2026-03-02T10:00:00", "amount": 1, "customer": "a"},
    ]
    answers, _ = bank.stream.score_rows(rows)
    assert [answer["verdict"] for answer in answers] == ["allow", "allow"]
    assert bank.access.asked == ["unlisted"]

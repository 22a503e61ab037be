"""What is in force changes under load, crashes at any point, answers that were given: nothing lost, nothing twice."""

import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest

from member_node.service.alerts import AlertFeed, AlertPolicy
from member_node.service.history import HistoryStore
from member_node.service.history_feed import HistoryFeed
from member_node.service.layout import rule_columns
from member_node.service.scoring import Batch, ScoringService, StreamHaltedError
from member_node.service.surroundings import Surveyor
from member_node.storage.cases import CaseFilter, CaseStore
from member_node.storage.database import Database
from member_node.streams.events import EventSchemaError
from member_node.streams.journal import Journal, JournalError
from member_node.streams.mapping import StreamMapping
from member_node.streams.snapshot_keeper import SnapshotKeeper
from member_node.streams.snapshots import SnapshotStore
from scoring.engine import ScoringCore
from scoring.features.engine import FeatureEngine
from scoring.features.spec import parse_spec
from scoring.models.served import Serving
from scoring.rules.deployment import Deployment
from scoring.rules.ruleset import load_ruleset
from scoring.schema import OutcomeBatch
from scoring.scored import InForce
from scoring.verdicts import TierTable

SPEC = parse_spec(
    """
[[feature]]
name = "spent_1h"
entity = "customer"
aggregation = "sum"
value = "amount"
window = "1h"
[[feature]]
name = "risk_1d"
entity = "customer"
aggregation = "rate"
window = "1d"
[[feature]]
name = "heat"
entity = "customer"
aggregation = "max"
value = "warmth"
window = "1h"
"""
)
MAPPING = StreamMapping(
    name="test",
    columns={name: name for name in ("event_id", "time", "amount", "customer")},
    types={"event_id": "integer", "customer": "integer"},
    channel="card",
    numbers={"warmth": "warmth"},
)
COLUMNS = rule_columns(MAPPING, SPEC.names, [])
RULES = """
name = "test"
version = {version}
[[rule]]
id = "spends"
when = "spent_1h > {limit}"
verdict = "{verdict}"
reason = "{{spent_1h}} in an hour, risk {{risk_1d}}"
"""
LIMITS = {1: (300, "review"), 2: (250, "block"), 3: (200, "challenge")}


class Nobody:
    def tags(self, kind, values):
        raise AssertionError("there is nothing to look up")

    evidence = tags


def deployment(number):
    limit, verdict = LIMITS[number]
    rules = load_ruleset(RULES.format(version=number, limit=limit, verdict=verdict), COLUMNS)
    return Deployment(number, rules)


DEPLOYMENTS = {number: deployment(number) for number in LIMITS}


def events(first, last, *, warmth=True, customers=5, seconds=20):
    numbers = np.arange(first, last)
    columns = {
        "event_id": pa.array(numbers),
        "time_us": pa.array(1_700_000_000_000_000 + numbers * seconds * 1_000_000),
        "channel": pa.array(np.full(len(numbers), 5, np.uint8)),
        "amount": pa.array((numbers * 37 % 50).astype(float)),
        "customer": pa.array(numbers % customers),
    }
    if warmth:
        columns["warmth"] = pa.array((numbers % 13).astype(float))
    return pa.record_batch(columns)


class Node:
    """One stream on disk; what is in force is ``self.number``."""

    def __init__(self, directory, database=None):
        self.directory = directory
        self.number = 1
        self.journal = Journal(directory / "journal")
        self.history = HistoryStore(directory / "history")
        self.alerts = None if database is None else AlertFeed(CaseStore(database), AlertPolicy(), lambda: 0)
        self.feed = HistoryFeed(self.history, self.alerts)
        nobody = Nobody()
        self.service = ScoringService(
            core=ScoringCore(FeatureEngine(SPEC), features=SPEC.names),
            surveyor=Surveyor(
                "bank", MAPPING, tags=nobody, mirror=nobody, tiers=lambda: TierTable([]), counts=None
            ),
            in_force=lambda: InForce(DEPLOYMENTS[self.number]),
            deployment_at=DEPLOYMENTS.__getitem__,
            journal=self.journal,
            feed=self.feed,
            numbers=("warmth",),
        )
        self.snapshots = SnapshotStore(directory / "snapshots", SPEC.digest)
        self.keeper = SnapshotKeeper(
            self.snapshots,
            lambda: self.service.state(copy=False),
            before=lambda sequence: (self.feed.drain(10), self.history.flush()),
            after=lambda covered: None,
        )

    def rows(self):
        assert self.feed.drain(10)
        self.history.flush()
        tables = [pa.parquet.read_table(path) for path in self.history.files()]
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()

    def close(self):
        self.service.close()
        self.keeper.close()
        self.feed.close()
        if self.alerts is not None:
            self.alerts.close()
        self.journal.close()


@contextmanager
def opened(directory, restore=True, database=None):
    node = Node(directory, database)
    try:
        node.restored = node.service.restore(node.snapshots.latest()) if restore else None
        yield node
    finally:
        node.close()


def test_every_event_gets_one_verdict_of_one_version_while_versions_change(tmp_path):
    with opened(tmp_path) as node:
        done = threading.Event()

        def change():
            turn = 0
            while not done.is_set():
                turn += 1
                node.number = 1 + turn % 3

        changing = threading.Thread(target=change)
        changing.start()
        seen = {}
        lock = threading.Lock()

        def send(start):
            for first in range(start, 3000, 150):
                # A second apart, so that no thread's events are too late beside the others'.
                batch = node.service.score(events(first, first + 50, seconds=1))
                versions = set(batch.scored.version.tolist())
                assert len(versions) == 1
                for event_id, verdict in zip(
                    batch.events.column("event_id").to_pylist(), batch.live.verdict.tolist(), strict=True
                ):
                    with lock:
                        assert event_id not in seen
                        seen[event_id] = (versions.copy().pop(), verdict)

        senders = [threading.Thread(target=send, args=(start,)) for start in (0, 50, 100)]
        for each in senders:
            each.start()
        for each in senders:
            each.join()
        done.set()
        changing.join()
        rows = node.rows()
        ids = rows.column("event_id").to_pylist()
        assert len(ids) == len(set(ids)) == len(seen)
        assert len({version for version, _ in seen.values()}) > 1
        words = {"allow": 0, "challenge": 1, "review": 2, "block": 3}
        for event_id, version, verdict, spent in zip(
            ids,
            rows.column("rule_version").to_pylist(),
            rows.column("verdict").to_pylist(),
            rows.column("spent_1h").to_pylist(),
            strict=True,
        ):
            limit, given = LIMITS[version]
            assert verdict == (given if spent > limit else "allow")
            assert seen[event_id] == (version, words[verdict])


def test_pipelined_batches_are_what_one_by_one_would_be(tmp_path):
    cuts = [(0, 7), (7, 8), (8, 500), (500, 501), (501, 1400)]
    with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        first = [one.service.score(events(*cut)) for cut in cuts]
        second = list(two.service.score_each(Batch(events(*cut)) for cut in cuts))
        for left, right in zip(first, second, strict=True):
            assert left.live.verdict.tolist() == right.live.verdict.tolist()
            assert left.reasons == right.reasons
        assert two.journal.durable_sequence == two.journal.last_sequence
        assert one.rows().equals(two.rows())


@pytest.mark.parametrize("snapshot_at", [None, 0, 3, 6])
def test_a_restart_anywhere_continues_to_the_bit(tmp_path, snapshot_at):
    """The journal as a crash would leave it after each frame; with a snapshot, with versions that changed."""
    cuts = [(first, first + 100) for first in range(0, 1000, 100)]
    known = OutcomeBatch(
        np.arange(100, dtype=np.int64), np.ones(100, np.bool_), np.full(100, 1_700_000_000_000_000)
    )
    with opened(tmp_path / "whole") as node:
        for place, cut in enumerate(cuts):
            node.number = 1 + place % 3
            if place == snapshot_at:
                node.service.checkpoint(node.keeper.save)
            node.service.score(events(*cut), known if place == 4 else None, {"place": str(place)})
            if place == 6:
                node.service.learn(known)
        wanted = node.rows()
        last = node.journal.last_sequence
    with opened(tmp_path / "whole") as node:
        assert node.restored.judged == 0
        assert node.restored.facts == {"place": "9"}
        assert node.rows().equals(wanted)
        assert node.journal.last_sequence == last
        after = node.service.score(events(1000, 1100))
    with opened(tmp_path / "again", restore=False) as node:
        for place, cut in enumerate(cuts):
            node.number = 1 + place % 3
            node.service.score(events(*cut), known if place == 4 else None)
            if place == 6:
                node.service.learn(known)
        node.number = 1
        direct = node.service.score(events(1000, 1100))
    assert after.live.verdict.tolist() == direct.live.verdict.tolist()
    assert after.reasons == direct.reasons


def test_a_verdict_that_was_given_stays_and_what_has_none_is_judged_now(tmp_path, monkeypatch):
    with opened(tmp_path / "first") as node:
        node.service.score(events(0, 200))
        append = Journal.append

        def dying(self, drafts, **how):
            if drafts[0].kind == "verdicts":
                raise OSError("the process dies here")
            return append(self, drafts, **how)

        monkeypatch.setattr(Journal, "append", dying)
        with pytest.raises(StreamHaltedError, match="the process dies here"):
            node.service.score(events(200, 300))
        with pytest.raises(StreamHaltedError, match="restart"):
            node.service.score(events(300, 400))
        assert "judging" in node.service.halted
        monkeypatch.undo()
        node.journal.sync()
        given = node.rows()
    shutil.rmtree(tmp_path / "first" / "history")
    node = Node(tmp_path / "first")
    node.number = 2
    try:
        restored = node.service.restore()
        assert (restored.events, restored.judged) == (300, 1)
        rows = node.rows()
        assert rows.slice(0, 200).equals(given)
        assert set(rows.slice(200).column("rule_version").to_pylist()) == {2}
        assert node.service.score(events(250, 320)).disposition.tolist() == [2] * 50 + [0] * 20
    finally:
        node.close()


def test_a_full_disk_accepts_nothing_and_goes_on_when_there_is_room(tmp_path, monkeypatch):
    with opened(tmp_path) as node:
        node.service.score(events(0, 100))
        append = Journal.append

        def full(self, drafts, **how):
            raise JournalError("no room; nothing was accepted")

        monkeypatch.setattr(Journal, "append", full)
        with pytest.raises(JournalError, match="no room"):
            node.service.score(events(100, 200))
        monkeypatch.setattr(Journal, "append", append)
        assert node.service.halted == ""
        assert len(node.service.score(events(100, 200))) == 100
        assert node.rows().num_rows == 200


def test_a_disk_that_fails_to_sync_stops_the_stream(tmp_path, monkeypatch):
    with opened(tmp_path) as node:
        node.service.score(events(0, 100))

        def failing(descriptor):
            raise OSError("input/output error")

        monkeypatch.setattr("os.fdatasync", failing)
        with pytest.raises(StreamHaltedError, match="input/output error"):
            node.service.score(events(100, 200))
        monkeypatch.undo()
        with pytest.raises(StreamHaltedError):
            node.service.score(events(200, 300))
    with opened(tmp_path) as node:
        assert node.restored.events == 100
        assert len(node.service.score(events(100, 200))) == 100


def test_an_attribute_that_is_not_sent_is_missing_and_a_wrong_schema_changes_nothing(tmp_path):
    with opened(tmp_path) as node:
        assert len(node.service.score(events(0, 20, warmth=False))) == 20
        assert len(node.service.score(events(20, 40))) == 20
        with pytest.raises(EventSchemaError):
            node.service.score(events(40, 50).drop_columns(["amount"]))
        assert len(node.service.score(events(40, 50))) == 10
    with opened(tmp_path) as node:
        assert node.restored.events == 50


class Broken:
    """A model in service that gives no score."""

    name, version, features = "broken 2", 2, ("spent_1h",)

    def score_or_degrade(self, values, rows):
        return np.full(rows, np.nan), np.ones(rows, np.bool_)


NO_RULES = Deployment(1, load_ruleset('name = "none"\nversion = 1', COLUMNS))


@pytest.mark.parametrize(
    ("force", "verdicts", "model"),
    [
        (InForce(NO_RULES), {"allow"}, None),
        (InForce(DEPLOYMENTS[1], models=Serving(active=Broken())), {"allow", "review"}, 2),
        (InForce(DEPLOYMENTS[1], models=Serving(failure="its file is gone")), {"allow", "review"}, 0),
    ],
    ids=["no rule", "a model that fails", "a model that is gone"],
)
def test_no_event_is_lost_without_rules_or_model_and_what_is_missing_is_declared(
    tmp_path, force, verdicts, model
):
    with opened(tmp_path) as node:
        node.service.in_force = lambda: force
        for cut in ((0, 1), (1, 400), (400, 401), (401, 401)):
            assert len(node.service.score(events(*cut))) == cut[1] - cut[0]
        assert node.service.halted == ""
        assert node.service.model_failure == ("its file is gone" if model == 0 else "")
        rows = node.rows()
        assert rows.num_rows == 401
        assert set(rows.column("verdict").to_pylist()) == verdicts
        assert ("model_degraded" in rows.column_names) == (model is not None)
        if model is not None:
            assert rows.column("model_degraded").to_pylist() == [True] * 401
            assert rows.column("model_score").null_count == 401
            assert set(rows.column("model_version").to_pylist()) == {model}
    with opened(tmp_path) as node:
        assert node.restored.events == 401
        assert node.restored.judged == 0


def test_frames_that_differ_in_what_was_sent_reach_the_history_together(tmp_path):
    with opened(tmp_path) as node:
        for first in range(0, 60, 3):
            node.service.score(events(first, first + 3, warmth=first % 2 == 0))
        rows = node.rows()
        assert node.feed.failure == ""
        assert rows.column("event_id").to_pylist() == list(range(60))
        assert rows.column("warmth").null_count == 30


def test_alerts_are_stored_once_over_a_restart(tmp_path):
    database = Database.in_directory(tmp_path)
    with opened(tmp_path / "node", database=database) as node:
        node.service.score(events(0, 1000))
        declined = pa.compute.sum(pa.compute.not_equal(node.rows().column("verdict"), "allow")).as_py()
        assert node.alerts.flush(10)
    store = CaseStore(database)
    assert store.counts(0, [1])["alerts"] == declined > 100
    with opened(tmp_path / "node", database=database) as node:
        node.service.score(events(0, 100))
        assert node.alerts.flush(10)
    assert store.counts(0, [1])["alerts"] == declined
    assert {case.customer for case in store.find(CaseFilter())} <= {"0", "1", "2", "3", "4"}
    database.close()


BALLAST = np.zeros(128 * 2**20, np.uint8)  # keeps the child writing until it can be stopped


def stopped(pid):
    """Stop a child once it has closed what it inherited."""
    while os.listdir(f"/proc/{pid}/fd") != ["0"]:
        time.sleep(0.0002)
    os.kill(pid, signal.SIGSTOP)


def slowed(node):
    state = node.keeper._state
    node.keeper._state = lambda: {"ballast": BALLAST, **state()}


def without_ballast(found):
    sequence, arrays = found
    return sequence, {name: array for name, array in arrays.items() if name != "ballast"}


def same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, array in theirs.items():
        assert ours[name].tobytes() == array.tobytes(), name


def test_a_snapshot_is_of_its_frame_whatever_is_scored_meanwhile(tmp_path):
    with opened(tmp_path / "one") as node:
        for first in range(0, 3000, 100):
            node.service.score(events(first, first + 100))
        slowed(node)
        wanted = node.service.state()
        node.service.checkpoint(node.keeper.locate)
        node.keeper.gather()
        node.service.checkpoint(node.keeper.begin)
        stopped(node.keeper.child)
        for first in range(3000, 6000, 100):
            node.service.score(events(first, first + 100))
        assert node.keeper.child is not None
        os.kill(node.keeper.child, signal.SIGCONT)
        node.keeper._writing.result()
        assert node.keeper.last_error == ""
        sequence, held = without_ballast(node.snapshots.latest())
        same(held, wanted)
        assert sequence == 60
        final, rows = node.service.state(), node.rows()
        journal = node.journal.last_sequence
    with opened(tmp_path / "one", restore=False) as node:
        assert node.service.restore((sequence, held)).events == 3000
        assert node.journal.last_sequence == journal
        same(node.service.state(), final)
        assert node.rows().equals(rows)
    with opened(tmp_path / "one", restore=False) as node:  # the same from the journal alone
        assert node.service.restore().events == 6000
        same(node.service.state(), final)


def test_closing_while_a_child_writes_ends_with_both_snapshots(tmp_path):
    with opened(tmp_path) as node:
        node.service.score(events(0, 200))
        slowed(node)
        node.service.checkpoint(node.keeper.begin)
        child = node.keeper.child
        stopped(child)
        node.service.score(events(200, 400))
        os.kill(child, signal.SIGCONT)
        node.service.checkpoint(node.keeper.save)
    assert node.snapshots.sequences == [2, 4]
    assert not list((tmp_path / "snapshots").glob("*.part"))
    found = without_ballast(SnapshotStore(tmp_path / "snapshots", SPEC.digest).latest())
    with opened(tmp_path, restore=False) as node:
        assert node.service.restore(found).events == 0
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{child}")

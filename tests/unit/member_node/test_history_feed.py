"""From scored frames to the history's rows and to alerts: any sizes, any columns, in order, each once."""

import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from member_node.service.alerts import AlertPolicy
from member_node.service.decisions import BRAKED, EXEMPT
from member_node.service.history import HistoryError, HistoryStore
from member_node.service.history_feed import HistoryFeed, ScoredFrame, frames_table
from scoring.verdicts import Verdict

NAMES = ("amount", "spent", "risk")
DAY = 86_400_000_000


def frame(sequence, rows=1, *, verdict="allow", **more):
    """A frame's rows; ``more``: further columns of its decisions."""
    random = np.random.default_rng(sequence)
    ids = np.arange(rows) + 1000 * sequence
    events = {
        "event_id": pa.array(ids),
        "time_us": pa.array(20_000 * DAY + ids),
        "amount": pa.array(random.random(rows)),
        "customer": pa.array([f"c{each}" for each in ids % 7]),
    }
    if sequence % 3 == 0:  # an attribute that not everybody sends
        events["longitude"] = pa.array(random.random(rows))
    decisions = pa.record_batch(
        {
            "verdict": pa.array([verdict] * rows),
            "rule": pa.array([None if verdict == "allow" else "r1"] * rows, pa.string()),
            "reasons": pa.array([None] * rows, pa.string()),
            **{name: pa.array([value] * rows) for name, value in more.items()},
        }
    )
    features = np.where(random.random((3, rows)) < 0.2, np.nan, random.random((3, rows)))
    return ScoredFrame(sequence, pa.record_batch(events), decisions, NAMES, features)


def expected(frames):
    rows = []
    for each in frames:
        decided = each.decisions.to_pylist()
        for place, event in enumerate(each.events.to_pylist()):
            numbers = dict(zip(NAMES, each.features[:, place].tolist(), strict=True))
            rows.append({EXEMPT: None, BRAKED: None} | numbers | event | decided[place])
    return rows


def alike(table, rows):
    found = table.to_pylist()
    assert len(found) == len(rows)
    for one, other in zip(found, rows, strict=True):
        for name in one.keys() | other.keys():
            a, b = one.get(name), other.get(name)
            assert a == b or (a != a and b != b), (name, a, b)


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from([{}, {"model_score": 0.5}, {EXEMPT: ["r2", "r3"]}])),
        min_size=1,
        max_size=12,
    )
)
def test_frames_of_any_sizes_and_columns_make_one_table(given_frames):
    frames = [frame(place + 1, rows, **more) for place, (rows, more) in enumerate(given_frames)]
    table = frames_table(frames)
    table.validate(full=True)
    alike(table, expected(frames))
    assert [field.nullable for field in table.schema if field.name in NAMES[1:]] == [False, False]


class Alerts:
    """Takes alerts as the alert feed does."""

    def __init__(self, stored=0):
        self.policy, self.stored_through, self.taken = AlertPolicy(least=Verdict.REVIEW), stored, []

    def offer(self, through, alerts):
        assert through > self.stored_through
        self.stored_through = through
        self.taken += alerts


def test_everything_is_handed_over_in_order_while_more_arrives(tmp_path):
    history, alerts = HistoryStore(tmp_path, flush_rows=500), Alerts()
    feed = HistoryFeed(history, alerts)
    frames = [
        frame(each, 300 if each % 400 == 0 else 1 + each % 2, verdict="block" if each % 50 == 0 else "allow")
        for each in range(1, 1500)
    ]
    ended = threading.Event()

    def ask():
        while not ended.is_set():
            assert feed.drain(10)
            history.flush()

    asking = threading.Thread(target=ask)
    asking.start()
    for each in frames:
        feed.put(each)
    ended.set()
    asking.join()
    feed.close()
    assert feed.failure == ""
    assert feed.waiting_rows == 0
    history.close()
    tables = [pa.parquet.read_table(path) for path in history.files()]
    alike(pa.concat_tables(tables, promote_options="permissive"), expected(frames))
    assert [alert.source for alert in alerts.taken] == [
        f"{each.sequence}:{row}"
        for each in frames
        for row in range(each.events.num_rows)
        if each.sequence % 50 == 0
    ]
    assert {alert.rule for alert in alerts.taken} == {"r1"}
    assert alerts.taken[0].event_id == "50000"


@pytest.mark.parametrize(("flushed", "alerted"), [(0, 7), (7, 0), (4, 7), (7, 4), (10, 10)])
def test_after_a_restart_history_and_alerts_each_get_what_they_lack(tmp_path, flushed, alerted):
    frames = [frame(each, 2, verdict="review") for each in range(1, 11)]
    before = HistoryStore(tmp_path)
    if flushed:
        before.write(flushed, frames_table(frames[:flushed]))
    before.close()
    history, alerts = HistoryStore(tmp_path), Alerts(alerted)
    feed = HistoryFeed(history, alerts)
    for each in frames:
        feed.put(each)
    feed.close()
    history.close()
    assert history.rows() == 20
    assert [alert.source for alert in alerts.taken] == [
        f"{each}:{row}" for each in range(alerted + 1, 11) for row in (0, 1)
    ]


def test_frames_wait_while_the_history_cannot_be_written(tmp_path, monkeypatch):
    history = HistoryStore(tmp_path)
    write, failed = HistoryStore.write, threading.Event()

    def full(self, sequence, table):
        failed.set()
        raise HistoryError("no space left")

    monkeypatch.setattr(HistoryStore, "write", full)
    monkeypatch.setattr("member_node.service.history_feed.RETRY_SECONDS", 0.01)
    feed = HistoryFeed(history, None)
    frames = [frame(each) for each in range(1, 600)]
    for each in frames:
        feed.put(each)
    assert failed.wait(10)
    assert not feed.drain(0.1)
    assert "no space left" in feed.failure
    monkeypatch.setattr(HistoryStore, "write", write)
    assert feed.drain(10)
    assert feed.failure == ""
    feed.close()
    history.close()
    assert history.rows() == 599

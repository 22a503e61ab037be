"""The history: every row once, by day, through crashes at every step; found by id; asked by SQL that cannot harm."""

import datetime as dt
import os
import resource
import signal
import threading

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from member_node.service import history
from member_node.service.history import HistoryError, HistoryStore
from member_node.service.history_files import HistoryFolder
from member_node.service.history_index import IdIndex, as_ids, hash_ids, index_parts
from member_node.service.history_query import batches, query, verdicts_by_day

DAY = 86_400_000_000
START = 20_000


def frame(sequence, rows=10, *, text=True, day=None, **more):
    """Rows of one journal frame; the day moves on every eight frames."""
    random = np.random.default_rng(sequence)
    ids = np.arange(sequence * 1000, sequence * 1000 + rows)
    at = START + (sequence // 8 if day is None else day)
    return pa.table(
        {
            "event_id": pa.array([f"é{each}" for each in ids]) if text else pa.array(ids - 5000),
            "time_us": pa.array(at * DAY + np.sort(random.integers(0, DAY, rows))),
            "amount": pa.array(np.round(random.random(rows) * 100, 2)),
            "verdict": pa.array(random.choice(["allow", "review", "block"], rows).astype(object)),
            "rule": pa.array(random.choice(np.array(["r1", None], dtype=object), rows), type=pa.string()),
            **{name: pa.array(values) for name, values in more.items()},
        }
    )


def stored(directory):
    files = sorted(directory.glob("*.parquet"))
    return pl.concat([pl.read_parquet(file) for file in files], how="diagonal") if files else pl.DataFrame()


def whole(sequences):
    return pl.concat([pl.from_arrow(frame(each)) for each in sequences])


SEQUENCES = list(range(1, 60, 2))  # verdict frames stand between those of events


def test_frames_are_written_by_day_and_read_back_in_order(tmp_path):
    store = HistoryStore(tmp_path, flush_rows=70)
    for each in SEQUENCES:
        store.write(each, frame(each))
        store.write(each, frame(each))  # given twice, taken once
    assert store.rows() == 300
    assert 0 < store.waiting_rows <= 70
    store.close()
    assert store.waiting_rows == 0
    assert stored(tmp_path).equals(whole(SEQUENCES))
    for path in store.files():
        days = pl.read_parquet(path)["time_us"] // DAY
        assert days.n_unique() == 1
        assert path.name.startswith(str(np.datetime64(int(days[0]), "D")))
    assert [path.name for path in store.files(START + 2, START + 2)] == [
        path.name for path in store.files() if path.name.startswith(str(np.datetime64(START + 2, "D")))
    ]


def test_has_is_exact_across_restarts(tmp_path):
    store = HistoryStore(tmp_path, flush_rows=10**6)
    for each in (1, 3, 5):
        store.write(each, frame(each))
    assert [store.has(each) for each in (1, 5, 6, 7)] == [True, True, False, False]
    assert store.flushed_sequence == 0
    again = HistoryStore(tmp_path)  # the process died: what waited is in the journal only
    assert [again.has(each) for each in (1, 5)] == [False, False]
    for each in (1, 3):
        again.write(each, frame(each))
    again.flush()
    again.flush()
    third = HistoryStore(tmp_path)
    assert third.flushed_sequence == 3
    assert [third.has(each) for each in (1, 3, 5)] == [True, True, False]
    third.write(5, frame(5))
    third.close()
    assert stored(tmp_path).equals(whole((1, 3, 5)))


class Died(BaseException):
    """The process ends here."""


def steps_of(monkeypatch, stop_at):
    """Count changes to the disk; at the given one the process dies before it."""
    count = [0]

    def counted(real):
        def call(*arguments, **options):
            if count[0] == stop_at:
                raise Died
            count[0] += 1
            return real(*arguments, **options)

        return call

    import pathlib

    from member_node.service import history_files

    for place, name in (
        (os, "fsync"),
        (pathlib.Path, "replace"),
        (pathlib.Path, "unlink"),
        (history_files.pq, "ParquetWriter"),
        (history_files, "sync_file"),
    ):
        monkeypatch.setattr(place, name, counted(getattr(place, name)))
    return count


def test_a_crash_at_every_step_of_writing_and_compacting_loses_and_repeats_nothing(tmp_path, monkeypatch):
    stop_at = 0
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the process dies here, not the machine
    while True:
        directory = tmp_path / str(stop_at)
        store = HistoryStore(directory, small_files=2, flush_rows=10**6)
        with monkeypatch.context() as patch:
            count = steps_of(patch, stop_at)
            try:
                for each in range(14, 19):
                    store.write(each, frame(each))
                    if each != 15:
                        store.flush()
                        store.merge()
                store.expire(START + 2)
                count[0] = -1
            except Died:
                pass
        restarted = HistoryStore(directory, small_files=2)
        for each in range(14, 19):
            restarted.write(each, frame(each))
        restarted.close()
        restarted.expire(START + 2)
        assert stored(directory).sort("event_id").equals(whole(range(16, 19)).sort("event_id"))
        assert not list(directory.glob("*.part"))
        assert len(list(directory.glob("*.ids"))) == len(list(directory.glob("*.parquet")))
        found = restarted.find(["é17003", "é18009", "é15000"], ["amount"])
        assert sorted(found.column("event_id").to_pylist()) == ["é17003", "é18009"]
        if count[0] == -1:
            break
        stop_at += 1
    assert stop_at > 20


def test_small_files_of_a_day_are_put_together(tmp_path):
    store = HistoryStore(tmp_path, small_files=4, file_rows=60)
    for each in range(1, 8):
        store.write(each, frame(each, day=0))
        store.flush()
        store.merge()
    assert len(store.files()) < 7
    store.compact()
    assert [path.name for path in store.files()] == [
        "2024-10-04_0000000001-0000000006.parquet",
        "2024-10-04_0000000007-0000000007.parquet",
    ] or sum(pl.read_parquet(path).height for path in store.files()) == 70
    assert stored(tmp_path)["event_id"].to_list() == [
        f"é{each * 1000 + row}" for each in range(1, 8) for row in range(10)
    ]
    assert store.find(["é5003"], []).num_rows == 1
    assert HistoryStore(tmp_path).rows() == 70


def small_files(directory, count=6, rows=10, **options):
    store = HistoryStore(directory, small_files=4, **options)
    for each in range(1, count + 1):
        store.write(each, frame(each, rows, day=0))
        store.flush()
    return store


@pytest.mark.parametrize("expires", [False, True])
def test_rows_are_written_found_and_expire_while_files_are_put_together(tmp_path, monkeypatch, expires):
    """The merge rests after its first row group; all else goes on, and the merge then counts or is dropped."""
    monkeypatch.setattr("member_node.service.history.MERGED_GROUP", 20)
    store = small_files(tmp_path)
    resting, go_on = threading.Event(), threading.Event()

    class Rests(threading.Event):
        def wait(self, timeout=None):
            resting.set()
            assert go_on.wait(10)
            return self.is_set()

    store._closed = Rests()
    merging = threading.Thread(target=store.merge)
    merging.start()
    assert resting.wait(10)
    assert list(tmp_path.glob("*.part"))
    store.write(7, frame(7, day=0))
    store.flush()
    assert store.find(["é1001", "é7009"], []).num_rows == 2
    if expires:
        store.expire(START + 1)
    go_on.set()
    merging.join()
    assert store.rows() == (0 if expires else 70)
    assert len(store.files()) == (0 if expires else 2)
    assert HistoryStore(tmp_path).rows() == store.rows()
    assert not list(tmp_path.glob("*.part"))
    if not expires:
        assert stored(tmp_path).equals(pl.concat([pl.from_arrow(frame(each, day=0)) for each in range(1, 8)]))
        assert store.find(["é1001", "é7009"], []).num_rows == 2


def test_a_merge_is_given_up_when_the_history_closes(tmp_path, monkeypatch):
    monkeypatch.setattr("member_node.service.history.MERGED_GROUP", 20)
    store = small_files(tmp_path)
    regrouped = history._regrouped

    def closing(tables, rows):
        for table in regrouped(tables, rows):
            yield table
            store.stop_merging()

    monkeypatch.setattr(history, "_regrouped", closing)
    store.merge()
    store.close()
    assert not list(tmp_path.glob("*.part"))
    store.merge()
    assert len(HistoryStore(tmp_path).files()) == 6


def test_row_groups_are_small_when_written_and_large_when_merged(tmp_path, monkeypatch):
    monkeypatch.setattr("member_node.service.history.FLUSH_GROUP", 30)
    monkeypatch.setattr("member_node.service.history.MERGED_GROUP", 80)
    store = small_files(tmp_path, count=4, rows=70)

    def groups(path):
        metadata = pa.parquet.read_metadata(path)
        return [metadata.row_group(each).num_rows for each in range(metadata.num_row_groups)]

    assert [groups(path) for path in store.files()] == [[30, 30, 10]] * 4
    store.merge()
    assert [groups(path) for path in store.files()] == [[80, 80, 80, 40]]
    assert stored(tmp_path).equals(pl.concat([pl.from_arrow(frame(each, 70, day=0)) for each in range(1, 5)]))
    assert HistoryStore(tmp_path).find(["é1000", "é2050", "é4069"], []).num_rows == 3


def test_single_rows_wait_in_a_few_tables(tmp_path):
    store = HistoryStore(tmp_path, flush_rows=10**6)
    for each in range(1, 1001):
        store.write(each, frame(each, rows=1, day=0))
    assert len(store.waiting()) < 70
    assert store.waiting_rows == store.rows() == 1000
    rows = pl.concat([pl.from_arrow(frame(each, rows=1, day=0)) for each in range(1, 1001)])
    assert pl.from_arrow(pa.concat_tables(store.waiting())).equals(rows)
    store.close()
    assert stored(tmp_path).equals(rows)


def test_files_whose_features_may_be_null_are_read_beside_those_that_say_never(tmp_path):
    """Files of earlier versions say of every column that it may be null; a feature may be new as well."""
    store = HistoryStore(tmp_path, flush_rows=10**6)
    store.write(1, frame(1, day=0, spent=np.arange(10.0)))
    store.flush()
    table = frame(2, day=0, spent=np.arange(10.0), fresh=np.ones(10))
    never = [field.with_nullable(field.name not in ("spent", "fresh")) for field in table.schema]
    store.write(2, table.cast(pa.schema(never)))
    for step in (store.flush, store.compact, lambda: None):
        found = store.find(["é1003", "é2003"], ["spent", "fresh"]).sort_by("event_id")
        assert found.column("spent").to_pylist() == [3.0, 3.0]
        assert found.column("fresh").to_pylist() == [None, 1.0]
        answer = query(store, "SELECT sum(spent) AS s, count(fresh) AS n, count(*) AS a FROM history")
        assert answer.to_pylist() == [{"s": 90.0, "n": 10, "a": 20}]
        read = pa.Table.from_batches(list(batches(store, ["spent", "fresh"])))
        assert (read.num_rows, read.column("fresh").null_count) == (20, 10)
        step()
    with duckdb.connect() as session:
        files = [str(path) for path in store.files()]
        assert session.read_parquet(files, union_by_name=True).count("fresh").fetchall() == [(10,)]


def test_days_expire(tmp_path):
    store = HistoryStore(tmp_path)
    for each in SEQUENCES:
        store.write(each, frame(each))
    store.flush()
    assert store.expire(START + 3) == 120
    assert store.expire(START + 3) == 0
    assert stored(tmp_path)["time_us"].min() >= (START + 3) * DAY
    assert store.has(1)
    assert HistoryStore(tmp_path).has(1)
    assert store.find(["é1001"], []).num_rows == 0


@pytest.mark.parametrize("text", [True, False])
def test_events_are_found_wherever_they_are(tmp_path, text):
    store = HistoryStore(tmp_path, flush_rows=50, small_files=3)
    for each in range(1, 40):
        store.write(each, frame(each, text=text))
    assert store.waiting_rows > 0
    every = pa.concat_tables([frame(each, text=text) for each in range(1, 40)]).to_pylist()
    wanted = [every[0], every[101], every[-1], every[-11]]
    ids = [str(row["event_id"]) for row in wanted]
    found = store.find(
        [*ids, "nobody", "99999999999999999999", "²", "-", "007"], ["amount", "verdict", "event_id"]
    )
    assert found.schema.names == ["event_id", "amount", "verdict"]
    assert sorted(found.to_pylist(), key=str) == sorted(
        ({name: row[name] for name in found.schema.names} for row in wanted), key=str
    )
    nothing = store.find(["nobody"], ["amount"])
    assert (nothing.num_rows, nothing.schema.names) == (0, ["event_id", "amount"])


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("compacted", [True, False])
def test_of_a_corrected_event_the_newest_row_comes_last(tmp_path, waits, compacted):
    """Corrections lie in files of later frames, of other days before and after, in memory, and in their own frame."""
    store = HistoryStore(tmp_path, flush_rows=10**6)
    # Frame -> (day, the event's id, whether it corrects it)
    rows = {1: (5, "a", False), 3: (5, "b", False), 5: (2, "a", True), 7: (9, "b", True), 9: (5, "b", True)}
    for sequence, (day, event_id, corrected) in rows.items():
        table = frame(sequence, rows=1, day=day, journal_frame=[sequence], corrected=[corrected])
        store.write(sequence, table.set_column(0, "event_id", pa.array([event_id])))
        if sequence < 9 or not waits:
            store.flush()
    # An event and its correction in one frame, the correction on an earlier day.
    both = pa.concat_tables(
        [
            frame(11, rows=1, day=day, journal_frame=[11], corrected=[corrected])
            for day, corrected in ((5, False), (2, True))
        ]
    )
    store.write(11, both.set_column(0, "event_id", pa.array(["c", "c"])))
    if not waits:
        store.flush()
    if compacted:
        store.compact()
    found = store.find(["a", "b", "c"], ["amount", "time_us"])
    assert found.schema.names == ["event_id", "amount", "time_us"]
    last = {row["event_id"]: row["time_us"] // DAY - START for row in found.to_pylist()}
    assert last == {"a": 2, "b": 5, "c": 2}
    assert found.num_rows == 7


def test_a_column_that_came_later_is_null_before(tmp_path):
    store = HistoryStore(tmp_path, flush_rows=1)
    store.write(1, frame(1))
    store.write(2, frame(2, score=np.ones(10)))
    store.flush()
    rows = store.find(["é1000", "é2000"], ["score", "never"]).sort_by("event_id")
    assert rows.column("score").to_pylist() == [None, 1.0]
    assert rows.column("never").to_pylist() == [None, None]
    assert query(store, "SELECT count(score) AS n FROM history").to_pylist() == [{"n": 10}]
    store.compact()  # files of different columns stay apart
    assert len(store.files()) == 2


def test_a_damaged_or_missing_index_is_made_again_and_a_damaged_file_named(tmp_path):
    store = HistoryStore(tmp_path)
    store.write(1, frame(1, rows=3000))
    store.flush()
    index = next(tmp_path.glob("*.ids"))
    good = index.read_bytes()
    for content in (
        b"",
        good[:40],
        good[:-1],
        bytes([good[0] ^ 1]) + good[1:],
        good[:100] + b"\0" + good[101:],
    ):
        index.write_bytes(content)
        assert HistoryStore(tmp_path).find(["é1500"], []).num_rows == 1
        assert index.read_bytes() == good
    index.unlink()
    assert HistoryStore(tmp_path).find(["é1500"], []).num_rows == 1
    path = store.files()[0]
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 4] ^= 1
    path.write_bytes(raw)
    with pytest.raises(HistoryError, match=f"{path.name} cannot be read"):
        HistoryStore(tmp_path).find(["é1500"], ["amount", "verdict", "rule", "time_us"])
    path.unlink()
    with pytest.raises(HistoryError, match=f"{path.name} is missing"):
        HistoryStore(tmp_path)


def test_hashes_do_not_depend_on_how_ids_are_cut():
    ids = pa.array(["", "a", "ab", "é", "x" * 300, *map(str, range(1000))])
    hashes = hash_ids(ids)
    assert np.array_equal(hash_ids(ids.slice(3, 500)), hashes[3:503])
    assert len(np.unique(hashes)) == len(ids)
    assert len(hash_ids(ids.slice(2, 0))) == len(hash_ids(pa.array([], type=pa.string()))) == 0
    assert as_ids(["5", "-7", "+5", "1_0", "9223372036854775808"], pa.int64()).to_pylist() == [5, -7]


def test_an_index_gives_every_row_of_an_id(tmp_path):
    ids = pa.array(["a", "b", "a", "c", "a"])
    (tmp_path / "x.ids").write_bytes(b"".join(index_parts([hash_ids(ids), hash_ids(ids)])))
    index = IdIndex(tmp_path / "x.ids")
    assert index.rows(hash_ids(pa.array(["a", "z"]))).tolist() == [0, 2, 4, 5, 7, 9]


def test_a_full_disk_loses_nothing_and_is_said(tmp_path):
    store = HistoryStore(tmp_path, flush_rows=100)
    for each in range(1, 11):
        store.write(each, frame(each))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
    try:
        with pytest.raises(HistoryError, match="what waits is in the journal"):
            store.write(11, frame(11))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not store.has(11)
    assert store.has(10)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]
    store.write(11, frame(11))
    store.close()
    assert stored(tmp_path).equals(whole(range(1, 12)))


def test_a_history_of_the_first_version_is_refused_with_the_fix(tmp_path):
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "0000000001.parquet")
    with pytest.raises(HistoryError, match="start with an empty data directory"):
        HistoryStore(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(HistoryError, match="restore it from a copy"):
        HistoryFolder(tmp_path)


@pytest.fixture
def filled(tmp_path):
    store = HistoryStore(tmp_path, flush_rows=70)
    for each in SEQUENCES:
        store.write(each, frame(each))
    assert store.waiting_rows
    return store


def test_statistics_count_files_and_what_waits(filled):
    rows = whole(SEQUENCES)
    wanted = rows.group_by(
        pl.from_epoch(pl.col("time_us") // DAY, time_unit="d").alias("day"), "verdict", "rule"
    ).agg(events=pl.len(), amount=pl.col("amount").sum())
    order = ["day", "verdict", "rule"]
    found = pl.from_arrow(verdicts_by_day(filled))
    assert found.columns == [*order, "events", "amount"]
    assert found.sort(order)["events"].to_list() == wanted.sort(order)["events"].to_list()
    assert np.allclose(found.sort(order)["amount"], wanted.sort(order)["amount"])
    answer = query(
        filled, "SELECT count(*) AS n FROM history WHERE verdict = ? AND amount > ?", ["block", 50]
    )
    assert answer.to_pylist() == [
        {"n": rows.filter((pl.col("verdict") == "block") & (pl.col("amount") > 50)).height}
    ]


def test_statistics_count_the_last_judgement_of_a_corrected_event(tmp_path):
    store = HistoryStore(tmp_path)
    for sequence, (day, event_id, corrected) in enumerate(
        [(5, 7, False), (5, 8, False), (3, 7, True), (6, 7, True), (4, 8, True)], start=1
    ):
        table = frame(sequence, rows=1, day=day, journal_frame=[sequence], corrected=[corrected])
        table = table.set_column(0, "event_id", pa.array([event_id]))
        store.write(sequence, table)
        if sequence == 3:
            store.flush()
    days = [(row["day"], row["events"]) for row in verdicts_by_day(store).to_pylist()]
    first = dt.date(1970, 1, 1)
    assert [((day - first).days - START, events) for day, events in days] == [(4, 1), (6, 1)]
    assert verdicts_by_day(store, START + 5, START + 5).num_rows == 0
    assert verdicts_by_day(store, START + 6, START + 6).num_rows == 1


def test_batches_come_in_order_within_their_range(filled):
    rows = whole(SEQUENCES)
    first, end = (START + 2) * DAY + DAY // 3, (START + 5) * DAY + 7
    wanted = rows.filter(pl.col("time_us").is_between(first, end, closed="left"))
    found = list(batches(filled, ["event_id", "amount"], first_us=first, end_us=end, rows=16))
    assert max(batch.num_rows for batch in found) <= 16
    assert pl.from_arrow(pa.Table.from_batches(found)).equals(wanted.select("event_id", "amount"))
    assert sum(batch.num_rows for batch in batches(filled, ["amount"])) == 300
    with pytest.raises(HistoryError, match="no column 'fraud'"):
        list(batches(filled, ["fraud"]))


def test_an_empty_history(tmp_path):
    store = HistoryStore(tmp_path)
    assert store.rows() == 0
    assert list(batches(store, ["amount"])) == []
    with pytest.raises(HistoryError, match="empty"):
        verdicts_by_day(store)


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{0}'",
        "CREATE TABLE t AS SELECT 1",
        "ATTACH '{0}'",
        "SET threads = 64",
        "INSTALL httpfs",
        "SELECT 1; SELECT 2",
        "",
        "DELETE FROM history",
        "SELECT * FROM read_csv('/etc/hostname')",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '/etc/hostname'",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM secret",
        "SELECT nothing FROM history",
        "SELEC 1",
    ],
)
def test_sql_reads_the_history_and_nothing_else(filled, tmp_path, sql):
    secret = pa.table({"a": [1]})
    assert secret.num_rows
    target = tmp_path / "written"
    with pytest.raises(HistoryError):
        query(filled, sql.format(target))
    assert not target.exists()


def test_a_question_that_takes_too_long_is_ended(filled):
    with pytest.raises(HistoryError, match=r"longer than 0.2 seconds"):
        query(
            filled,
            "SELECT count(*) FROM history a, history b, history c, history d"
            " WHERE a.amount + b.amount < c.amount - d.amount",
            seconds=0.2,
        )

"""Event files: every bad cell is named by row and column, good rows are kept, nothing is reordered wrongly."""

import csv
import datetime as dt

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from member_node.streams.events import EventSchemaError, check_events, transactions_of
from member_node.streams.files import EventFileError, Reject, read_events, read_rows, write_rejects
from member_node.streams.mapping import parse_mapping
from scoring.schema import Channel, entity_keys

MAPPING = parse_mapping(
    """
[columns]
event_id = "ID"
time = "AT"
channel = "HOW"
amount = "EUR"
customer = "WHO"
terminal = "WHERE"
[types]
event_id = "integer"
customer = "integer"
[channels]
atm = "withdrawal"
[labels]
column = "FRAUD"
delay_days = 7
""",
    name="test",
)
HEADER = "ID,AT,HOW,EUR,WHO,WHERE,FRAUD,IGNORED"
GOOD = [
    "1,2018-04-01 00:00:31,card,57.16,596,T-3156,0,x",
    "2,2018-04-01T00:02:10Z,ATM,81.51,4961,T-3412,1,x",
    "3,2018-04-01T02:02:10+02:00,transfer,0,2,,,x",
]


def write_csv(tmp_path, lines, header=HEADER):
    path = tmp_path / "events.csv"
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else line.encode() for line in [header, *lines])
    )
    return path


def test_good_rows_by_time(tmp_path):
    file = read_events(write_csv(tmp_path, [GOOD[1], GOOD[0], GOOD[2]]), MAPPING)
    assert file.rejects == ()
    assert (file.rows, file.rejected) == (3, 0)
    assert file.events.column("event_id").to_pylist() == [1, 2, 3]
    start = int(dt.datetime(2018, 4, 1, tzinfo=dt.UTC).timestamp())
    assert [t // 1_000_000 - start for t in file.events.column("time_us").to_pylist()] == [31, 130, 130]
    assert file.events.column("terminal").to_pylist() == ["T-3156", "T-3412", None]
    assert file.fraud.tolist() == [0, 1, -1]
    batch = transactions_of(file.events)
    assert batch.channel.tolist() == [Channel.CARD, Channel.WITHDRAWAL, Channel.TRANSFER]
    assert batch.entities["customer"].tolist() == entity_keys(np.array([596, 4961, 2])).tolist()
    assert (
        batch.entities["terminal"].tolist()
        == entity_keys(np.array(["T-3156", "T-3412", None], object)).tolist()
    )


@pytest.mark.parametrize(
    ("line", "column", "words"),
    [
        ("9,not-a-time,card,1,1,T,0,x", "AT", "not a time"),
        ("9,,card,1,1,T,0,x", "AT", "missing"),
        ("9,2318-04-01 00:00:00,card,1,1,T,0,x", "AT", "1970 to 2200"),
        ("9,2018-04-01 00:00:00,pigeon,1,1,T,0,x", "HOW", "not a channel"),
        ("9,2018-04-01 00:00:00,card,12x,1,T,0,x", "EUR", "not a number"),
        ("9,2018-04-01 00:00:00,card,nan,1,T,0,x", "EUR", "finite"),
        ("9,2018-04-01 00:00:00,card,inf,1,T,0,x", "EUR", "finite"),
        ("9,2018-04-01 00:00:00,card,-1,1,T,0,x", "EUR", "negative"),
        ("9,2018-04-01 00:00:00,card,,1,T,0,x", "EUR", "missing"),
        ("9,2018-04-01 00:00:00,card,1,Smith,T,0,x", "WHO", "not an integer"),
        ("9,2018-04-01 00:00:00,card,1,1," + "T" * 300 + ",0,x", "WHERE", "longer"),
        ("9,2018-04-01 00:00:00,card,1,1,T,2,x", "FRAUD", "0 or 1"),
        ("9,2018-04-01 00:00:00,card,1,1,T,maybe,x", "FRAUD", "0 or 1"),
        (",2018-04-01 00:00:00,card,1,1,T,0,x", "ID", "missing"),
        ("2,2018-04-01 00:00:00,card,1,1,T,0,x", "ID", "repeats"),
        ("9,2018-04-01 00:00:00,card,1", "WHO", "4 cells"),
        ("9,2018-04-01 00:00:00,card,1,1,T,0,x,y,z", "IGNORED", "10 cells"),
        ('9,2018-04-01 00:00:00,"card,1,1,T,0,x', "ID", "unfinished quotation"),
        (b"9,2018-04-01 00:00:00,card,1,1,\xff\xfe,0,x", "WHERE", "UTF-8"),
    ],
)
def test_a_bad_cell_is_named_and_good_rows_stay(tmp_path, line, column, words):
    file = read_events(write_csv(tmp_path, [GOOD[0], GOOD[1], line, GOOD[2]]), MAPPING)
    assert file.events.column("event_id").to_pylist() == [1, 2, 3]
    assert (file.rows, file.rejected) == (4, 1)
    assert [(reject.row, reject.column) for reject in file.rejects] == [(4, column)]
    assert words in file.rejects[0].reason
    assert "Smith" not in file.rejects[0].reason


def test_every_bad_cell_of_a_row_is_named_but_the_row_is_counted_once(tmp_path):
    file = read_events(write_csv(tmp_path, ["x,never,card,much,1,T,0,x", GOOD[0]]), MAPPING)
    assert [reject.column for reject in file.rejects] == ["AT", "EUR", "ID"]
    assert (file.rows, file.rejected) == (2, 1)
    write_rejects(file.rejects, tmp_path / "rejects.csv")
    with open(tmp_path / "rejects.csv", newline="") as written:
        rows = list(csv.DictReader(written))
    assert [(row["row"], row["column"]) for row in rows] == [("2", "AT"), ("2", "EUR"), ("2", "ID")]


def test_a_file_without_its_columns_is_refused(tmp_path):
    with pytest.raises(EventFileError, match="no column AT"):
        read_events(write_csv(tmp_path, [], header=HEADER.replace("AT", "WHEN")), MAPPING)
    empty = tmp_path / "empty.csv"
    empty.write_bytes(b"")
    with pytest.raises(EventFileError, match="empty"):
        read_events(empty, MAPPING)
    with pytest.raises(EventFileError, match="parquet or"):
        read_events(tmp_path / "events.xls", MAPPING)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 no")
    with pytest.raises(EventFileError, match="not a readable Parquet"):
        read_events(broken, MAPPING)


def parquet_frame(rows):
    return pl.DataFrame(
        {
            "ID": np.arange(rows, dtype=np.int32),
            "AT": pl.datetime_range(
                dt.datetime(2018, 4, 1),
                dt.datetime(2018, 4, 2),
                dt.timedelta(seconds=86400 // rows),
                eager=True,
            )[:rows].cast(pl.Datetime("ms")),
            "HOW": ["card"] * rows,
            "EUR": np.arange(rows, dtype=np.float64),
            "WHO": np.arange(rows, dtype=np.int32),
            "WHERE": [f"T{i}" for i in range(rows)],
            "FRAUD": np.zeros(rows, dtype=np.int8),
        }
    )


def test_parquet_rows_are_checked_alike(tmp_path):
    frame = parquet_frame(100).with_columns(
        pl.when(pl.col("ID") == 6).then(float("nan")).otherwise(pl.col("EUR")).alias("EUR"),
        pl.when(pl.col("ID") == 8).then(None).otherwise(pl.col("WHO")).alias("WHO"),
    )
    frame.write_parquet(tmp_path / "events.parquet")
    file = read_events(tmp_path / "events.parquet", MAPPING)
    assert file.rejects == (Reject(7, "EUR", "is not finite"),)
    assert file.events.num_rows == 99
    assert file.events.column("customer").null_count == 1


def test_a_damaged_stretch_of_parquet_costs_only_itself(tmp_path):
    path = tmp_path / "events.parquet"
    pq.write_table(parquet_frame(3000).to_arrow(), path, row_group_size=1000, compression="zstd")
    place = pq.ParquetFile(path).metadata.row_group(1).column(3)
    assert place.path_in_schema == "EUR"
    raw = bytearray(path.read_bytes())
    start = place.dictionary_page_offset or place.data_page_offset
    for offset in range(start, start + place.total_compressed_size):
        raw[offset] ^= 0xFF
    path.write_bytes(raw)
    file = read_events(path, MAPPING)
    assert [(r.row, r.last_row, r.column) for r in file.rejects] == [(1001, 2000, "EUR")]
    assert (file.rows, file.rejected, file.events.num_rows) == (3000, 1000, 2000)
    assert 1000 not in file.events.column("event_id").to_pylist()
    assert 2000 in file.events.column("event_id").to_pylist()


def test_integer_times_need_a_unit(tmp_path):
    frame = parquet_frame(10).with_columns(pl.col("AT").dt.epoch("s"))
    frame.write_parquet(tmp_path / "events.parquet")
    with pytest.raises(EventFileError, match="unit"):
        read_events(tmp_path / "events.parquet", MAPPING)


def test_live_rows_keep_their_order_and_are_checked_alike():
    rows = [
        {"event_id": 5, "time": "2018-04-01T10:00:00", "channel": "card", "amount": 3, "customer": 1},
        {"event_id": 6, "time": "2018-04-01T09:00:00", "channel": "card", "amount": "x", "customer": 1},
        {"event_id": 7, "time": "2018-04-01T08:00:00", "channel": "card", "amount": 3.5, "terminal": "T1"},
    ]
    file = read_rows(rows, MAPPING)
    assert file.events.column("event_id").to_pylist() == [5, 7]
    assert file.rejects == (Reject(2, "amount", "is not a number"),)


WIDE = parse_mapping(
    """
[columns]
event_id = "ID"
time = "AT"
amount = "EUR"
correction = "AGAIN"
device_components = "DEVICE"
[numbers]
latitude = "LAT"
longitude = "LON"
[constants]
channel = "card"
""",
    name="wide",
)


def test_numbers_corrections_and_components(tmp_path):
    path = tmp_path / "events.parquet"
    pl.DataFrame(
        {
            "ID": ["a", "b", "a", "b", "c", "d", "e"],
            "AT": [dt.datetime(2026, 3, 1, 12, minute) for minute in range(7)],
            "EUR": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, float("nan")],
            "AGAIN": [0, None, 1, 0, 2, 0, 0],
            "DEVICE": ['{"a": 1}', None, None, None, None, "[]", None],
            "LAT": [48.1, None, -1.5, 1.0, 1.0, 1.0, 1.0],
            "LON": [float("inf"), 11.5, 1.0, 1.0, 1.0, 1.0, 1.0],
        }
    ).write_parquet(path)
    file = read_events(path, WIDE)
    assert [(each.row, each.column, each.code) for each in file.rejects] == [
        (1, "LON", "number-not-finite"),
        (4, "ID", "malformed"),  # repeats an id and is no correction
        (5, "AGAIN", "wrong-type"),
        (6, "DEVICE", "wrong-type"),
        (7, "EUR", "amount-not-a-number"),
    ]
    batch = transactions_of(file.events)
    assert batch.event_id.tolist() == ["b", "a"]
    assert batch.correction.tolist() == [False, True]
    assert batch.numbers["latitude"].tolist()[1] == -1.5
    assert np.isnan(batch.numbers["latitude"][0])
    assert batch.numbers["longitude"].tolist() == [11.5, 1.0]
    rows = [
        {"event_id": "a", "time": "2026-03-01T12:00:00Z", "amount": 1, "latitude": 2.5, "correction": True}
    ]
    live = transactions_of(read_rows(rows, WIDE).events)
    assert (live.correction.tolist(), live.numbers["latitude"].tolist()) == ([True], [2.5])


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"amount": pa.array([1])}, "'amount' holds int64"),
        ({"amount": pa.array([None], pa.float64())}, "'amount' holds nulls"),
        ({"correction": pa.array([1])}, "'correction' holds int64"),
        ({"correction": pa.array([None], pa.bool_())}, "'correction' holds nulls"),
        ({"latitude": pa.array([1])}, "'latitude' holds int64"),
        ({"class": pa.array([1.0])}, "'class' is no attribute"),
        ({"time": pa.array([1.0])}, "'time' is no attribute"),
        ({"customer": pa.array([1.0])}, "'customer' holds double"),
    ],
)
def test_batches_that_are_no_events_are_named(columns, wanted):
    fixed = {
        "event_id": pa.array([1]),
        "time_us": pa.array([1]),
        "channel": pa.array([1], pa.uint8()),
        "amount": pa.array([1.0]),
    }
    check_events(pa.record_batch(fixed))
    with pytest.raises(EventSchemaError, match=wanted):
        check_events(pa.record_batch(fixed | columns))

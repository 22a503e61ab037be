"""From one file of all banks to each bank's own: bad rows named, good rows dealt, nothing lost without a word."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from member_node.streams.files import EventFileError, read_events
from member_node.streams.mapping import MappingError, StreamMapping, parse_mapping
from sandbox.streams import day_start_ms, deal, read_source, report_rejects, require_parts

MAPPING = """
[columns]
event_id = "ID"
time = "AT"
amount = "EUR"
customer = "WHO"
terminal = "WHERE"
channel = "HOW"
[channels]
atm = "withdrawal"
[constants]
currency = "EUR"
[time]
zone = "Europe/Berlin"
[labels]
column = "BAD"
delay_days = 7
[split]
column = "BANK"
[indicators]
terminal = "terminal"
[directory]
dataset = "terminals"
entity = "terminal"
[evaluation]
train_first = "2026-01-05"
train_days = 1
delay_days = 1
test_days = 1
"""
COLUMNS = ("ID", "AT", "EUR", "WHO", "WHERE", "HOW", "BAD", "BANK")
ROWS = [
    ("e1", "2026-01-05 23:30:00", "10.5", "ada", "T2", "atm", "0", "0"),
    ("e2", "2026-01-05 00:10:00", "3", "bob", "T1", "card", "1", "1"),
    ("e3", "2026-01-06 00:10:00", "4", "eve", "", "transfer", "0", "-1"),
    ("e4", "2026-01-07 12:00:00", "5", "kim", "T3", "card", "", "3"),
]


@pytest.fixture
def mapping() -> StreamMapping:
    return parse_mapping(MAPPING, name="own")


def write_csv(path: Path, rows=ROWS, columns=COLUMNS) -> Path:
    path.write_text("\n".join(",".join(row) for row in (columns, *rows)) + "\n")
    return path


def write_parquet(path: Path) -> Path:
    """The same rows with the types a database would give them."""
    frame = pl.DataFrame(ROWS, schema=list(COLUMNS), orient="row")
    frame.select(
        pl.col("ID"),
        pl.col("AT").str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us"),
        pl.col("EUR").cast(pl.Float64),
        pl.col("WHO"),
        pl.col("WHERE").replace("", None),
        pl.col("HOW"),
        pl.col("BAD").cast(pl.Int8, strict=False),
        pl.col("BANK").cast(pl.Int64),
    ).write_parquet(path)
    return path


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_rows_go_to_their_banks_and_read_back_the_same(tmp_path, mapping, write) -> None:
    file = write(tmp_path / ("all.csv" if write is write_csv else "all.parquet"))
    source = read_source(file, mapping)
    assert (source.rows, source.rejected, source.rejects) == (4, 0, ())
    assert source.split.tolist() == [1, 0, -1, 3]  # by time
    dealt = deal(source, mapping, 3, tmp_path / "out")
    assert [path.name for path in dealt.files] == ["bank-a.parquet", "bank-b.parquet", "bank-c.parquet"]
    assert (dealt.first_day, dealt.last_day, dealt.events) == (dt.date(2026, 1, 5), dt.date(2026, 1, 7), 4)
    assert dealt.directory.read_text() == "T1\nT2\nT3\n"
    whole = read_events(file, mapping)
    parts = [read_events(path, mapping) for path in dealt.files]
    assert all(part.rejects == () for part in parts)
    assert [part.events.column("event_id").to_pylist() for part in parts] == [["e1", "e4"], ["e2"], ["e3"]]
    together = pl.concat([pl.from_arrow(part.events) for part in parts]).sort("time_us")
    assert together.equals(pl.from_arrow(whole.events))
    fraud = np.concatenate([part.fraud for part in parts])
    assert sorted(fraud.tolist()) == sorted(whole.fraud.tolist()) == [-1, 0, 0, 1]


def test_days_are_those_of_the_data_sets_zone(tmp_path, mapping) -> None:
    source = read_source(write_csv(tmp_path / "all.csv"), mapping)
    monday = (dt.date(2026, 1, 5) - dt.date(1970, 1, 1)).days
    assert source.day.tolist() == [monday, monday, monday + 1, monday + 2]
    assert source.first_days(1).frame["ID"].to_list() == ["e2", "e1"]
    assert len(source.first_days(2).split) == 3
    assert day_start_ms(mapping, dt.date(2026, 1, 5)) == 1767567600_000  # 4 January, 23:00 UTC


def test_bad_rows_are_named_and_good_rows_kept(tmp_path, mapping) -> None:
    rows = [
        *ROWS,
        ("e5", "soon", "1", "ada", "T1", "card", "0", "0"),
        ("e6", "2026-01-07 13:00:00", "-1", "ada", "T1", "card", "0", "0"),
        ("e7", "2026-01-07 13:00:00", "1", "ada", "T1", "card", "0", ""),
        ("e8", "2026-01-07 13:00:00", "1", "ada", "T1", "card", "0", "first"),
        ("e1", "2026-01-07 13:00:00", "1", "ada", "T1", "card", "0", "0"),
        ("e9", "2026-01-07 14:00:00", "1", "ada", "T1", "card", "0", "2"),
    ]
    source = read_source(write_csv(tmp_path / "all.csv", rows), mapping)
    assert [(each.row, each.column) for each in source.rejects] == [
        (6, "AT"),
        (7, "EUR"),
        (8, "BANK"),
        (9, "BANK"),
        (10, "ID"),
    ]
    assert source.frame["ID"].to_list() == ["e2", "e1", "e3", "e4", "e9"]
    assert (source.rows, source.rejected) == (10, 5)
    lines = report_rejects(source, tmp_path)
    assert lines[0].startswith("5 of 10 rows refused")
    assert "row 8, BANK: is missing" in lines[3]
    assert (tmp_path / "rejects.csv").read_text().splitlines()[1:] == [
        "6,6,AT,is not a time",
        "7,7,EUR,is negative",
        "8,8,BANK,is missing",
        "9,9,BANK,is not an integer",
        "10,10,ID,repeats the id of an earlier row",
    ]


def test_nothing_is_written_when_nothing_was_refused(tmp_path, mapping) -> None:
    source = read_source(write_csv(tmp_path / "all.csv"), mapping)
    assert report_rejects(source, tmp_path) == []
    assert not (tmp_path / "rejects.csv").exists()


def test_null_split_keys_of_a_parquet_file_are_named(tmp_path, mapping) -> None:
    file = write_parquet(tmp_path / "all.parquet")
    frame = pl.read_parquet(file).with_columns(
        BANK=pl.when(pl.col("ID") == "e3").then(None).otherwise(pl.col("BANK"))
    )
    frame.write_parquet(file)
    source = read_source(file, mapping)
    assert [(each.row, each.column, each.reason) for each in source.rejects] == [(3, "BANK", "is missing")]
    assert source.frame.height == 3


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("noise.parquet", b"\x00\x01 not a table", "not a readable Parquet file"),
        ("empty.csv", b"", "is empty"),
        ("lacks.csv", b"ID,AT,EUR,WHO,WHERE,HOW,BAD\n", "has no column BANK"),
        ("none.csv", ",".join(COLUMNS).encode() + b"\ne1,soon,1,a,T1,card,0,0\n", "none of its 1 rows"),
        ("rows.csv", ",".join(COLUMNS).encode() + b"\n", "none of its 0 rows"),
        ("events.xlsx", b"PK", ".parquet or .csv"),
    ],
)
def test_a_file_of_no_use_is_an_error_that_names_it(tmp_path, mapping, name, content, expected) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EventFileError, match=name) as caught:
        read_source(tmp_path / name, mapping)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mapping_must_be_fit_for_a_sandbox(mapping) -> None:
    require_parts(mapping)
    head = MAPPING.partition("[labels]")[0].replace('customer = "WHO"\n', "")
    with pytest.raises(MappingError, match=r"customer, \[labels\], \[split\], \[directory\], \[evaluation\]"):
        require_parts(parse_mapping(head, name="bare"))


def test_a_given_directory_is_taken_as_it_is(tmp_path, mapping) -> None:
    directory = tmp_path / "public.txt"
    directory.write_text("T1\nT2\nT3\nT4\n")
    source = read_source(write_csv(tmp_path / "all.csv"), mapping)
    assert deal(source, mapping, 2, tmp_path / "out", directory=directory).directory == directory

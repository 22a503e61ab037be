"""Rows from JSON and Arrow: faults are named by code and field, the rows around them kept, hostile bytes refused."""

import datetime as dt
import json
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.messages.problems import RequestError
from member_node.streams.components import MAX_COMPONENTS
from member_node.streams.events import check_events, event_schema, transactions_of
from member_node.streams.mapping import parse_mapping
from member_node.streams.sources.arrow_rows import MAX_BATCHES, ArrowRows
from member_node.streams.sources.json_rows import JsonRows
from member_node.streams.sources.rows import MAX_FUTURE_US, MAX_ROWS, RowForm
from scoring.row_codes import RowCode
from scoring.schema import Channel, entity_keys

NOW = 1_800_000_000_000_000
SCHEMA = event_schema(
    {"customer": False, "terminal": True},
    integer_ids=False,
    numbers=("latitude",),
    correction=True,
    device_components=True,
)
MAPPING = parse_mapping(
    """
[columns]
event_id = "event_id"
time = "time"
channel = "channel"
amount = "amount"
customer = "customer"
terminal = "terminal"
correction = "correction"
device_components = "device_components"
[numbers]
latitude = "latitude"
[channels]
atm = "withdrawal"
""",
    name="test",
)
FORM = RowForm.of(MAPPING, SCHEMA)
JSON, ARROW = JsonRows(FORM), ArrowRows(FORM)


def row(number=0, **changed):
    made = {
        "event_id": f"e{number}",
        "time_us": NOW - 1000 + number,
        "amount": 10.5 + number,
        "channel": "card",
        "customer": f"c{number}",
        "terminal": number,
        "latitude": 48.1,
    }
    made |= changed
    return {name: value for name, value in made.items() if value is not ...}


def lines(*rows):
    return b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in rows)


def read(*rows):
    return JSON.rows(JSON.lines(lines(*rows)), NOW)


def ipc(table, **options):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def table(rows=3, **changed):
    columns = {
        "event_id": pa.array([f"e{number}" for number in range(rows)]),
        "time_us": pa.array(np.arange(rows) + NOW - 1000),
        "amount": pa.array(np.arange(rows) + 10.5),
        "channel": pa.array(["card"] * rows),
        "customer": pa.array([f"c{number}" for number in range(rows)]),
        "terminal": pa.array(np.arange(rows, dtype=np.int32)),
        "latitude": pa.array(np.full(rows, 48.1, np.float32)),
    }
    columns |= changed
    return pa.table({name: column for name, column in columns.items() if column is not None})


def test_json_and_arrow_rows_are_the_same_events():
    from_json = read(row(0), row(1), row(2))
    from_arrow = ARROW.rows(ipc(table(latitude=pa.array(np.full(3, 48.1)))), NOW)
    assert from_json.events.equals(from_arrow.events)
    assert from_json.refusals == from_arrow.refusals == ()
    check_events(from_json.events)
    batch = transactions_of(from_json.events)
    assert batch.entities["customer"].tolist() == entity_keys(["c0", "c1", "c2"]).tolist()
    assert batch.entities["terminal"].tolist() == entity_keys([0, 1, 2]).tolist()
    assert batch.numbers["latitude"].tolist() == [48.1] * 3
    assert batch.correction.tolist() == [False] * 3
    assert set(batch.channel.tolist()) == {Channel.CARD}


@pytest.mark.parametrize(
    ("bad", "code", "field"),
    [
        (b"", None, None),
        (b"{", RowCode.MALFORMED, ""),
        (b"\xff\xfe", RowCode.MALFORMED, ""),
        (b"[1]", RowCode.WRONG_TYPE, ""),
        (b"[" * 100_000, RowCode.MALFORMED, ""),
        (row(event_id=...), RowCode.EVENT_ID_MISSING, "event_id"),
        (row(event_id=None), RowCode.EVENT_ID_MISSING, "event_id"),
        (row(event_id=" "), RowCode.EVENT_ID_MISSING, "event_id"),
        (row(event_id=7), RowCode.WRONG_TYPE, "event_id"),
        (row(event_id="x" * 257), RowCode.TEXT_TOO_LONG, "event_id"),
        (row(amount=...), RowCode.FIELD_MISSING, "amount"),
        (row(amount="12"), RowCode.WRONG_TYPE, "amount"),
        (row(amount=True), RowCode.WRONG_TYPE, "amount"),
        (row(amount=-0.01), RowCode.AMOUNT_NEGATIVE, "amount"),
        (row(amount=float("nan")), RowCode.AMOUNT_NOT_A_NUMBER, "amount"),
        (row(amount=float("inf")), RowCode.AMOUNT_INFINITE, "amount"),
        (row(amount=10**400), RowCode.AMOUNT_INFINITE, "amount"),
        (lines(row()).replace(b"10.5", b"1e999"), RowCode.AMOUNT_INFINITE, "amount"),
        (row(channel=...), RowCode.FIELD_MISSING, "channel"),
        (row(channel="teleport"), RowCode.UNKNOWN_CHANNEL, "channel"),
        (row(channel=5), RowCode.WRONG_TYPE, "channel"),
        (row(time_us=...), RowCode.FIELD_MISSING, "time"),
        (row(time_us=-1), RowCode.TIME_OUT_OF_RANGE, "time"),
        (row(time_us=2**70), RowCode.TIME_OUT_OF_RANGE, "time_us"),
        (row(time_us="now"), RowCode.WRONG_TYPE, "time_us"),
        (row(time_us=NOW + MAX_FUTURE_US + 1), RowCode.TIME_IN_FUTURE, "time"),
        (row(time="2026-01-01T00:00:00Z"), RowCode.FIELD_UNKNOWN, "time"),
        (row(time_us=..., time="2026-01-01T00:00:00"), RowCode.WRONG_TYPE, "time"),
        (row(time_us=..., time="yesterday"), RowCode.WRONG_TYPE, "time"),
        (row(customer="x" * 257), RowCode.TEXT_TOO_LONG, "customer"),
        (row(customer=5), RowCode.WRONG_TYPE, "customer"),
        (lines(row(customer="Q")).replace(b"Q", b"\\ud800"), RowCode.MALFORMED, "customer"),
        (row(terminal="5"), RowCode.WRONG_TYPE, "terminal"),
        (row(terminal=1.5), RowCode.WRONG_TYPE, "terminal"),
        (row(terminal=-(2**63)), RowCode.WRONG_TYPE, "terminal"),
        (row(latitude=float("inf")), RowCode.NUMBER_NOT_FINITE, "latitude"),
        (row(latitude="north"), RowCode.WRONG_TYPE, "latitude"),
        (row(correction="yes"), RowCode.WRONG_TYPE, "correction"),
        (row(device_components=["a"]), RowCode.WRONG_TYPE, "device_components"),
        (row(device_components={"fonts": "x" * MAX_COMPONENTS}), RowCode.TEXT_TOO_LONG, "device_components"),
        (row(ammount=5), RowCode.FIELD_UNKNOWN, "ammount"),
    ],
    ids=lambda value: value.text if isinstance(value, RowCode) else "",
)
def test_a_bad_json_row_is_named_and_the_others_are_kept(bad, code, field):
    incoming = read(row(1), bad, row(2))
    assert incoming.events.column("event_id").to_pylist() == ["e1", "e2"]
    if code is None:  # an empty line is no row
        assert (incoming.rows, incoming.refusals) == (2, ())
        return
    [refusal] = incoming.refusals
    assert (refusal.row, refusal.code, refusal.field) == (1, code, field)
    assert incoming.places.tolist() == [0, 2]
    # Alone it is refused alike.
    single = JSON.rows([JSON.one(bad if isinstance(bad, bytes) else json.dumps(bad).encode())], NOW)
    assert [(each.code, each.field) for each in single.refusals] == [(code, field)]


def test_a_refusal_tells_the_event_id_where_it_can_be_read():
    incoming = read(row(1, amount=-1), row(2, amount="x"), row(event_id=3), b"{")
    assert [each.event_id for each in incoming.refusals] == ["e1", "e2", None, None]


def test_times_words_and_blanks_mean_what_they_mean_in_files():
    incoming = read(
        row(1, time_us=..., time="2026-03-01T12:00:00.000001+02:00"),
        row(2, channel=" ATM "),
        row(3, customer="  c1 ", terminal=None),
        row(4, customer="", latitude=None, correction=True),
    )
    assert incoming.refusals == ()
    events = incoming.events.to_pylist()
    moment = dt.datetime(2026, 3, 1, 10, tzinfo=dt.UTC)
    assert events[0]["time_us"] == int(moment.timestamp()) * 1_000_000 + 1
    assert events[1]["channel"] == Channel.WITHDRAWAL
    assert (events[2]["customer"], events[2]["terminal"]) == ("c1", None)
    assert (events[3]["customer"], events[3]["latitude"], events[3]["correction"]) == (None, None, True)


def test_components_come_back_as_they_were():
    given = {"userAgent": "x", "fonts": ["a", "b"], "screen": {"w": 1}}
    incoming = read(row(1), row(2, device_components=given), row(3, device_components=None))
    first, second, third = incoming.events.column("device_components").to_pylist()
    assert (first, json.loads(second), third) == (None, given, None)


def test_an_object_over_several_lines_is_refused_and_shifts_nobody():
    spread = json.dumps(row(1), indent=1).encode()
    incoming = read(row(0), spread, row(2))
    assert incoming.events.column("event_id").to_pylist() == ["e0", "e2"]
    assert incoming.places.tolist() == [0, incoming.rows - 1]
    glued = JSON.rows(JSON.lines(lines(row(0)) + lines(row(1)) + b"\n" + lines(row(2))), NOW)
    assert glued.events.column("event_id").to_pylist() == ["e2"]


def test_too_many_lines_are_refused_as_a_whole():
    with pytest.raises(RequestError, match="too-large"):
        JSON.lines(b"{}\n" * (MAX_ROWS + 1))
    assert len(JSON.lines(b"\n" * 20_000 + b"{}\n" * 3)) == 3


def test_a_replay_may_come_from_any_time():
    form = RowForm.of(MAPPING, SCHEMA, max_future_us=None)
    decoder = JsonRows(form)
    assert decoder.rows([decoder.one(lines(row(time_us=NOW * 2)))], NOW).refusals == ()


def test_a_stream_of_integers_with_a_constant_channel():
    mapping = parse_mapping(
        '[columns]\nevent_id = "a"\ntime = "b"\namount = "c"\n[constants]\nchannel = "card"', name="x"
    )
    decoder = JsonRows(RowForm.of(mapping, event_schema({}, integer_ids=True)))
    incoming = decoder.rows(
        decoder.lines(
            b'{"event_id": 5, "time_us": 1, "amount": 1}\n{"event_id": "5", "time_us": 1, "amount": 1}\n'
            b'{"event_id": 6, "time_us": 1, "amount": 1, "channel": "transfer"}'
        ),
        NOW,
    )
    assert incoming.events.column("channel").to_pylist() == [Channel.CARD, Channel.TRANSFER]
    assert [(each.code, each.field) for each in incoming.refusals] == [(RowCode.WRONG_TYPE, "event_id")]


@pytest.mark.parametrize(
    ("changed", "code", "field"),
    [
        ({"event_id": pa.array(["e0", None, "e2"])}, RowCode.EVENT_ID_MISSING, "event_id"),
        ({"event_id": pa.array(["e0", " ", "e2"])}, RowCode.EVENT_ID_MISSING, "event_id"),
        ({"amount": pa.array([1.0, None, 1.0])}, RowCode.FIELD_MISSING, "amount"),
        ({"amount": pa.array([1.0, float("nan"), 1.0])}, RowCode.AMOUNT_NOT_A_NUMBER, "amount"),
        ({"amount": pa.array([1.0, float("inf"), 1.0])}, RowCode.AMOUNT_INFINITE, "amount"),
        ({"amount": pa.array([1, -1, 1])}, RowCode.AMOUNT_NEGATIVE, "amount"),
        ({"channel": pa.array(["card", "no", "card"])}, RowCode.UNKNOWN_CHANNEL, "channel"),
        ({"channel": pa.array([5, 300, 5])}, RowCode.UNKNOWN_CHANNEL, "channel"),
        ({"channel": pa.array([5, -5, 5], pa.int8())}, RowCode.UNKNOWN_CHANNEL, "channel"),
        ({"channel": pa.array([5, None, 5], pa.uint8())}, RowCode.UNKNOWN_CHANNEL, "channel"),
        ({"time_us": pa.array([0, None, 0], pa.int64())}, RowCode.FIELD_MISSING, "time"),
        ({"time_us": pa.array([0, -1, 0])}, RowCode.TIME_OUT_OF_RANGE, "time"),
        ({"time_us": pa.array([0, NOW * 2, 0])}, RowCode.TIME_IN_FUTURE, "time"),
        (
            {"time_us": None, "time": pa.array([0, 2**62, 0], pa.timestamp("s", "UTC"))},
            RowCode.TIME_OUT_OF_RANGE,
            "time",
        ),
        ({"customer": pa.array(["a", "x" * 257, "b"])}, RowCode.TEXT_TOO_LONG, "customer"),
        (
            {"customer": pa.array(["a", "x" * 257, "b"]).dictionary_encode()},
            RowCode.TEXT_TOO_LONG,
            "customer",
        ),
        ({"terminal": pa.array([1, -(2**63), 1])}, RowCode.WRONG_TYPE, "terminal"),
        ({"latitude": pa.array([1.0, float("nan"), None])}, RowCode.NUMBER_NOT_FINITE, "latitude"),
        ({"device_components": pa.array(["{}", "{", None])}, RowCode.MALFORMED, "device_components"),
        ({"device_components": pa.array(["{}", "[]", None])}, RowCode.WRONG_TYPE, "device_components"),
    ],
)
def test_a_bad_arrow_row_is_named_and_the_others_are_kept(changed, code, field):
    incoming = ARROW.rows(ipc(table(**changed)), NOW)
    assert [(each.row, each.code, each.field) for each in incoming.refusals] == [(1, code, field)]
    assert incoming.events.column("event_id").to_pylist() == ["e0", "e2"]
    check_events(incoming.events)


def test_long_letters_are_counted_as_letters():
    texts = pa.array(["é" * 256, "é" * 257, "b"])
    for column in (texts, texts.dictionary_encode()):
        incoming = ARROW.rows(ipc(table(customer=column)), NOW)
        assert [each.row for each in incoming.refusals] == [1]


@pytest.mark.parametrize(
    "changed",
    [
        {"event_id": pa.array([1, 2, 3])},
        {"amount": pa.array(["1", "2", "3"])},
        {"amount": None},
        {"channel": None},
        {"time_us": None},
        {"time_us": pa.array([1.0, 2.0, 3.0])},
        {"time": pa.array([1, 2, 3], pa.timestamp("us", "UTC"))},
        {"time_us": None, "time": pa.array([1, 2, 3], pa.timestamp("us"))},
        {"terminal": pa.array([1, 2, 3], pa.uint64())},
        {"customer": pa.array([1, 2, 3])},
        {"customer": pa.array([["a"], ["b"], []])},
        {"correction": pa.array([0, 1, 0])},
        {"latitude": pa.array(["1", "2", "3"])},
        {"ammount": pa.array([1.0, 2.0, 3.0])},
        {"device_components": pa.array(["{}"] * 3).dictionary_encode()},
        {"customer": pa.nulls(3)},
    ],
    ids=lambda changed: "+".join(changed),
)
def test_other_types_refuse_the_delivery(changed):
    with pytest.raises(RequestError, match="malformed"):
        ARROW.rows(ipc(table(**changed)), NOW)


def test_dictionaries_narrow_numbers_and_several_batches():
    parts = [table(2, customer=pa.array([name, "z"]).dictionary_encode()) for name in ("a", "b")]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, parts[0].schema) as writer:
        for each in parts:
            writer.write_table(each)
    incoming = ARROW.rows(sink.getvalue().to_pybytes(), NOW)
    assert incoming.events.column("customer").to_pylist() == ["a", "z", "b", "z"]
    assert incoming.events.schema.equals(SCHEMA)
    words = pa.array(["card", "atm", None]).dictionary_encode()
    assert ARROW.rows(ipc(table(channel=words)), NOW).events.column("channel").to_pylist() == [5, 4]


def test_compressed_buffers_and_too_many_rows_are_refused_before_they_are_read():
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pytest.raises(RequestError, match="compressed"):
        ARROW.rows(ipc(table(1000), options=options), NOW)
    encoded = table(1000, customer=pa.array(["x" * 200] * 1000).dictionary_encode())
    with pytest.raises(RequestError, match="compressed"):
        ARROW.rows(ipc(encoded, options=options), NOW)
    with pytest.raises(RequestError, match="at most 10000 rows"):
        ARROW.rows(ipc(table(MAX_ROWS + 1)), NOW)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table(1).schema) as writer:
        for _ in range(MAX_BATCHES + 1):
            writer.write_batch(table(1).to_batches()[0])
    with pytest.raises(RequestError, match="messages"):
        ARROW.rows(sink.getvalue().to_pybytes(), NOW)


def test_a_batch_that_lies_about_its_rows_is_refused():
    body = ipc(table(3))
    for claimed in (2**62, -1, 9_999):
        # The only 64-bit 3s of these bytes are the lengths of the batch and its columns.
        lying = body.replace(struct.pack("<q", 3), struct.pack("<q", claimed))
        assert lying != body
        with pytest.raises(RequestError):
            ARROW.rows(lying, NOW)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_streams_are_refused_or_read_never_worse(data):
    body = bytearray(DAMAGED)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(body)))
    try:
        incoming = ARROW.rows(bytes(body[:cut]), NOW)
    except RequestError:
        return
    check_events(incoming.events)
    assert len(incoming.places) + len(incoming.refusals) == incoming.rows
    transactions_of(incoming.events)


DAMAGED = ipc(
    table(
        5,
        customer=pa.array(["a", "b", None, "a", "c"]).dictionary_encode(),
        device_components=pa.array(["{}", None, "{}", None, None]),
    )
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.just(row(1)),
            st.binary(max_size=40).filter(lambda text: b"\n" not in text and text.strip()),
            st.dictionaries(
                st.sampled_from([*SCHEMA.names, "time", "zzz"]),
                st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
                max_size=5,
            ),
        ),
        max_size=6,
    )
)
def test_every_row_is_scored_or_refused_in_its_place(rows):
    incoming = read(*rows)
    assert incoming.rows == len(rows)
    places = sorted([*incoming.places.tolist(), *(each.row for each in incoming.refusals)])
    assert places == list(range(len(rows)))
    for place in incoming.places.tolist():
        assert isinstance(rows[place], dict)
    check_events(incoming.events)

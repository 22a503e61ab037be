"""The engine: contract cases by name, deep trees against a vectorised oracle, sweeping, shards and state."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from scoring.features import (
    Aggregation,
    Disposition,
    FeatureEngine,
    FeatureMatrix,
    FeatureSpec,
    WindowFeature,
    parse_spec,
)
from scoring.row_codes import RowCode
from scoring.schema import OutcomeBatch, SchemaError, TransactionBatch, transaction_batch

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
T = 1_700_000_000 * SECOND
SPEC = parse_spec(
    """
[[feature]]
name = "n"
entity = "customer"
aggregation = "count"
window = "1d"
[[feature]]
name = "total"
entity = "customer"
aggregation = "sum"
value = "amount"
window = "1d"
[[feature]]
name = "rate"
entity = "customer"
aggregation = "rate"
window = "30d"
delay = "7d"
"""
)


def batch(*rows: tuple[int, int, float], correct: bool = False, customer: int | None = 1) -> TransactionBatch:
    """Rows (id, time, amount) of one customer."""
    ids, times, amounts = zip(*rows, strict=True)
    return transaction_batch(
        event_id=np.array(ids),
        time_us=np.array(times),
        amount=amounts,
        channel="card",
        entities={"customer": [customer] * len(rows)},
        correction=[correct] * len(rows),
    )


def outcomes(*rows: tuple[int, bool, int]) -> OutcomeBatch:
    ids, fraud, known = zip(*rows, strict=True)
    return OutcomeBatch(np.array(ids), np.array(fraud), np.array(known))


def only(matrix: FeatureMatrix, name: str) -> float:
    assert len(matrix) == 1
    return float(matrix.column(name)[0])


def test_the_window_is_open_at_its_start_and_closed_at_the_event() -> None:
    engine = FeatureEngine(SPEC)
    matrix = engine.update(batch((1, T, 1.0), (2, T + 1, 2.0), (3, T + DAY, 4.0), (4, T + DAY + 1, 8.0)))
    assert matrix.column("n").tolist() == [1, 2, 2, 2]
    assert matrix.column("total").tolist() == [1, 3, 6, 12]


def test_equal_times_count_in_arrival_order() -> None:
    matrix = FeatureEngine(SPEC).update(batch((1, T, 1.0), (2, T, 1.0), (3, T, 1.0)))
    assert matrix.column("n").tolist() == [1, 2, 3]


def test_a_late_event_enters_later_windows_and_a_later_one_is_refused() -> None:
    engine = FeatureEngine(SPEC)
    engine.update(batch((1, T, 1.0)))
    late = engine.update(batch((2, T - HOUR, 2.0), (3, T - HOUR - 1, 4.0)))
    assert late.disposition.tolist() == [Disposition.APPLIED, Disposition.REFUSED_LATE]
    assert late.column("total")[0] == 2.0
    assert np.isnan(late.values[1]).all()
    assert only(engine.update(batch((4, T, 8.0))), "total") == 11.0


def test_a_correction_replaces_and_never_adds() -> None:
    engine = FeatureEngine(SPEC)
    engine.update(batch((1, T, 1.0), (2, T + 1, 2.0)))
    corrected = engine.update(batch((1, T, 100.0), correct=True))
    assert corrected.disposition.tolist() == [Disposition.CORRECTED]
    assert only(corrected, "total") == 100.0
    after = engine.update(batch((3, T + 2, 4.0)))
    assert (only(after, "n"), only(after, "total")) == (3, 106.0)


def test_a_correction_may_move_an_event_to_another_customer() -> None:
    engine = FeatureEngine(SPEC)
    engine.update(batch((1, T, 1.0), (2, T + 1, 2.0)))
    assert only(engine.update(batch((1, T, 1.0), correct=True, customer=2)), "n") == 1
    assert only(engine.update(batch((3, T + 2, 4.0))), "total") == 6.0
    engine.update(batch((3, T + 2, 4.0), correct=True, customer=None))
    assert only(engine.update(batch((4, T + 2, 1.0))), "total") == 3.0


def test_a_repeated_id_is_acknowledged_and_not_applied() -> None:
    engine = FeatureEngine(SPEC)
    matrix = engine.update(batch((1, T, 1.0), (1, T, 1.0), (1, T + 5, 9.0)))
    assert matrix.disposition.tolist() == [Disposition.APPLIED, Disposition.DUPLICATE, Disposition.DUPLICATE]
    assert matrix.applied.tolist() == [True, False, False]
    assert only(engine.update(batch((2, T + 6, 2.0))), "total") == 3.0


def test_beyond_the_horizon_corrections_and_repeats_are_refused() -> None:
    engine = FeatureEngine(SPEC)
    engine.update(batch((1, T, 1.0), (2, T + 7 * DAY + 1, 2.0)))
    assert engine.update(batch((1, T, 5.0), correct=True)).disposition.tolist() == [
        Disposition.REFUSED_BEYOND_HORIZON
    ]
    assert engine.update(batch((1, T, 5.0))).disposition.tolist() == [Disposition.REFUSED_BEYOND_HORIZON]
    # at the horizon itself both still work
    engine = FeatureEngine(SPEC)
    engine.update(batch((1, T, 1.0), (2, T + 7 * DAY, 2.0)))
    assert engine.update(batch((1, T, 5.0))).disposition.tolist() == [Disposition.DUPLICATE]
    assert engine.update(batch((1, T, 5.0), correct=True)).disposition.tolist() == [Disposition.CORRECTED]


def test_a_correction_of_nothing_is_refused() -> None:
    matrix = FeatureEngine(SPEC).update(batch((1, T, 1.0), correct=True))
    assert matrix.disposition.tolist() == [Disposition.REFUSED_NOTHING_TO_CORRECT]
    assert matrix.disposition[0] >= Disposition.REFUSED_LATE


def test_an_outcome_is_visible_from_the_moment_it_is_known() -> None:
    engine = FeatureEngine(SPEC)
    engine.update(batch((1, T, 1.0), (2, T, 1.0)), outcomes((1, True, T + 7 * DAY), (2, False, T + 7 * DAY)))
    assert engine.size().pending_outcomes == 2
    assert only(engine.update(batch((3, T + 7 * DAY - 1, 1.0))), "rate") == 0.0
    assert only(engine.update(batch((4, T + 7 * DAY, 1.0))), "rate") == 0.5
    assert engine.size().pending_outcomes == 0


def test_an_outcome_may_be_revised_and_survives_a_correction() -> None:
    engine = FeatureEngine(SPEC)
    engine.update(batch((1, T, 1.0)), outcomes((1, True, T + 10)))
    engine.update(batch((1, T, 7.0), correct=True))
    engine.update(batch((2, T + 11, 1.0)))
    engine.update(batch((1, T, 8.0), correct=True))
    assert only(engine.update(batch((3, T + 7 * DAY, 1.0))), "rate") == 1.0
    engine.update(batch((4, T + 7 * DAY, 1.0)), outcomes((1, False, T)))
    assert only(engine.update(batch((5, T + 7 * DAY, 1.0))), "rate") == 0.0


def test_an_outcome_of_an_unknown_event_is_counted() -> None:
    engine = FeatureEngine(SPEC)
    engine.update(batch((1, T, 1.0)), outcomes((77, True, T)))
    assert engine.size().unmatched_outcomes == 1


def test_outcomes_given_out_of_order_apply_in_time_order() -> None:
    engine = FeatureEngine(SPEC)
    engine.update(batch((1, T, 1.0)), outcomes((1, False, T + 20), (1, True, T + 10)))
    engine.update(batch((2, T + 5, 1.0)), outcomes((1, True, T + 15)))
    assert only(engine.update(batch((3, T + 7 * DAY, 1.0))), "rate") == 0.0


def test_a_bad_row_does_not_lose_the_good_ones() -> None:
    rows = batch((1, T, 1.0), (2, T, math.nan), (3, T + 1, 2.0))
    matrix = FeatureEngine(SPEC).update(rows)
    assert matrix.disposition.tolist() == [
        Disposition.APPLIED,
        Disposition.REFUSED_INVALID,
        Disposition.APPLIED,
    ]
    assert matrix.refusal.tolist() == [0, RowCode.AMOUNT_NOT_A_NUMBER, 0]
    assert matrix.column("total")[2] == 3.0


def test_an_empty_batch_and_a_missing_entity() -> None:
    engine = FeatureEngine(SPEC)
    assert engine.update(batch((1, T, 1.0)).take(slice(0, 0))).values.shape == (0, 3)
    assert engine.update(batch((1, T, 1.0), customer=None)).values.tolist() == [[0.0, 0.0, 0.0]]


def test_a_missing_column_changes_nothing() -> None:
    spec = FeatureSpec((WindowFeature("s", "customer", Aggregation.SUM, DAY, "score", filter="odd"),))
    engine = FeatureEngine(spec)
    with pytest.raises(SchemaError, match="score"):
        engine.update(batch((1, T, 1.0)), filters={"odd": np.array([True])})
    with pytest.raises(SchemaError, match="odd"):
        engine.update(replace(batch((1, T, 1.0)), numbers={"score": np.ones(1)}))
    assert engine.size().records == 0


def test_columns_may_be_strided_or_read_only() -> None:
    spec = parse_spec(
        '[[filter]]\nname = "some"\npresent = ["card"]\nhours = [0, 22]\nzone = "Europe/Madrid"\n'
        '[[feature]]\nname = "n"\nentity = "customer"\naggregation = "sum"\nvalue = "amount"\n'
        'window = "1d"\nfilter = "some"\n'
    )
    rows = np.arange(60)
    twice = transaction_batch(
        event_id=rows,
        time_us=T + rows * HOUR // 8,
        amount=rows * 1.5,
        channel="card",
        entities={"customer": rows // 2 % 5 + 1, "card": rows // 2 % 3},
    )
    strided = twice.take(slice(None, None, 2))
    solid = twice.take(np.arange(0, 60, 2))
    for column in (strided.event_id, strided.time_us, strided.amount, strided.channel):
        column.flags.writeable = False
    expected = FeatureEngine(spec).update(solid).values
    assert 0 < np.count_nonzero(expected) < 30
    np.testing.assert_array_equal(FeatureEngine(spec).update(strided).values, expected)


def test_text_ids_cannot_be_a_numeric_feature() -> None:
    engine = FeatureEngine(parse_spec('[[feature]]\nname = "id"\nfield = "event_id"\n'))
    texts = transaction_batch(event_id=["a"], time_us=[T], amount=[1.0], channel="card", entities={})
    with pytest.raises(SchemaError, match="texts"):
        engine.update(texts)
    large = transaction_batch(event_id=[2**53 + 1], time_us=[T], amount=[1.0], channel="card", entities={})
    with pytest.raises(SchemaError, match="2\\^53"):
        engine.update(large)


def test_calendar_features() -> None:
    spec = parse_spec(
        '[[feature]]\nname = "w"\ncalendar = "weekend"\n[[feature]]\nname = "n"\ncalendar = "night"\nlast_hour = 6\n'
        '[[feature]]\nname = "h"\ncalendar = "hour"\nutc_offset = "-5h"\n'
        '[[feature]]\nname = "d"\ncalendar = "weekday"\n'
    )
    times = np.array(["2018-04-01T06:59:59", "2018-04-02T07:00:00", "2018-04-07T00:30:00"], "datetime64[s]")
    rows = transaction_batch(event_id=[1, 2, 3], time_us=times, amount=[1, 1, 1], channel="card", entities={})
    values = FeatureEngine(spec).update(rows).values
    assert values.tolist() == [[1, 1, 1, 6], [0, 0, 2, 0], [1, 1, 19, 5]]


def deep_stream(events: int, seed: int) -> tuple[TransactionBatch, OutcomeBatch]:
    """Two hot customers, a third of the rows late, some corrected, all with an outcome."""
    random = np.random.default_rng(seed)
    times = T + np.cumsum(random.integers(0, 3, events)) * SECOND
    times -= np.where(random.random(events) < 0.3, random.integers(0, 1500, events), 0) * SECOND
    ids = np.arange(events)
    correction = random.random(events) < 0.15
    correction[: events // 10] = False
    for i in np.flatnonzero(correction):
        ids[i] = ids[random.integers(max(0, i - 2000), i)]
    rows = transaction_batch(
        event_id=ids,
        time_us=times,
        amount=random.lognormal(3, 2, events),
        channel="card",
        entities={"customer": random.integers(1, 3, events), "terminal": random.integers(1, 60, events)},
        correction=correction,
    )
    fraud = OutcomeBatch(ids.copy(), random.random(events) < 0.2, times + 600 * SECOND)
    return rows, fraud


DEEP = FeatureSpec(
    (
        WindowFeature("n", "customer", Aggregation.COUNT, 2000 * SECOND),
        WindowFeature("v", "customer", Aggregation.VARIANCE, 2000 * SECOND, "amount", exclude_current=True),
        WindowFeature("m", "customer", Aggregation.MEAN, 50 * SECOND, "amount"),
        WindowFeature("d", "customer", Aggregation.DISTINCT, 2000 * SECOND, "terminal"),
        WindowFeature("r", "customer", Aggregation.RATE, 2000 * SECOND, delay_us=600 * SECOND),
    ),
    lateness_us=1500 * SECOND,
    correction_us=7 * DAY,
)


def test_deep_trees_agree_with_a_scan_of_everything() -> None:
    """Thousands of events an entity: leaf and inner splits, insertions in the middle, removals, evictions."""
    events = 9000
    rows, fraud = deep_stream(events, 5)
    engine = FeatureEngine(DEEP)
    time = np.zeros(events, np.int64)
    customer = np.zeros(events, np.uint64)
    amount = np.zeros(events)
    terminal = np.zeros(events, np.uint64)
    flagged = np.zeros(events, bool)
    live = np.zeros(events, bool)
    watermark, done, checked = 0, 0, 0
    order = np.argsort(fraud.known_at_us, kind="stable")
    matrix = engine.update(rows, fraud)
    for i in range(events):
        if not matrix.applied[i]:
            continue
        place = int(rows.event_id[i])  # rows are numbered by their first appearance
        watermark = max(watermark, int(rows.time_us[i]))
        while done < events and fraud.known_at_us[order[done]] <= watermark:
            target = int(fraud.event_id[order[done]])
            if live[target]:
                flagged[target] = fraud.fraud[order[done]]
            done += 1
        time[place], customer[place] = rows.time_us[i], rows.entities["customer"][i]
        amount[place], terminal[place], live[place] = rows.amount[i], rows.entities["terminal"][i], True
        if i % 3:
            continue
        checked += 1
        t = time[place]
        if t - 2600 * SECOND < watermark - (2600 + 1500) * SECOND:
            assert np.isnan(matrix.column("r")[i])
            continue
        same = (
            live & (customer == customer[place]) & ((time < t) | ((time == t) & (np.arange(events) <= place)))
        )
        wide = same & (time > t - 2000 * SECOND)
        assert matrix.column("n")[i] == wide.sum()
        assert matrix.column("d")[i] == len(np.unique(terminal[wide]))
        assert matrix.column("m")[i] == pytest.approx(
            amount[same & (time > t - 50 * SECOND)].mean(), rel=1e-12
        )
        wide[place] = False
        if wide.sum() > 1:
            assert matrix.column("v")[i] == pytest.approx(amount[wide].var(ddof=1), rel=1e-11)
        matured = (
            live & (customer == customer[place]) & (time <= t - 600 * SECOND) & (time > t - 2600 * SECOND)
        )
        assert matrix.column("r")[i] == (flagged[matured].mean() if matured.any() else 0.0)
    assert checked > 2000
    assert (matrix.disposition == Disposition.CORRECTED).sum() > 500


def test_deep_trees_do_not_depend_on_batches_or_a_restart() -> None:
    rows, fraud = deep_stream(6000, 6)
    whole = FeatureEngine(DEEP).update(rows, fraud).values
    engine = FeatureEngine(DEEP)
    parts = [engine.update(rows.take(slice(0, 1)), fraud).values]
    for begin in range(1, 6000, 701):
        if begin == 2804:
            restored = FeatureEngine(DEEP)
            restored.restore(engine.state())
            engine = restored
        parts.append(engine.update(rows.take(slice(begin, begin + 701))).values)
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_a_state_of_another_spec_is_refused() -> None:
    with pytest.raises(ValueError, match="another feature spec"):
        FeatureEngine(SPEC).restore(FeatureEngine(DEEP).state())
    with pytest.raises(ValueError, match="another feature spec"):
        FeatureEngine(SPEC).restore(FeatureEngine(SPEC, shard=1, shards=2).state())
    with pytest.raises(ValueError, match="does not exist"):
        FeatureEngine(SPEC, shard=2, shards=2)


def test_idle_entities_are_freed_and_their_room_is_used_again() -> None:
    spec = FeatureSpec(
        (WindowFeature("n", "customer", Aggregation.COUNT, HOUR),), lateness_us=0, correction_us=HOUR
    )
    engine = FeatureEngine(spec)
    sizes = []
    for day in range(6):
        count = 20_000
        rows = transaction_batch(
            event_id=np.arange(count) + day * count,
            time_us=T + day * DAY + np.arange(count),
            amount=np.ones(count),
            channel="card",
            entities={"customer": np.arange(count) + day * count},
        )
        assert (engine.update(rows).column("n") == 1).all()
        sizes.append(engine.size())
    assert sizes[-1].entities["customer"] <= 40_000
    assert sizes[-1].records <= 40_000
    assert sizes[-1].nbytes <= 1.3 * sizes[1].nbytes
    assert engine.sweep(T + 9 * DAY) > 0
    last = engine.size()
    assert (last.entities["customer"], last.events["customer"], last.records) == (0, 0, 0)
    again = engine.update(batch((1, T + 9 * DAY - 1, 1.0)))
    assert again.disposition.tolist() == [Disposition.REFUSED_LATE]  # the sweep declared the time
    assert only(engine.update(batch((1, T + 9 * DAY, 1.0))), "n") == 1

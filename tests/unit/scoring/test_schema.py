"""Columns, keys and row codes of the transaction schema."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.hashing import siphash_words
from scoring.row_codes import RowCode, validate
from scoring.schema import (
    Channel,
    OutcomeBatch,
    SchemaError,
    TransactionBatch,
    channel_codes,
    entity_keys,
    transaction_batch,
)

PINNED = [1634251727820465368, 12045697504251921591, 0]
NOW = 1_700_000_000_000_000


def batch(**changes: object) -> TransactionBatch:
    columns: dict[str, object] = {
        "event_id": np.arange(3),
        "time_us": [NOW, NOW + 1, NOW + 2],
        "amount": [1.0, 2.0, 3.0],
        "channel": "card",
        "entities": {"customer": [1, 2, 3]},
    }
    return transaction_batch(**(columns | changes))  # type: ignore[arg-type]


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.integers(-(2**63) + 1, 2**63 - 2), unique=True))
def test_integers_get_distinct_keys_and_none_is_missing(values: list[int]) -> None:
    keys = entity_keys(np.array(values, np.int64))
    assert len(set(keys.tolist())) == len(values)
    assert 0 not in keys
    assert entity_keys([*values, None]).tolist() == [*keys.tolist(), 0]


@settings(deadline=None)
@given(st.lists(st.text(max_size=40).filter(lambda text: not text.endswith("\0")), unique=True))
def test_texts_get_the_same_keys_in_any_company(values: list[str]) -> None:
    together = entity_keys(np.array(values, object))
    assert len(set(together.tolist())) == len(values)
    for value, key in zip(values, together.tolist(), strict=True):
        assert entity_keys([value])[0] == key
        assert (key == 0) == (value == "")


def test_siphash_matches_the_published_vectors() -> None:
    """Appendix A of the SipHash paper and its reference implementation: key 00..0f, input 00 01 02 ..."""
    key = np.frombuffer(bytes(range(16)), "<u8").astype(np.uint64)
    vectors = {0: 0x726FDB47DD0E0E31, 4: 0xCF2794E0277187B7, 8: 0x93F5F5799A932462}
    for length, expected in vectors.items():
        words = np.frombuffer(bytes(range(length)), "<u4").astype(np.uint32).reshape(1, -1)
        assert siphash_words(words, key)[0] == expected


def test_text_keys_never_change_between_versions() -> None:
    assert entity_keys(["DE89370400440532013000", "grün", None]).tolist() == PINNED


def test_another_hash_key_gives_other_keys() -> None:
    assert entity_keys(["a"], hash_key=b"0123456789abcdef")[0] != entity_keys(["a"])[0]
    with pytest.raises(ValueError, match="16"):
        entity_keys(["a"], hash_key=b"short")


@pytest.mark.parametrize(
    "values", [[1.5], [float("inf")], ["a", 1], [b"bytes"], ["x" * 257], [2**70], [True, "a"], [[1], [2]]]
)
def test_what_is_neither_integer_nor_text_is_refused(values: list[object]) -> None:
    with pytest.raises(SchemaError, match="customer"):
        entity_keys(np.array(values, object) if len(values) == 1 else values, column="customer")


def test_nan_is_a_missing_integer() -> None:
    assert entity_keys(np.array([1.0, np.nan])).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"amount": [1.0, float("nan"), 1.0]}, RowCode.AMOUNT_NOT_A_NUMBER),
        ({"amount": [1.0, float("inf"), 1.0]}, RowCode.AMOUNT_INFINITE),
        ({"amount": [1.0, -float("inf"), 1.0]}, RowCode.AMOUNT_INFINITE),
        ({"amount": [1.0, -0.01, 1.0]}, RowCode.AMOUNT_NEGATIVE),
        ({"channel": ["card", "pigeon", "login"]}, RowCode.UNKNOWN_CHANNEL),
        ({"channel": np.array([5, 99, 1])}, RowCode.UNKNOWN_CHANNEL),
        ({"time_us": [NOW, -1, NOW]}, RowCode.TIME_OUT_OF_RANGE),
        ({"time_us": [NOW, 2**62, NOW]}, RowCode.TIME_OUT_OF_RANGE),
        ({"event_id": ["a", "", "c"]}, RowCode.EVENT_ID_MISSING),
        ({"event_id": ["a", "\0\0", "c"]}, RowCode.EVENT_ID_MISSING),
        ({"event_id": np.array([1, np.iinfo(np.int64).min, 3])}, RowCode.EVENT_ID_MISSING),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_not(changes: dict[str, object], code: RowCode) -> None:
    assert validate(batch(**changes)).tolist() == [0, code, 0]
    assert code.field
    assert " " not in code.text


def test_a_good_batch_is_acceptable_and_zero_is_an_amount() -> None:
    assert not validate(batch(amount=[0.0, 1.0, 1e12])).any()


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"amount": [1.0]}, "amount"),
        ({"amount": ["x", "y", "z"]}, "amount"),
        ({"time_us": ["2020", "2021", "2022"]}, "time_us"),
        ({"time_us": [0.5, 1.5, 2.5]}, "time_us"),
        ({"entities": {"spouse": [1, 2, 3]}}, "spouse"),
        ({"entities": {"customer": [1, 2]}}, "customer"),
        ({"numbers": {"score": [1.0]}}, "score"),
        ({"texts": {"payee": ["a"]}}, "payee"),
        ({"event_id": [1, 2]}, "event_id"),
        ({"correction": [True]}, "correction"),
    ],
)
def test_a_bad_column_is_named(changes: dict[str, object], column: str) -> None:
    with pytest.raises(SchemaError) as refused:
        batch(**changes)
    assert refused.value.column == column


def test_datetimes_are_taken_as_utc() -> None:
    times = np.array(["2018-04-01T00:00:31", "1970-01-01", "1970-01-02"], "datetime64[ms]")
    assert batch(time_us=times).time_us.tolist() == [1_522_540_831_000_000, 0, 86_400_000_000]


def test_channels_by_name_code_and_constant() -> None:
    assert channel_codes("cross-border", 2).tolist() == [6, 6]
    assert channel_codes(Channel.LOGIN, 1).tolist() == [1]
    assert channel_codes(["card", "transfer", "?"], 3).tolist() == [5, 2, 0]


def test_take_keeps_rows_together() -> None:
    part = batch(texts={"payee": ["a", None, "c"]}, correction=[False, True, False]).take(np.array([1, 0]))
    assert part.event_id.tolist() == [1, 0]
    assert part.texts["payee"].tolist() == [None, "a"]
    assert part.correction is not None
    assert part.correction.tolist() == [True, False]


def test_outcome_columns_are_checked() -> None:
    with pytest.raises(SchemaError):
        OutcomeBatch(np.arange(2), np.array([0, 1]), np.arange(2))  # type: ignore[arg-type]

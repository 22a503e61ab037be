"""Mappings: what a good one means and which mistakes are named."""

from pathlib import Path

import numpy as np
import pytest

from member_node.streams.mapping import MappingError, load_mapping, parse_mapping

ROOT = Path(__file__).parents[3]
TEXT = """
[columns]
event_id = "ID"
time = "AT"
amount = "EUR"
customer = "WHO"
terminal = "WHERE"
[types]
customer = "integer"
[constants]
channel = "card"
[time]
zone = "Europe/Berlin"
[labels]
column = "FRAUD"
delay_days = 7
[indicators]
terminal = "terminal"
[directory]
dataset = "terminals"
entity = "terminal"
"""
HOUR_US = 3_600_000_000


@pytest.mark.parametrize("name", ["handbook", "default"])
def test_the_shipped_mappings_load(name):
    mapping = load_mapping(ROOT / "sandbox" / "mappings" / f"{name}.toml")
    assert mapping.name == name
    assert mapping.directory_dataset == "terminals"
    assert mapping.label_delay_days == 7
    assert mapping.label_delay_us == 7 * 24 * HOUR_US
    assert mapping.evaluation["train_days"] >= 7


def test_days_and_hours_are_those_of_the_zone():
    mapping = parse_mapping(TEXT, name="berlin")
    # 2018-03-25: clocks go from 02:00 to 03:00 at 01:00 UTC.
    utc = np.array(
        ["2018-03-24T22:59:59", "2018-03-24T23:00:00", "2018-03-25T00:59:59", "2018-03-25T01:00:00"],
        dtype="datetime64[us]",
    ).astype(np.int64)
    day = np.datetime64("2018-03-25").astype("datetime64[D]").astype(int)
    assert mapping.day_of(utc).tolist() == [day - 1, day, day, day]
    assert (mapping.local_us(utc) // HOUR_US % 24).tolist() == [23, 0, 1, 3]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('time = "AT"', "", r"\[columns\] needs time"),
        ('customer = "WHO"', 'custmer = "WHO"', "unknown keys custmer"),
        ('channel = "card"', "", "either"),
        ('channel = "card"', 'channel = "pigeon"', "'pigeon' must be one of"),
        ('zone = "Europe/Berlin"', 'zone = "Europe/Atlantis"', "is unknown"),
        ('zone = "Europe/Berlin"', 'unit = "weeks"', "must be one of s, ms, us"),
        ("delay_days = 7", 'delay_days = "7"', "delay_days = 0 to 366"),
        ("delay_days = 7", "delay_days = -1", "delay_days = 0 to 366"),
        ('terminal = "terminal"\n[dir', 'terminal = "shop"\n[dir', "must be one of"),
        ('terminal = "terminal"\n[dir', 'payee = "iban"\n[dir', "not a mapped entity"),
        ('terminal = "terminal"\n[dir', 'terminal = "terminal"\ncustomer = "terminal"\n[dir', "two entities"),
        ('entity = "terminal"', 'entity = "payee"', "mapped entity"),
        ('customer = "integer"', 'customer = "float"', "must be one of integer, text"),
        ('customer = "integer"', 'payee = "integer"', "not mapped"),
        ("[columns]", "[colums]", "unknown tables colums"),
        ('event_id = "ID"', "event_id = 3", "must be a text"),
        ("[columns]", "[columns", "not TOML"),
    ],
)
def test_mistakes_are_named(old, new, words):
    assert old in TEXT
    with pytest.raises(MappingError, match=words):
        parse_mapping(TEXT.replace(old, new, 1), name="x")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MappingError, match=r"absent\.toml"):
        load_mapping(tmp_path / "absent.toml")


def test_numbers_have_free_names():
    start = '[columns]\nevent_id = "a"\ntime = "b"\namount = "c"\n[constants]\nchannel = "card"\n[numbers]\n'
    assert parse_mapping(start + 'latitude = "LAT"', name="x").numbers == {"latitude": "LAT"}
    for name in ("amount", "customer", "time", "correction", "class", '"two words"'):
        with pytest.raises(MappingError, match=r"\[numbers\] .* must be an identifier"):
            parse_mapping(f'{start}{name} = "LAT"', name="x")

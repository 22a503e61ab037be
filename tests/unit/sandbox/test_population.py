"""The synthetic population: well formed, deterministic, and with fraud that crosses banks."""

import time

import phonenumbers
import polars as pl
import pytest
import schwifty
from polars.testing import assert_frame_equal

from sandbox.population import FIRST_DAY, SCHEMA, generate, save, simulate


@pytest.fixture(scope="module")
def small():
    return simulate(3, 3, days=30, customers_per_bank=150, terminals=120)


@pytest.fixture(scope="module")
def events(small):
    return pl.concat(small.banks)


def test_same_seed_same_events():
    first, second = (generate(5, 2, days=6, customers_per_bank=40, terminals=30) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert_frame_equal(one, other)


def test_another_seed_gives_other_events():
    one, other = (generate(seed, 1, days=6, customers_per_bank=40, terminals=30)[0] for seed in (1, 2))
    assert not one.equals(other)


def test_columns_and_order(small):
    for number, bank in enumerate(small.banks):
        assert dict(bank.schema) == SCHEMA
        assert bank["bank"].unique().to_list() == [number]
        assert bank["time"].is_sorted()
    ids = pl.concat(small.banks)["event_id"]
    assert ids.n_unique() == len(ids)


def test_times_stay_within_the_days(events):
    assert events["time"].min().date() >= FIRST_DAY
    assert (events["time"].max().date() - FIRST_DAY).days < 30


def test_more_happens_by_day_than_by_night(events):
    hour = events["time"].dt.hour()
    assert ((hour >= 10) & (hour < 18)).sum() > 4 * ((hour >= 0) & (hour < 6)).sum()


def test_accounts_are_valid_ibans_of_banks_that_do_not_exist(events):
    for column in ("account", "payee"):
        for text in events[column].drop_nulls().unique().sort()[:300]:
            iban = schwifty.IBAN(text)
            assert iban.bank_code.startswith("9")


def test_phones_are_valid_e164(events):
    for text in events["phone"].drop_nulls().unique().sort()[:300]:
        number = phonenumbers.parse(text)
        assert phonenumbers.is_valid_number(number)
        assert phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164) == text


def test_addresses_are_of_nobody(events):
    assert events["ip"].drop_nulls().str.contains(r"^198\.1[89]\.").all()
    assert events["email"].drop_nulls().str.ends_with(".example").all()


def test_identifiers_are_not_shared_between_customers(events):
    for column in ("account", "card"):
        owners = events.drop_nulls(column).group_by(column).agg(pl.col("customer").n_unique())
        assert owners["customer"].max() == 1


def test_fields_fit_the_channel(events):
    at_terminal = events["channel"].is_in(["card", "cash_withdrawal"])
    assert (events["terminal"].is_not_null() == at_terminal).all()
    assert (events["device"].is_null() == at_terminal).all()
    to_payee = events["channel"].is_in(["transfer", "payment", "cross_border"])
    assert (events["payee"].is_not_null() == to_payee).all()
    assert (events.filter(pl.col("channel") == "login")["amount"] == 0).all()
    assert (events.filter(pl.col("channel") != "login")["amount"] > 0).all()


def test_the_directory_is_sorted_and_complete(small, events):
    assert small.terminals == sorted(set(small.terminals))
    assert set(events["terminal"].drop_nulls()) <= set(small.terminals)
    assert len(small.terminals) == 120


@pytest.mark.parametrize(
    ("scenario", "entity"), [("terminal", "terminal"), ("mule", "payee"), ("takeover", "device")]
)
def test_fraud_crosses_banks(events, scenario, entity):
    frauds = events.filter(pl.col("scenario") == scenario)
    banks = frauds.group_by(entity).agg(pl.col("bank").n_unique(), pl.col("customer").n_unique())
    assert banks["bank"].max() >= 2
    assert banks["customer"].max() >= 3


def test_fraud_is_what_has_a_scenario(events):
    assert ((events["fraud"] == 1) == (events["scenario"] != "")).all()


def test_the_default_size_and_base_rate():
    began = time.perf_counter()
    events = pl.concat(generate(1, 4))
    assert time.perf_counter() - began < 5
    assert 150_000 <= events.height <= 200_000
    assert 0.005 <= events["fraud"].mean() <= 0.012
    assert events["terminal"].n_unique() > 1_400


def test_saved_files_hold_the_same(small, events, tmp_path):
    path, directory = save(small, tmp_path / "new")
    assert_frame_equal(pl.read_parquet(path), events.sort("event_id"))
    assert directory.read_text().splitlines() == small.terminals


@pytest.mark.parametrize("name", ["days", "customers_per_bank", "terminals"])
def test_nonsense_sizes_are_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        generate(1, 2, **{name: 0})


def test_a_population_needs_members():
    with pytest.raises(ValueError, match="members"):
        generate(1, 0)

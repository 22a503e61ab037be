"""A day's share tells what was out of reach from what contradicts the log: only the second needs a person."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest

from crypto.merkle import MerkleTree
from governance.log.leaves import entry_leaf_hash
from member_node.service.contribution import Finding
from member_node.service.sharing import share_day
from member_node.streams.mapping import parse_mapping

MAPPING = """
[columns]
event_id = "id"
time = "at"
amount = "amount"
customer = "customer"
[constants]
channel = "card"
currency = "EUR"
[time]
zone = "UTC"
"""


@pytest.fixture
def share(world):
    """Shares of bank-b, after bank-a has contributed one label that bank-b has not mirrored."""
    world.banks["bank-a"].contribution.contribute([Finding("terminal", "T1", "x", 2, 1, 2)], 10_000)
    mapping = parse_mapping(MAPPING, name="unit", source="unit.toml")
    parts = SimpleNamespace(party="bank-b", mirror=world.banks["bank-b"].index)
    return lambda: share_day(parts, mapping, None, 20_000)


def test_a_share_that_goes_well_says_nothing(share):
    report = share()
    assert (report.deltas, report.reason, report.distrust) == (1, "", "")


def test_an_outage_is_a_reason_and_no_distrust(world, share):
    world.banks["bank-b"].port.down = True
    report = share()
    assert "it is down" in report.reason
    assert report.distrust == ""


@pytest.mark.parametrize(
    ("call", "change", "text"),
    [
        ("deltas", lambda page: msgspec.structs.replace(page, after=7), "another place in the feed"),
        ("deltas", lambda page: msgspec.structs.replace(page, last=0, deltas=[]), "withholds 1 deltas"),
        (
            "deltas",
            lambda page: msgspec.structs.replace(
                page, checkpoint=msgspec.structs.replace(page.checkpoint, note="nonsense")
            ),
            "unit.subrosa.example/log",
        ),
    ],
)
def test_what_contradicts_the_log_is_distrust_and_no_outage(world, share, call, change, text):
    world.chair.distort[call] = change
    report = share()
    assert text in report.distrust
    assert report.reason == ""


def test_a_forked_log_is_distrust_even_as_a_problem(world, share):
    share()
    chair = world.chair
    chair.entries[0] = (bytes(32), chair.entries[0][1])
    chair.tree = MerkleTree(entry_leaf_hash(salt, body) for salt, body in chair.entries)
    world.clock.now += 200
    report = share()
    assert "two roots" in report.distrust
    assert report.reason == ""


def test_a_broken_promise_is_distrust(world, share):
    bank = world.banks["bank-b"]
    bank.contribution.contribute([Finding("terminal", "T2", "x", 2, 1, 2)], 10_000)
    world.chair.deltas.pop()
    world.clock.now += 61
    assert "not merged as promised" in share().distrust

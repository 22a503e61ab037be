"""From seed to data frames: one per bank, columns named as in the transaction schema."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from sandbox.population import identifiers
from sandbox.population.activity import NONE, Events, honest_events
from sandbox.population.frauds import SCENARIOS, TAKEOVER, Campaigns, commit
from sandbox.population.world import CARD, CASH, CHANNELS, World, build_world

FIRST_DAY = dt.date(2026, 1, 5)
DEFAULT_DAYS = 50
DEFAULT_CUSTOMERS_PER_BANK = 600
DEFAULT_TERMINALS = 1_500
EVENTS_PER_DAY = 1.5
_ROAMING = 0.3  # of digital events not from the customer's home address
_NEW_CONTACT = 0.5  # of takeovers that use the fraudster's own phone and mail address

NOTHING = np.array([None], dtype=object)

SCHEMA: dict[str, pl.DataType] = {
    "event_id": pl.Int64(),
    "time": pl.Datetime("us"),
    "bank": pl.Int64(),
    "channel": pl.String(),
    "amount": pl.Float64(),
    "currency": pl.String(),
    "customer": pl.String(),
    "account": pl.String(),
    "card": pl.String(),
    "payee": pl.String(),
    "device": pl.String(),
    "ip": pl.String(),
    "phone": pl.String(),
    "email": pl.String(),
    "terminal": pl.String(),
    "merchant": pl.String(),
    "fraud": pl.Int8(),
    "scenario": pl.String(),
}


@dataclass(frozen=True)
class Population:
    """``banks``: one frame a bank, by time. ``terminals``: the public directory, sorted, unused ones included.

    ``campaigns``: what was compromised when (truth that no bank has).
    """

    banks: list[pl.DataFrame]
    terminals: list[str]
    campaigns: Campaigns


def generate(
    seed: int,
    members: int,
    *,
    days: int = DEFAULT_DAYS,
    customers_per_bank: int = DEFAULT_CUSTOMERS_PER_BANK,
    terminals: int = DEFAULT_TERMINALS,
) -> list[pl.DataFrame]:
    """One frame a bank with the columns of ``SCHEMA``, by time; the same arguments give the same frames."""
    return simulate(
        seed, members, days=days, customers_per_bank=customers_per_bank, terminals=terminals
    ).banks


def simulate(
    seed: int,
    members: int,
    *,
    days: int = DEFAULT_DAYS,
    customers_per_bank: int = DEFAULT_CUSTOMERS_PER_BANK,
    terminals: int = DEFAULT_TERMINALS,
) -> Population:
    """As :func:`generate`, with the public directory and the frauds' plan. Times are UTC."""
    for name, value in (
        ("members", members),
        ("days", days),
        ("customers_per_bank", customers_per_bank),
        ("terminals", terminals),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    random = np.random.default_rng(seed)
    world = build_world(
        random,
        members=members,
        customers_per_bank=customers_per_bank,
        terminals=terminals,
        events_per_day=EVENTS_PER_DAY,
    )
    honest = honest_events(random, world, days=days, first_weekday=FIRST_DAY.weekday())
    events, campaigns = commit(random, world, honest, days)
    frame = _frame(random, world, events, campaigns)
    banks = [frame.filter(pl.col("bank") == bank) for bank in range(members)]
    return Population(banks=banks, terminals=list(world.terminal), campaigns=campaigns)


def save(population: Population, directory: Path) -> tuple[Path, Path]:
    """Write ``events.parquet`` (all banks, by time) and ``terminals.txt`` (one id a line); their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    events, terminals = directory / "events.parquet", directory / "terminals.txt"
    pl.concat(population.banks).sort("event_id").write_parquet(events, compression="zstd")
    terminals.write_text("".join(f"{t}\n" for t in population.terminals), encoding="utf-8")
    return events, terminals


def _frame(random: np.random.Generator, world: World, events: Events, plan: Campaigns) -> pl.DataFrame:
    n = len(events)
    millisecond = events.second * 1000 + random.integers(0, 1000, n)
    order = np.lexsort((events.customer, millisecond))
    events = Events(**{name: getattr(events, name)[order] for name in Events.__annotations__})
    at_terminal = (events.channel == CARD) | (events.channel == CASH)
    mules = len(plan.mule_from)
    extra_accounts = identifiers.ibans(random, 200 + random.integers(0, 40, mules + plan.drops))
    payees = np.append(np.append(world.payees, extra_accounts), NOTHING)  # NONE = -1 is the last
    terminals = np.append(world.terminal, NOTHING)
    merchants = np.append(world.merchant, NOTHING)
    midnight = np.datetime64(FIRST_DAY, "us")
    device, ip, phone, email = _digital(random, world, events, plan.devices)
    columns: dict[str, np.ndarray[tuple[int], np.dtype[np.generic]]] = {
        "event_id": np.arange(n),
        "time": midnight + millisecond[order] * np.timedelta64(1000, "us"),
        "bank": world.bank[events.customer],
        "channel": np.array(CHANNELS, object)[events.channel],
        "amount": events.amount,
        "currency": np.full(n, "EUR", object),  # amounts as booked
        "customer": world.customer[events.customer],
        "account": world.account[events.customer],
        "card": np.where(at_terminal, world.card[events.customer], NOTHING),
        "payee": payees[events.payee],
        "device": device,
        "ip": ip,
        "phone": phone,
        "email": email,
        "terminal": terminals[events.terminal],
        "merchant": merchants[events.terminal],
        "fraud": events.fraud,
        "scenario": np.array(SCENARIOS, object)[events.scenario],
    }
    return pl.DataFrame(
        # polars takes objects from a list only
        [
            pl.Series(name, values.tolist() if values.dtype == object else values, dtype=SCHEMA[name])
            for name, values in columns.items()
        ],
    )


def _digital(
    random: np.random.Generator, world: World, events: Events, devices: int
) -> tuple[np.ndarray[tuple[int], np.dtype[np.object_]], ...]:
    """Device, address, phone and mail of each event; nothing at a terminal, the fraudster's in a takeover."""
    n = len(events)
    tool = np.maximum(events.device, 0)
    theirs = np.maximum(tool - 2, 0)
    stranger = tool >= 2
    extra = identifiers.devices(random, devices)
    extra_ip = identifiers.addresses(random, devices)
    extra_phone = identifiers.phones(random, devices)
    mailboxes = identifiers.numbered("throwaway", max(1, devices // 3), 2)[
        random.integers(0, max(1, devices // 3), devices)
    ]
    extra_email = identifiers.emails(identifiers.numbered("box", devices, 4), mailboxes + ".example")
    device = np.where(stranger, extra[theirs], world.devices[events.customer, np.minimum(tool, 1)])
    roaming = identifiers.addresses(random, n)
    own_ip = np.where(random.random(n) < _ROAMING, roaming, world.address[events.customer])
    new_contact = (events.scenario == TAKEOVER) & (random.random(n) < _NEW_CONTACT)
    answers = (
        device,
        np.where(stranger, extra_ip[theirs], own_ip),
        np.where(new_contact, extra_phone[theirs], world.phone[events.customer]),
        np.where(new_contact, extra_email[theirs], world.email[events.customer]),
    )
    return tuple(np.where(events.device == NONE, NOTHING, each) for each in answers)

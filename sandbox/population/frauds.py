"""What fraudsters do. Each scenario crosses banks unless it says otherwise.

1 terminal: a terminal is compromised for weeks; most payments there are fraud (as in the handbook's scenario 2).
2 mule: an account is paid for days to weeks by deceived customers of several banks.
3 takeover: one device logs into accounts of several banks and empties them to mule or drop accounts.
4 stolen_card: one customer's card details are used for some days, amounts far above the usual.
5 outlier: single card payments far above what anybody spends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sandbox.population.activity import NONE, SECONDS_A_DAY, Events, times_of_day
from sandbox.population.world import CARD, CROSS_BORDER, LOGIN, TRANSFER, Ints, World

SCENARIOS = ("", "terminal", "mule", "takeover", "stolen_card", "outlier")
TERMINAL, MULE, TAKEOVER, STOLEN_CARD, OUTLIER = range(1, len(SCENARIOS))
_TERMINAL_SHARE_A_DAY = 0.0005  # of all terminals, newly compromised
_TERMINAL_FRAUD = 0.9  # of the payments and withdrawals at a compromised terminal
_MULES_A_DAY = 0.0003  # new ones a day and customer
_DEVICES_A_DAY = 0.00015
_STOLEN_CARDS_A_DAY = 0.0004
_OUTLIER_SHARE = 0.0004  # of card payments
_DROP_ACCOUNTS = 0.3  # of takeovers paid to an account never used again


@dataclass(frozen=True)
class Campaigns:
    """What is compromised when; days are counted from the first, ends exclusive.

    ``terminal*``: index of the terminal, first and last day. ``mules``: number of mule accounts, whose payee indices
    start at ``first_mule``; ``drops`` follow them. ``devices``: number of fraudsters' devices.
    """

    terminal: Ints
    terminal_from: Ints
    terminal_until: Ints
    first_mule: int
    mule_from: Ints
    mule_until: Ints
    drops: int
    devices: int


def commit(random: np.random.Generator, world: World, honest: Events, days: int) -> tuple[Events, Campaigns]:
    """Honest events with the frauds marked in them or added to them (not sorted), and the plan behind them."""
    customers = len(world.bank)
    events, terminal, first, last = _compromise_terminals(random, world, honest, days)
    events = _steal_cards(random, world, events, days)
    events = _outliers(random, events)
    mules = max(2, round(customers * _MULES_A_DAY * days))
    mule_from = random.integers(-8, days, mules)
    mule_until = mule_from + random.integers(8, 25, mules)
    base = len(world.payees)
    paid = _pay_mules(random, world, base, mule_from, mule_until, days)
    devices = max(2, round(customers * _DEVICES_A_DAY * days))
    taken, drops = _take_over(random, world, base, mule_from, mule_until, devices, days)
    plan = Campaigns(terminal, first, last, base, mule_from, mule_until, drops, devices)
    return Events.joined([events, paid, taken]), plan


def _compromise_terminals(
    random: np.random.Generator, world: World, events: Events, days: int
) -> tuple[Events, Ints, Ints, Ints]:
    terminals = len(world.terminal)
    # campaigns that began before the first day are under way when the stream starts
    count = min(terminals, max(1, round(terminals * _TERMINAL_SHARE_A_DAY * (days + 14))))
    chosen = random.choice(terminals, count, replace=False)
    first = random.integers(-14, days, count)
    last = first + random.integers(18, 29, count)
    start, stop = np.full(terminals + 1, days), np.full(terminals + 1, -1)
    start[chosen], stop[chosen] = first, last
    day = events.second // SECONDS_A_DAY
    # index NONE = -1 addresses the spare last entry, which is never compromised
    active = (day >= start[events.terminal]) & (day < stop[events.terminal])
    fraud = active & (random.random(len(events)) < _TERMINAL_FRAUD)
    return _marked(events, fraud, TERMINAL), chosen, first, last


def _steal_cards(random: np.random.Generator, world: World, events: Events, days: int) -> Events:
    customers = len(world.bank)
    count = min(customers, max(1, round(customers * _STOLEN_CARDS_A_DAY * days)))
    chosen = random.choice(customers, count, replace=False)
    start, stop = np.full(customers, days), np.full(customers, -1)
    start[chosen] = random.integers(0, days, count)
    stop[chosen] = start[chosen] + random.integers(5, 15, count)
    day = events.second // SECONDS_A_DAY
    active = (day >= start[events.customer]) & (day < stop[events.customer]) & (events.channel == CARD)
    fraud = active & (events.fraud == 0) & (random.random(len(events)) < 0.35)
    larger = np.where(
        fraud, np.round(events.amount * random.uniform(3.5, 6.0, len(events)), 2), events.amount
    )
    return _marked(events.changed(amount=larger), fraud, STOLEN_CARD)


def _outliers(random: np.random.Generator, events: Events) -> Events:
    fraud = (events.channel == CARD) & (events.fraud == 0) & (random.random(len(events)) < _OUTLIER_SHARE)
    large = np.round(600.0 + random.lognormal(5.0, 0.6, len(events)), 2)
    return _marked(events.changed(amount=np.where(fraud, large, events.amount)), fraud, OUTLIER)


def _pay_mules(
    random: np.random.Generator, world: World, base: int, first: Ints, last: Ints, days: int
) -> Events:
    """Deceived customers pay with their own device: nothing but the payee gives it away."""
    victims = 2 + random.poisson(7.0, len(first))
    mule = np.repeat(np.arange(len(first)), victims)
    day = first[mule] + (random.random(len(mule)) * (last - first)[mule]).astype(np.int64)
    kept = (day >= 0) & (day < days)
    mule, day = mule[kept], day[kept]
    n = len(mule)
    customer = random.integers(0, len(world.bank), n)
    amount = np.round(world.mean_amount[customer] * random.lognormal(2.1, 0.6, n) + 60, 2)
    channel = np.where(random.random(n) < 0.15, CROSS_BORDER, TRANSFER)
    return _rows(
        day * SECONDS_A_DAY + times_of_day(random, n), customer, channel, amount, base + mule, 0, MULE
    )


def _take_over(
    random: np.random.Generator, world: World, base: int, first: Ints, last: Ints, devices: int, days: int
) -> tuple[Events, int]:
    start = random.integers(-7, days, devices)
    length = random.integers(7, 24, devices)
    device = np.repeat(np.arange(devices), 2 + random.poisson(6.0, devices))
    day = start[device] + (random.random(len(device)) * length[device]).astype(np.int64)
    kept = (day >= 0) & (day < days)
    device, day = device[kept], day[kept]
    n = len(device)
    customer = random.integers(0, len(world.bank), n)
    login = day * SECONDS_A_DAY + random.integers(0, SECONDS_A_DAY - 1800, n)
    # the account emptied into: a mule that is active that day if there is one, or one that is used once
    payee = random.integers(0, len(first), n)
    usable = (first[payee] <= day) & (day < last[payee]) & (random.random(n) >= _DROP_ACCOUNTS)
    drop = np.cumsum(~usable) - 1
    target = base + np.where(usable, payee, len(first) + drop)
    amount = np.round(world.mean_amount[customer] * random.lognormal(2.4, 0.5, n) + 100, 2)
    logins = _rows(login, customer, np.full(n, LOGIN), np.zeros(n), np.full(n, NONE), 2 + device, TAKEOVER)
    moved = login + random.integers(60, 1500, n)
    moves = _rows(moved, customer, np.full(n, TRANSFER), amount, target, 2 + device, TAKEOVER)
    return Events.joined([logins, moves]), int((~usable).sum())


def _marked(events: Events, fraud: np.ndarray[tuple[int], np.dtype[np.bool_]], scenario: int) -> Events:
    return events.changed(
        fraud=np.where(fraud, 1, events.fraud).astype(np.int8),
        scenario=np.where(fraud, scenario, events.scenario).astype(np.int8),
    )


def _rows(
    second: Ints,
    customer: Ints,
    channel: Ints,
    amount: np.ndarray[tuple[int], np.dtype[np.float64]],
    payee: Ints,
    device: Ints | int,
    scenario: int,
) -> Events:
    n = len(second)
    return Events(
        second=second,
        customer=customer,
        channel=channel,
        amount=amount,
        terminal=np.full(n, NONE),
        payee=payee,
        device=np.broadcast_to(np.asarray(device, np.int64), (n,)).copy(),
        fraud=np.ones(n, np.int8),
        scenario=np.full(n, scenario, np.int8),
    )

"""What honest customers do: a table of events as columns of indices and amounts, drawn all at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sandbox.population.world import CARD, CASH, CROSS_BORDER, LOGIN, PAYMENT, TRANSFER, Floats, Ints, World

SECONDS_A_DAY = 86_400
NONE = -1  # index of a missing entity
_SCALES = {
    TRANSFER: 4.0,
    PAYMENT: 1.6,
    CARD: 1.0,
    CROSS_BORDER: 5.0,
}  # times the customer's mean card payment
_SECOND_DEVICE = 0.06
_STRANGER_TERMINAL = 0.12
_STRANGER_PAYEE = 0.15


@dataclass(frozen=True)
class Events:
    """Columns of equal length; indices into the world's arrays, ``NONE`` where the event has no such entity.

    ``second``: seconds since the first midnight. ``device``: 0 or 1 = the customer's own, 2 and above =
    ``extra_devices[device - 2]``, which belong to fraudsters. ``payee``: below ``len(world.payees)`` the world's,
    above = drop accounts. ``fraud``: 0 or 1. ``scenario``: small integer, 0 = honest.
    """

    second: Ints
    customer: Ints
    channel: Ints
    amount: Floats
    terminal: Ints
    payee: Ints
    device: Ints
    fraud: npt.NDArray[np.int8]
    scenario: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.second)

    def changed(self, **columns: npt.NDArray[np.generic]) -> Events:
        """A copy with some columns replaced."""
        return replace(self, **columns)  # type: ignore[arg-type]

    @staticmethod
    def joined(parts: list[Events]) -> Events:
        """All rows of ``parts`` one after the other."""
        return Events(
            **{name: np.concatenate([getattr(p, name) for p in parts]) for name in Events.__annotations__}
        )


def times_of_day(random: np.random.Generator, count: int) -> Ints:
    """Seconds after midnight: a broad afternoon hump over a thin round-the-clock floor."""
    hump = random.normal(14.0 * 3600, 3.6 * 3600, count)
    floor = random.uniform(0, SECONDS_A_DAY, count)
    return np.mod(np.where(random.random(count) < 0.12, floor, hump), SECONDS_A_DAY).astype(np.int64)


def honest_events(random: np.random.Generator, world: World, *, days: int, first_weekday: int) -> Events:
    """Every customer's ordinary life over ``days`` days; ``first_weekday``: 0 = Monday."""
    customer = np.repeat(np.arange(len(world.bank)), random.poisson(world.rate * days))
    n = len(customer)
    weekday = (first_weekday + np.arange(days)) % 7
    weight = np.where(weekday >= 5, 0.8, 1.08)
    day = random.choice(days, n, p=weight / weight.sum())
    # a Dirichlet row may sum to a hair under one, so the search may step past the end
    channel = np.minimum((world.channel_mix[customer] < random.random(n)[:, None]).sum(axis=1), CROSS_BORDER)
    at_terminal = (channel == CARD) | (channel == CASH)
    to_payee = (channel == TRANSFER) | (channel == PAYMENT) | (channel == CROSS_BORDER)
    return Events(
        second=day * SECONDS_A_DAY + times_of_day(random, n),
        customer=customer,
        channel=channel,
        amount=_amounts(random, world.mean_amount[customer], channel),
        terminal=np.where(at_terminal, _terminals(random, world, customer), NONE),
        payee=np.where(to_payee, _payees(random, world, customer), NONE),
        device=np.where(at_terminal, NONE, (random.random(n) < _SECOND_DEVICE).astype(np.int64)),
        fraud=np.zeros(n, np.int8),
        scenario=np.zeros(n, np.int8),
    )


def _amounts(random: np.random.Generator, mean: Floats, channel: Ints) -> Floats:
    scale = np.array([_SCALES.get(c, 0.0) for c in range(CROSS_BORDER + 1)])[channel]
    spread = mean * scale * random.lognormal(-0.08, 0.4, len(mean))
    cash = 10.0 * np.clip(np.round(mean * random.lognormal(0.4, 0.5, len(mean)) / 10), 1, 50)
    amount = np.where(channel == CASH, cash, np.round(spread, 2))
    return np.where(channel == LOGIN, 0.0, np.maximum(amount, 0.5))


def _favourite(random: np.random.Generator, favourites: Ints, customer: Ints) -> Ints:
    rank = random.integers(0, favourites.shape[1], len(customer))
    chosen: Ints = favourites[customer, rank]
    return chosen


def _terminals(random: np.random.Generator, world: World, customer: Ints) -> Ints:
    anywhere = random.choice(len(world.terminal), len(customer), p=world.terminal_popularity)
    stranger = random.random(len(customer)) < _STRANGER_TERMINAL
    return np.where(stranger, anywhere, _favourite(random, world.favourite_terminals, customer))


def _payees(random: np.random.Generator, world: World, customer: Ints) -> Ints:
    anyone = random.integers(0, len(world.payees), len(customer))
    stranger = random.random(len(customer)) < _STRANGER_PAYEE
    return np.where(stranger, anyone, _favourite(random, world.favourite_payees, customer))

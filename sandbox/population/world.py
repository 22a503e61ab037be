"""The things that exist before anything happens: customers, their devices and habits, terminals, payees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sandbox.population import identifiers
from sandbox.population.identifiers import Texts

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CHANNELS = ("login", "transfer", "payment", "cash_withdrawal", "card", "cross_border")
LOGIN, TRANSFER, PAYMENT, CASH, CARD, CROSS_BORDER = range(len(CHANNELS))
_CHANNEL_WEIGHTS = np.array([2.3, 0.8, 1.0, 0.9, 4.6, 0.25])  # Dirichlet weights of a customer's mix
_FAVOURITE_TERMINALS = 40
_FAVOURITE_PAYEES = 6
_COMPANIES = 160
_CANDIDATES_A_FAVOURITE = (
    2  # terminals near a customer: drawn by a gravity law over this many candidates a favourite
)


@dataclass(frozen=True)
class World:
    """Static arrays; customer arrays have shape ``[customers]``, terminal arrays ``[terminals]``.

    ``bank``: index of the customer's bank. ``rate``: events a day. ``mean_amount``: euro, of a card payment.
    ``channel_mix``: ``[customers, 6]`` cumulative. ``favourite_terminals`` and ``favourite_payees``: indices,
    ``[customers, k]``, most used first. ``payees``: texts, companies first, then the customers' own accounts.
    ``devices``: ``[customers, 2]``.
    """

    bank: Ints
    customer: Texts
    account: Texts
    card: Texts
    phone: Texts
    email: Texts
    address: Texts
    devices: npt.NDArray[np.object_]
    rate: Floats
    mean_amount: Floats
    channel_mix: Floats
    favourite_terminals: Ints
    favourite_payees: Ints
    payees: Texts
    terminal: Texts
    merchant: Texts
    terminal_popularity: Floats


def build_world(
    random: np.random.Generator,
    *,
    members: int,
    customers_per_bank: int,
    terminals: int,
    events_per_day: float,
) -> World:
    """Draw a world; ``events_per_day`` is the mean number of events of one customer."""
    n = members * customers_per_bank
    bank = np.repeat(np.arange(members, dtype=np.int64), customers_per_bank)
    popularity = random.lognormal(0.0, 0.5, terminals)
    chains = identifiers.numbered("M", max(1, terminals // 4), 5)
    domains = identifiers.numbered("mail", 9, 1)
    customer = identifiers.numbered("C", n, 6)
    device = identifiers.devices(random, 2 * n).reshape(n, 2)
    accounts = identifiers.ibans(random, bank)
    companies = identifiers.ibans(random, 100 + random.integers(0, 40, _COMPANIES))
    return World(
        bank=bank,
        customer=customer,
        account=accounts,
        card=identifiers.cards(random, n),
        phone=identifiers.phones(random, n),
        email=identifiers.emails(customer, domains[random.integers(0, len(domains), n)] + ".example"),
        address=identifiers.addresses(random, n),
        devices=device,
        rate=events_per_day * random.gamma(4.0, 0.25, n),
        mean_amount=random.uniform(8.0, 95.0, n),
        channel_mix=np.cumsum(random.dirichlet(_CHANNEL_WEIGHTS, n), axis=1),
        favourite_terminals=_near_terminals(random, n, popularity),
        favourite_payees=_usual_payees(random, n),
        payees=np.concatenate([companies, accounts]),
        terminal=identifiers.numbered("T", terminals, 6),
        merchant=chains[random.integers(0, len(chains), terminals)],
        terminal_popularity=popularity / popularity.sum(),
    )


def _near_terminals(random: np.random.Generator, customers: int, popularity: Floats) -> Ints:
    """Favourites by gravity: popular and near. Each customer weighs a random sample of candidates."""
    home = random.random((customers, 2))
    place = random.random((len(popularity), 2))
    candidates = random.integers(
        0, len(popularity), (customers, _FAVOURITE_TERMINALS * _CANDIDATES_A_FAVOURITE)
    )
    distance = np.hypot(*np.moveaxis(place[candidates] - home[:, None, :], 2, 0))
    attraction = popularity[candidates] / (0.05 + distance)
    best = np.argsort(-attraction, axis=1, kind="stable")[:, :_FAVOURITE_TERMINALS]
    return np.take_along_axis(candidates, best, axis=1)


def _usual_payees(random: np.random.Generator, customers: int) -> Ints:
    """Half companies (few of them paid by many), half other customers."""
    half = _FAVOURITE_PAYEES // 2
    companies = np.minimum(
        (_COMPANIES * random.random((customers, half)) ** 2).astype(np.int64), _COMPANIES - 1
    )
    people = _COMPANIES + random.integers(0, customers, (customers, _FAVOURITE_PAYEES - half))
    return random.permuted(np.concatenate([companies, people], axis=1), axis=1)

"""Identifiers of the synthetic population: well formed, distinct, and of nobody.

Every function returns an object array of ``str``, shape ``[count]``, without repeats unless it says otherwise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Texts = npt.NDArray[np.object_]

_BANK_CODE_BASE = 900_000_00  # German bank codes start with 1 to 8: none that starts with 9 is assigned


def distinct_numbers(random: np.random.Generator, count: int, limit: int) -> npt.NDArray[np.int64]:
    """``count`` distinct integers in ``[0, limit)`` in random order; ``limit`` must be well above ``count``."""
    if count * 2 > limit:
        raise ValueError(f"cannot draw {count} distinct numbers sparsely below {limit}")
    found = np.unique(random.integers(0, limit, count + count // 4 + 16))
    while len(found) < count:
        found = np.unique(np.concatenate([found, random.integers(0, limit, count)]))
    return random.permutation(found)[:count]


def ibans(random: np.random.Generator, banks: npt.NDArray[np.int64]) -> Texts:
    """One German IBAN with right check digits (ISO 13616, ISO 7064 mod 97-10) for each entry of ``banks``."""
    accounts = distinct_numbers(random, len(banks), 10**10)
    codes = _BANK_CODE_BASE + banks
    basic = codes * 10**10 + accounts  # 18 digits fit an int64
    checks = 98 - ((basic % 97) * (10**6 % 97) + 131_400) % 97  # "DE00" as digits is 131400
    return _texts(f"DE{check:02d}{number:018d}" for check, number in zip(checks, basic, strict=True))


def phones(random: np.random.Generator, count: int) -> Texts:
    """Numbers in E.164 form with a German mobile prefix."""
    return _texts(f"+49151{number:08d}" for number in 10**7 + distinct_numbers(random, count, 8 * 10**7))


def emails(owners: Texts, domains: Texts) -> Texts:
    """One address an owner, at the domain of the same position (domains repeat)."""
    return _texts(f"{str(o).lower()}@{d}" for o, d in zip(owners, domains, strict=True))


def devices(random: np.random.Generator, count: int) -> Texts:
    """Device ids as a fingerprinting library would give them: 16 hexadecimal digits."""
    return _texts(f"{number:016x}" for number in 2**60 + distinct_numbers(random, count, 2**60))


def cards(random: np.random.Generator, count: int) -> Texts:
    """Card tokens (never a card number): ``K`` and 12 hexadecimal digits."""
    return _texts(f"K{number:012X}" for number in distinct_numbers(random, count, 2**48))


def addresses(random: np.random.Generator, count: int) -> Texts:
    """IPv4 addresses of 198.18.0.0/15, the benchmarking range of RFC 2544; they may repeat."""
    hosts = random.integers(1, 2**17 - 1, count)
    return _texts(f"198.{18 + (h >> 16)}.{(h >> 8) & 255}.{h & 255}" for h in hosts)


def numbered(prefix: str, count: int, digits: int) -> Texts:
    """``prefix`` and a running number from 1, zero-padded so that text order is number order."""
    return _texts(f"{prefix}{number:0{digits}d}" for number in range(1, count + 1))


def _texts(values: object) -> Texts:
    listed = list(values)  # type: ignore[call-overload]
    array = np.empty(len(listed), dtype=object)
    array[:] = listed
    return array

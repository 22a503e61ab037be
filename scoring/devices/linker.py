"""From bundles to devices: known or new, how often changed, by how many customers, and how far to be trusted.

The order of rows is the only thing that counts: however a stream is cut into batches, ids and numbers are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.devices.bundle import BundleError, read_bundle
from scoring.devices.chains import Chains
from scoring.devices.consistency import inconsistencies, tampering
from scoring.devices.fingerprint import BUCKETS, COMPONENTS, SET_WORDS, Fingerprint, Fingerprinter
from scoring.devices.matching import choose, count_customer, customers
from scoring.features.index import grow
from scoring.hashing import DEFAULT_KEY, hash_texts

NUMBERS = (
    "device_new",
    "device_drift",
    "device_tampering",
    "device_age_hours",
    "device_customers",
    "device_seen",
)
KEEP_US = 90 * 86_400_000_000
MAX_DEVICES = 1_000_000
_HOUR_US = 3_600_000_000.0
# Devices that one observation may sweep: it never stops the stream, and one wrong clock forgets two devices at most.
_SWEPT_AT_ONCE = 2
_CUSTOMERS_HELD = 8
# What is kept of a device, by slot: name -> (dtype, further shape)
_FIELDS: dict[str, tuple[type, tuple[int, ...]]] = {
    "id": (np.uint64, ()),
    "immutable": (np.uint64, ()),
    "hashes": (np.uint32, (len(COMPONENTS),)),
    "sets": (np.uint64, (SET_WORDS,)),
    "versions": (np.int64, (2,)),
    "buckets": (np.uint64, (BUCKETS,)),
    "first_us": (np.int64, ()),
    "last_us": (np.int64, ()),
    "seen": (np.int64, ()),
    "drift": (np.int64, ()),
    "people": (np.uint64, (_CUSTOMERS_HELD,)),
    "exact": (np.int64, ()),
}


@dataclass(frozen=True)
class DeviceRefusal:
    """The bundle of ``row`` was refused (see ``BundleError``); the event is scored without a device."""

    row: int
    code: str
    component: str


@dataclass(frozen=True, eq=False)
class DeviceColumns:
    """What is known of the device of each row.

    device     uint64 [n], the key of its id as ``entity_keys`` gives it (0: no device)
    device_id  object [n], 16 hexadecimal digits or None
    numbers    name of ``NUMBERS`` -> float64 [n]; NaN where there is no device (``device_tampering``: no bundle)
    signs      object [n], tuples of names of ``consistency.SIGNS``
    refusals   bundles that were refused
    """

    device: NDArray[np.uint64]
    device_id: NDArray[np.object_]
    numbers: Mapping[str, NDArray[np.float64]]
    signs: NDArray[np.object_]
    refusals: tuple[DeviceRefusal, ...] = field(default=())


class DeviceLinker:
    """All devices a bank knows. Not for two threads at once."""

    def __init__(
        self, key: bytes = DEFAULT_KEY, *, keep_us: int = KEEP_US, max_devices: int = MAX_DEVICES
    ) -> None:
        """``key``: 16 secret bytes of the bank, under which ids and components are hashed.

        A device not seen for ``keep_us`` is forgotten, and at ``max_devices`` the one seen longest ago.
        """
        if len(key) != 16:
            raise ValueError(f"the hash key has {len(key)} bytes, not 16")
        if max_devices < 1:
            raise ValueError("there must be room for a device")
        self._key = key
        self._fingerprint = Fingerprinter(key)
        self._keep_us = keep_us
        self._max_devices = max_devices
        self._fields: dict[str, NDArray[Any]] = {
            name: np.zeros((64, *shape), dtype) for name, (dtype, shape) in _FIELDS.items()
        }
        self._chains = Chains()
        self._free: list[int] = []
        self._bound = 0  # every slot in use is below this
        self._made = 0

    def __len__(self) -> int:
        return self._bound - len(self._free)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._fields.values()) + self._chains.nbytes

    def observe(
        self,
        bundles: Sequence[Mapping[str, Any] | str | bytes | None],
        customer: NDArray[np.uint64],
        time_us: NDArray[np.int64],
        again: NDArray[np.bool_] | None = None,
    ) -> DeviceColumns:
        """Link each row's bundle (decoded, or JSON; None: none) in order; ``customer`` 0: not given.

        ``again`` bool [n]: rows that replace an event observed before. They find their device as it is and are not
        counted once more; only one that nobody has seen yet is made.
        """
        n = len(bundles)
        if len(customer) != n or len(time_us) != n:
            raise ValueError(f"{n} bundles, {len(customer)} customers and {len(time_us)} times")
        ids = np.zeros(n, np.uint64)
        signs = np.empty(n, object)
        signs[:] = [()] * n
        numbers = np.full((len(NUMBERS), n), np.nan)
        refusals: list[DeviceRefusal] = []
        for row in range(n):
            raw = bundles[row]
            if raw is None:
                continue
            try:
                bundle = read_bundle(raw)
            except BundleError as error:
                refusals.append(DeviceRefusal(row, error.code, error.component))
                continue
            fingerprint = self._fingerprint(bundle)
            now = int(time_us[row])
            found = inconsistencies(bundle, fingerprint.agent, now)
            if fingerprint.is_telling:
                slot, is_new, moved = self._link(fingerprint, now, again is not None and bool(again[row]))
                if moved:
                    found = ("identifier-moved", *found)
                ids[row] = self._fields["id"][slot]
                numbers[:, row] = self._numbers(slot, is_new, int(customer[row]), now)
            signs[row] = found
            numbers[2, row] = tampering(found)
        texts = np.array([f"{each:016x}" if each else "" for each in ids.tolist()], dtype="<U16")
        device_id = texts.astype(object)
        device_id[ids == 0] = None
        columns = dict(zip(NUMBERS, numbers, strict=True))
        return DeviceColumns(hash_texts(texts, DEFAULT_KEY), device_id, columns, signs, tuple(refusals))

    def state(self, copy: bool = True) -> dict[str, NDArray[Any]]:
        """All arrays, enough for :meth:`restore`; without ``copy`` they are views, good until the next change."""
        arrays = {f"device_{name}": array[: self._bound] for name, array in self._fields.items()}
        arrays |= {f"chain_{name}": array for name, array in self._chains.state(self._bound).items()}
        arrays["free"] = np.array(self._free, np.int64)
        arrays["counts"] = np.array([self._bound, self._made], np.int64)
        return {name: array.copy() for name, array in arrays.items()} if copy else arrays

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over a :meth:`state`; what follows is bit for bit what would have followed there."""
        self._fields = {name: state[f"device_{name}"].copy() for name in _FIELDS}
        self._chains.restore(
            {name.removeprefix("chain_"): array for name, array in state.items() if name.startswith("chain_")}
        )
        self._free = [int(slot) for slot in state["free"]]
        self._bound, self._made = (int(count) for count in state["counts"])

    def _link(self, fingerprint: Fingerprint, now: int, again: bool = False) -> tuple[int, bool, bool]:
        if not again:
            self._sweep(now)
        held = self._fields
        slot, _, moved = choose(
            self._chains.first(fingerprint.buckets),
            self._chains.after,
            np.uint64(fingerprint.immutable),
            fingerprint.hashes,
            fingerprint.sets,
            fingerprint.versions,
            held["immutable"],
            held["hashes"],
            held["sets"],
            held["versions"],
        )
        if slot < 0:
            return self._new(fingerprint, now), True, moved
        slot = int(slot)
        if again:
            return slot, False, moved
        changed = (
            held["hashes"][slot].tobytes() != fingerprint.hashes.tobytes()
            or held["versions"][slot].tobytes() != fingerprint.versions.tobytes()
        )
        if changed:
            held["drift"][slot] += 1
        if held["buckets"][slot].tobytes() != fingerprint.buckets.tobytes() or changed:
            self._store(slot, fingerprint)
        held["first_us"][slot] = min(int(held["first_us"][slot]), now)
        held["last_us"][slot] = max(int(held["last_us"][slot]), now)
        held["seen"][slot] += 1
        self._chains.seen(slot, is_new=False)
        return slot, False, moved

    def _new(self, fingerprint: Fingerprint, now: int) -> int:
        if len(self) >= self._max_devices:
            self._forget(self._chains.oldest)
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._bound
            self._bound += 1
            for array in self._fields.values():
                grow(array, self._bound)
            self._chains.grow(self._bound)
        held = self._fields
        self._made += 1
        # The count makes ids differ; under the key it does not show in them.
        text = f"device/{fingerprint.immutable:x}/{now}/{self._made}"
        held["id"][slot] = hash_texts(np.array([text]), self._key)[0]
        held["buckets"][slot] = 0
        self._store(slot, fingerprint)
        held["first_us"][slot] = held["last_us"][slot] = now
        held["seen"][slot] = 1
        held["drift"][slot] = 0
        held["people"][slot] = 0
        held["exact"][slot] = 0
        self._chains.seen(slot, is_new=True)
        return slot

    def _store(self, slot: int, fingerprint: Fingerprint) -> None:
        held = self._fields
        before = held["buckets"][slot].copy()
        moves = before != fingerprint.buckets
        self._chains.take(slot, np.where(moves, before, np.uint64(0)))
        self._chains.put(slot, np.where(moves, fingerprint.buckets, np.uint64(0)))
        for name in ("immutable", "hashes", "sets", "versions", "buckets"):
            held[name][slot] = getattr(fingerprint, name)

    def _numbers(self, slot: int, is_new: bool, customer: int, now: int) -> list[float]:
        held = self._fields
        people = held["people"][slot]
        if customer:
            held["exact"][slot] = count_customer(people, int(held["exact"][slot]), np.uint64(customer))
        return [
            float(is_new),
            float(held["drift"][slot]),
            np.nan,
            (now - int(held["first_us"][slot])) / _HOUR_US,
            customers(people, int(held["exact"][slot])),
            float(held["seen"][slot]),
        ]

    def _sweep(self, now: int) -> None:
        for _ in range(_SWEPT_AT_ONCE):
            slot = self._chains.oldest
            if slot < 0 or int(self._fields["last_us"][slot]) >= now - self._keep_us:
                return
            self._forget(slot)

    def _forget(self, slot: int) -> None:
        self._chains.take(slot, self._fields["buckets"][slot])
        self._chains.forget(slot)
        for array in self._fields.values():
            array[slot] = 0
        self._free.append(slot)

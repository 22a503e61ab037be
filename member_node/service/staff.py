"""Who calls the bank-internal API: the holder of the operator token, or a person with a token of their own.

A personal token is 32 random bytes and is shown once; the bank keeps its SHA-256, which needs no salt because such a
token cannot be guessed. What a person does is recorded under their name, so a name is never given again.

The operator token names nobody, so it counts as no person where two are asked for. Who gave out a token has held it, so
the two persons may not be one that gave out the other's, at first or at second hand. An admin who gives out two tokens
can still use both: who added whom is kept and told, and the bank's own audit has to look at it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from member_node.client.ports import Random
from member_node.storage.staff import StaffRow, StaffStore

TOKEN_BYTES = 32
OPERATOR = "operator"
# The names the program itself signs with.
RESERVED = frozenset({OPERATOR, "brake", "system"})
_NAME = re.compile(r"[a-z][a-z0-9._-]{1,47}")


class Role(StrEnum):
    """What a token opens: sending events (for the systems that do) and nothing else, proposing, also approving and
    deploying, or everything."""

    SENDER = "sender"
    ANALYST = "analyst"
    APPROVER = "approver"
    ADMIN = "admin"


@dataclass(frozen=True)
class Staff:
    """A caller: a unique name and roles."""

    name: str
    roles: frozenset[Role]

    def has(self, *wanted: Role) -> bool:
        """Whether one of the roles is theirs; an admin has them all."""
        return Role.ADMIN in self.roles or not self.roles.isdisjoint(wanted)


class StaffError(ValueError):
    """A name or role is not acceptable, or there is no such person; the text says what to do."""


class SamePersonError(ValueError):
    """Two persons are asked for, and these may be one; the text says why."""


def check_two_persons(what: str, maker: str, checker: str, added_by: Mapping[str, str]) -> None:
    """Raise SamePersonError unless ``checker`` is surely another person than ``maker``, as far as tokens can tell.

    ``added_by``: who gave out each person's token (see :meth:`StaffStore.added_by`).
    """
    theirs = f"{what} is {maker}'s and you are {checker}"
    if maker == checker:
        raise SamePersonError(f"{what} is {checker}'s own: another person must approve it")
    if OPERATOR in (maker, checker):
        raise SamePersonError(
            f"{theirs}: it takes two persons with tokens of their own, and the operator token names nobody"
        )
    for holder, giver in ((maker, checker), (checker, maker)):
        before = holder
        while before in added_by:
            before = added_by[before]
            if before == giver:
                raise SamePersonError(
                    f"{theirs}: the token of {holder} comes from {giver}, who may hold it still; it takes a person "
                    "whose token comes from somebody else"
                )


class StaffBook:
    """Staff in memory, in step with the store. Thread safe."""

    def __init__(
        self, store: StaffStore, operator_token: bytes, clock_ms: Callable[[], int], random: Random
    ) -> None:
        """``operator_token``: that of the data directory's token file; its holder is ``operator``, an admin."""
        self._store = store
        self._clock_ms = clock_ms
        self._random = random
        self._lock = threading.Lock()
        self._operator = (_digest(operator_token), Staff(OPERATOR, frozenset({Role.ADMIN})))
        self._known: tuple[tuple[bytes, Staff], ...] = ()
        self._reload()

    def identify(self, token: bytes) -> Staff | None:
        """Whose token it is, None if nobody's. Every known digest is compared, each in constant time."""
        given = _digest(token)
        found: Staff | None = None
        for digest, staff in self._known:
            if hmac.compare_digest(digest, given):
                found = staff
        return found

    def add(self, name: str, role: str, by: Staff) -> str:
        """Add a person; the token, which is shown this once. Raises StaffError."""
        if not _NAME.fullmatch(name) or name in RESERVED:
            raise StaffError(
                "a name is 2 to 48 lower-case letters, digits, dots and dashes, begins with a letter "
                f"and is none of {', '.join(sorted(RESERVED))}"
            )
        if role not in list(Role):
            raise StaffError(f"{role!r} is no role; use one of {', '.join(Role)}")
        token = base64.urlsafe_b64encode(self._random(TOKEN_BYTES)).decode().rstrip("=")
        with self._lock:
            if any(row.name == name for row in self._store.all()):
                raise StaffError(f"{name} is or was on the staff: a name is given once, choose another")
            self._store.add(StaffRow(name, _digest(token.encode()), role, by.name, self._clock_ms()))
            self._reload()
        return token

    def revoke(self, name: str, by: Staff) -> None:
        """End a person's token at once. Raises StaffError if there is no such person."""
        with self._lock:
            if not any(row.name == name and not row.revoked_at_ms for row in self._store.all()):
                raise StaffError(f"there is nobody named {name} with a token that is good")
            self._store.revoke(name, by.name, self._clock_ms())
            self._reload()

    def everybody(self) -> list[StaffRow]:
        """All rows, revoked ones too, by name."""
        return self._store.all()

    def _reload(self) -> None:
        good = [row for row in self._store.all() if not row.revoked_at_ms]
        people = (
            (row.token_digest, Staff(row.name, frozenset(map(Role, row.roles.split(","))))) for row in good
        )
        self._known = (self._operator, *people)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()

"""Faults a sandbox run can be asked to inject: ``bank-b@12:share`` kills bank-b in the middle of day 12's share."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(r"([a-z][a-z0-9-]{1,31})@([1-9]\d{0,3})(?::(confirm|share|score))?")


@dataclass(frozen=True)
class Kill:
    """SIGKILL to ``party`` on the ``day``-th day of the run (counted from 1), just after it was asked for ``part``."""

    party: str
    day: int
    part: str = "confirm"


def parse_kill(text: str) -> Kill:
    """Read ``PARTY@DAY`` or ``PARTY@DAY:PART`` or raise ``ValueError`` that shows the form."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(
            "a fault is written PARTY@DAY or PARTY@DAY:PART (confirm, share or score), such as bank-b@12:share,"
            f" not {text!r}"
        )
    return Kill(party=match[1], day=int(match[2]), part=match[3] or "confirm")

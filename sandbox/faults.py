"""Faults a sandbox run can be asked to inject, written as ``bank-b@12``: kill bank-b as day 12 begins."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(r"([a-z][a-z0-9-]{1,31})@(\d{1,4})")


@dataclass(frozen=True)
class Kill:
    """SIGKILL to ``party`` at the start of the ``day``-th day of the run (counted from 1)."""

    party: str
    day: int


def parse_kill(text: str) -> Kill:
    """Read ``PARTY@DAY`` or raise ``ValueError`` that shows the form."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"a fault is written PARTY@DAY, such as bank-b@12, not {text!r}")
    return Kill(party=match[1], day=int(match[2]))

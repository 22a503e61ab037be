"""The ``[scoring]`` table of ``member.toml``: how a node takes in, scores and keeps its transactions.

[scoring]
max_wait_ms = 2.0              # how long a single event may wait for others to be scored with
max_batch_rows = 4096          # how many are scored at once at most
max_future_seconds = 300       # an event dated later than this after the clock is refused (0: never)
snapshot_seconds = 300         # how often the state is saved, so that a restart replays less
history_days = 0               # scored events older than this are removed (0: kept for ever)
drift_hours = 24               # how often drift of the active model is measured (0: never)
drift_days = 7                 # over how much of the newest history
drift_psi = 0.25               # the stability index above which drift raises an alarm
feature_threads = 2            # threads that compute the features of one batch of 512 rows or more
model_threads = 1              # threads that score one batch with the model
alert_verdict = "challenge"    # the mildest verdict that opens an alert
case_window_hours = 24         # alerts of one customer no further apart than this are one case
case_exemption_days = 7        # an analyst's decision exempts a customer no longer without an approver (0: never)
nats_url = ""                  # such as nats://127.0.0.1:4222: also take events from NATS JetStream
nats_stream = "transactions"
nats_subject = "transactions.new"
nats_consumer = "subrosa"
nats_verdicts = ""             # subject that verdicts are published to (empty: none)
nats_dead_letters = ""         # subject for messages that cannot be read or hold refused rows (empty: none)
nats_credentials = ""          # NATS credentials file, relative to the data directory unless absolute (empty: none)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from scoring.verdicts import Verdict, verdict_named

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class ScoringSettings:
    """See the module. Raises ValueError for values that make no sense, naming the key."""

    max_wait_ms: float = 2.0
    max_batch_rows: int = 4096
    max_future_seconds: int = 300
    snapshot_seconds: int = 300
    history_days: int = 0
    drift_hours: int = 24
    drift_days: int = 7
    drift_psi: float = 0.25
    feature_threads: int = 2
    model_threads: int = 1
    alert_verdict: str = "challenge"
    case_window_hours: int = 24
    case_exemption_days: int = 7
    nats_url: str = ""
    nats_stream: str = "transactions"
    nats_subject: str = "transactions.new"
    nats_consumer: str = "subrosa"
    nats_verdicts: str = ""
    nats_dead_letters: str = ""
    nats_credentials: str = ""

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"[scoring] {name} must lie within {low}..{high}, it is {value}")
        if verdict_named(self.alert_verdict) is Verdict.ALLOW:
            raise ValueError("[scoring] alert_verdict must be challenge, review or block")

    @property
    def alert_least(self) -> Verdict:
        """The mildest verdict that opens an alert."""
        return verdict_named(self.alert_verdict)

    @property
    def case_window_us(self) -> int:
        """How far apart alerts of one case may lie, in microseconds."""
        return self.case_window_hours * HOUR_US

    @property
    def max_future_us(self) -> int:
        """How far after the clock an event may be dated, in microseconds; 0: any time."""
        return self.max_future_seconds * 1_000_000


_BOUNDS: Mapping[str, tuple[float, float]] = {
    "max_wait_ms": (0.0, 1000.0),
    "max_batch_rows": (1, 100_000),
    "max_future_seconds": (0, 366 * 86_400),
    "snapshot_seconds": (1, 7 * 86_400),
    "history_days": (0, 36_500),
    "drift_hours": (0, 24 * 366),
    "drift_days": (1, 366),
    "drift_psi": (0.01, 100.0),
    "feature_threads": (1, 64),
    "model_threads": (1, 64),
    "case_window_hours": (1, 24 * 366),
    "case_exemption_days": (0, 90),
}


def read_scoring(table: Mapping[str, Any]) -> ScoringSettings:
    """The settings of a ``[scoring]`` table; ValueError names a key that is unknown or of the wrong type."""
    kinds = {each.name: type(each.default) for each in fields(ScoringSettings)}
    given: dict[str, Any] = {}
    for name, value in table.items():
        if name not in kinds:
            raise ValueError(f"[scoring] has no key {name}; it has {', '.join(kinds)}")
        wanted = kinds[name]
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise ValueError(f"[scoring] {name} must be of type {wanted.__name__}, it is {value!r}")
        given[name] = value
    return ScoringSettings(**given)

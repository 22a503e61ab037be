"""A key holder's signed account of what it was asked, hour by hour, into the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from crypto.signing import SigningKey
from governance.messages.codec import decode, encode
from governance.messages.lookup import EvaluationCount, EvaluationTotals
from governance.messages.signed import Signed, sign_message
from member_node.client.ports import Clock, CoordinatorPort
from member_node.storage.evaluations import CountRow, EvaluationStore

PERIOD_SECONDS = 3600
LOGGER = logging.getLogger(__name__)


class TotalsService:
    """Freezes counts into signed totals and sends them in order; what was not acknowledged is sent again as it was."""

    def __init__(
        self, party: str, key: SigningKey, port: CoordinatorPort, store: EvaluationStore, *, clock: Clock
    ) -> None:
        self._party = party
        self._key = key
        self._port = port
        self._store = store
        self._clock = clock

    def is_due(self) -> bool:
        """Whether the last period ended an hour ago."""
        return self._clock() - self._store.last_period_end() >= PERIOD_SECONDS

    def send(self) -> int:
        """Close the running period and send all totals not yet acknowledged; how many. Raises what the port raises."""
        self._store.close_period(self._freeze)
        sent = 0
        for sequence, envelope in self._store.unsent_totals():
            self._port.send_totals(decode(Signed, envelope))
            self._store.mark_sent(sequence)
            sent += 1
        return sent

    def _freeze(
        self, sequence: int, period_start: int, counts: Sequence[CountRow]
    ) -> tuple[int, bytes] | None:
        now = self._clock()
        if now <= period_start:
            return None
        totals = EvaluationTotals(
            holder=self._party,
            sequence=sequence,
            period_start=period_start or now - PERIOD_SECONDS,
            period_end=now,
            counts=[
                EvaluationCount(
                    caller=row.key.caller,
                    kind_group=row.key.kind_group,
                    purpose=row.key.purpose,
                    quota=row.key.quota,
                    refusal=row.key.refusal,
                    requests=row.requests,
                    elements=row.elements,
                )
                for row in counts
            ],
        )
        return now, encode(sign_message(totals, self._party, self._key))

"""Asking the policy, and writing down every refusal before the caller hears of it."""

from __future__ import annotations

from coordinator.service.consortium import Consortium
from coordinator.service.log import GovernanceLog
from governance.log.entries import RefusalEntry, as_claimed
from governance.policy.decision import AccessRequest, Decision

MAX_REASON = 500


class Permission:
    """Decides with the bundle in force."""

    def __init__(self, consortium: Consortium, log: GovernanceLog) -> None:
        self._consortium = consortium
        self._log = log

    def require(self, request: AccessRequest, purpose: str) -> Decision:
        """The permitting decision; a refusal is logged and raised as RefusedError."""
        decision = self._consortium.decider.decide(request)
        if not decision.permitted:
            with self._log.transaction() as transaction:
                transaction.append(
                    RefusalEntry(
                        at=transaction.at,
                        parties=[request.principal],
                        party=request.principal,
                        action=request.action,
                        resource=as_claimed("/".join(request.resource)),
                        purpose=as_claimed(purpose),
                        reason=decision.reason[:MAX_REASON],
                        rule=decision.rule,
                        policy_epoch=decision.policy_epoch,
                    )
                )
        decision.require()
        return decision

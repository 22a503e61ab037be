"""A question to the policy and its answer. The deciding side fails closed; the asking side cannot forget the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT_DENY = "default-deny"
EVALUATION_FAILED = "evaluation-failed"


class PolicyError(Exception):
    """A policy bundle cannot be used: its text, schema or parameters are wrong. Nothing is permitted by it."""


@dataclass(frozen=True)
class AccessRequest:
    """Who (``principal``, a party id) wants to do what to which (``type``, ``id``) resource, and how."""

    principal: str
    action: str
    resource: tuple[str, str]
    context: Mapping[str, int | str | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """``rule`` is the id of the deciding policy (``default-deny`` if none permits), ``reason`` its text for people."""

    permitted: bool
    rule: str
    reason: str
    policy_epoch: int
    request: AccessRequest

    def require(self) -> None:
        """Return if permitted, else raise :class:`RefusedError`."""
        if not self.permitted:
            raise RefusedError(self, self.request.principal)


class RefusedError(Exception):
    """The policy does not permit the request of ``party``; ``decision`` says by which rule."""

    def __init__(self, decision: Decision, party: str) -> None:
        super().__init__(
            f"{party} may not {decision.request.action}: {decision.reason} "
            f"(rule {decision.rule}, policy epoch {decision.policy_epoch})"
        )
        self.decision = decision
        self.party = party

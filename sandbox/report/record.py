"""Everything a report is made from. A part that is ``None`` was not measured; ``not_measured`` says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandbox.accounts import BankAccount
from sandbox.coordinator_view import CoordinatorView
from sandbox.evaluation import Evaluation
from sandbox.probe import Probe

Json = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """One run of the sandbox.

    ``configuration``: setting to value. ``command``: what repeats the run. ``evaluation``: what was measured.
    ``statuses``: party to the JSON its node answered on its bank's own interface at the end; its ``traffic`` (rows with
    direction, peer, call, requests, errors, bytes_in, bytes_out, elements, p50_ms, p99_ms) feeds the
    tables of requests.
    ``audit``: the offline verification of the exported log (an ``AuditReport`` as JSON), with ``audit_command``.
    ``timings``: part to wall-clock seconds. ``incidents``: what broke and how it was mended, one sentence each.
    ``accounts``: each bank's run; ``failures``: why the run may not end green; ``probe``: the sandbox's own refused
    request; ``coordinator``: what its database holds; ``rejects``: rows of the source that were refused, in words.
    ``unit``: of the money. ``not_measured``: part (``evaluation``, ``statuses``, ``audit``, ``timings``) to the reason.
    """

    title: str
    finished_at: str
    configuration: Mapping[str, str | int | float | bool | None]
    command: str
    evaluation: Evaluation | None = None
    statuses: Mapping[str, Json] | None = None
    audit: Json | None = None
    audit_command: str = "subrosa audit verify DIR"
    timings: Mapping[str, float | None] | None = None
    incidents: Sequence[str] = ()
    accounts: Sequence[BankAccount] = ()
    failures: Sequence[str] = ()
    probe: Probe | None = None
    coordinator: CoordinatorView | None = None
    rejects: Sequence[str] = ()
    unit: str = ""
    not_measured: Mapping[str, str] = field(default_factory=dict)

    def why(self, part: str) -> str:
        """Why ``part`` was not measured."""
        return self.not_measured.get(part, "the run did not deliver it")

"""The policy bundle as it travels: Cedar text, its schema and the parameters Cedar cannot hold."""

from __future__ import annotations

from typing import ClassVar

from governance.messages.codec import Message
from governance.messages.signed import Evidence


class KindRule(Message, frozen=True):
    """Policy of one indicator kind: its kind group, how long a label lives, and whether its directory is public."""

    kind: str
    kind_group: str
    expiry_days: int
    victim_window_days: int
    public_directory: bool


class Tier(Message, frozen=True):
    """Evidence tier: with at least ``min_victims`` distinct victims in unexpired labels, a hit has this name.

    ``verdict`` is the strongest verdict a rule may give on a hit of this tier: allow, challenge, review or block.
    """

    name: str
    min_victims: int
    verdict: str


class EvaluationBudget(Message, frozen=True):
    """Elements one caller may have evaluated by one key holder for one kind group."""

    kind_group: str
    lookups_per_day: int
    enrolment_per_epoch: int
    elements_per_second: int


class InquiryRule(Message, frozen=True):
    """Bounds of one inquiry template on one data set. ``colluders`` is c of DESIGN 2: the cohort has >= c + 2."""

    template: str
    dataset: str
    colluders: int
    max_cells: int
    max_days: int
    max_per_requester_per_day: int
    max_cell_value: int
    lifetime_seconds: int


class PolicyBundle(Evidence, frozen=True):
    """All that decides. ``policy_epoch`` grows by one; both sides decide with the same signed bytes.

    ``labels_per_day``: labels that one contributor may add to the index on one day (UTC, of the coordinator's clock).
    """

    CONTEXT: ClassVar[str] = "policy-bundle"

    policy_epoch: int
    cedar: str
    cedar_schema: str
    kinds: list[KindRule]
    tiers: list[Tier]
    budgets: list[EvaluationBudget]
    inquiries: list[InquiryRule]
    max_checkpoint_age_seconds: int
    merge_delay_seconds: int
    labels_per_day: int

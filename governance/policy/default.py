"""The bundle a consortium starts with: the Cedar text beside this file and measured parameters."""

from __future__ import annotations

from importlib.resources import files

from governance.indicators import ALL_KIND_GROUPS, KIND_GROUPS, Kind
from governance.inquiries import CONFIRMED_FRAUDS
from governance.messages.policy import EvaluationBudget, InquiryRule, KindRule, PolicyBundle, Tier

TERMINALS = "terminals"

# On the real stream labels that live 7 days and are renewed catch what labels of 28 days catch, at 80 % precision
# with two distinct victims instead of 1 % with one reporter.
EXPIRY_DAYS = 7
VICTIM_WINDOW_DAYS = 7
_PUBLIC_DIRECTORIES = frozenset({Kind.TERMINAL, Kind.MERCHANT})


def default_bundle(policy_epoch: int = 1) -> PolicyBundle:
    """The default policy, numbered ``policy_epoch``."""
    package = files("governance.policy")
    return PolicyBundle(
        policy_epoch=policy_epoch,
        cedar=package.joinpath("default.cedar").read_text(encoding="utf-8"),
        cedar_schema=package.joinpath("default.cedarschema").read_text(encoding="utf-8"),
        kinds=[
            KindRule(
                kind=kind.value,
                kind_group=KIND_GROUPS[kind],
                expiry_days=EXPIRY_DAYS,
                victim_window_days=VICTIM_WINDOW_DAYS,
                public_directory=kind in _PUBLIC_DIRECTORIES,
            )
            for kind in Kind
        ],
        tiers=[
            Tier(name="watch", min_victims=1, verdict="allow"),
            Tier(name="challenge", min_victims=2, verdict="challenge"),
            Tier(name="block", min_victims=4, verdict="block"),
        ],
        budgets=[
            EvaluationBudget(
                kind_group=group,
                lookups_per_day=20_000,
                enrolment_per_epoch=200_000,
                elements_per_second=20_000,
            )
            for group in ALL_KIND_GROUPS
        ],
        inquiries=[
            InquiryRule(
                template=CONFIRMED_FRAUDS,
                dataset=TERMINALS,
                colluders=1,
                max_cells=500_000,
                max_days=31,
                max_per_requester_per_day=400,
                max_cell_value=10_000,
                lifetime_seconds=120,
            )
        ],
        max_checkpoint_age_seconds=300,
        merge_delay_seconds=60,
        labels_per_day=20_000,
    )

"""The parameters of a bundle that Cedar does not hold: what they must satisfy, and what is read from them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from governance.indicators import ALL_KIND_GROUPS, KIND_GROUPS, Kind
from governance.inquiries import TEMPLATES
from governance.messages.policy import EvaluationBudget, InquiryRule, KindRule, PolicyBundle, Tier
from governance.policy.decision import PolicyError

# from the weakest to the strongest
VERDICTS = ("allow", "challenge", "review", "block")


NO_TIER = "none"
MAX_EPOCH = 2**53


def kind_rule(bundle: PolicyBundle, kind: str) -> KindRule:
    """The bundle's rule for ``kind``; raises :class:`PolicyError`."""
    for rule in bundle.kinds:
        if rule.kind == kind:
            return rule
    raise PolicyError(f"the policy has no rule for the kind {kind!r}")


def budget_for(bundle: PolicyBundle, kind_group: str) -> EvaluationBudget:
    """The evaluation budget of ``kind_group``; raises :class:`PolicyError`: without one nothing is evaluated."""
    for budget in bundle.budgets:
        if budget.kind_group == kind_group:
            return budget
    raise PolicyError(f"the policy has no evaluation budget for the kind group {kind_group!r}")


def tier_for(bundle: PolicyBundle, distinct_victims: int) -> Tier | None:
    """The strongest tier that ``distinct_victims`` reach, None if they reach none."""
    reached = [tier for tier in bundle.tiers if distinct_victims >= tier.min_victims]
    return max(reached, key=lambda tier: tier.min_victims, default=None)


def check_parameters(bundle: PolicyBundle) -> None:
    """Raise :class:`PolicyError` naming the first parameter that is wrong."""
    if not 1 <= bundle.policy_epoch < MAX_EPOCH:
        raise PolicyError("the policy epoch counts from 1")
    if bundle.max_checkpoint_age_seconds < 1 or bundle.merge_delay_seconds < 0:
        raise PolicyError("checkpoint age or merge delay is not a duration")
    if bundle.labels_per_day < 1:
        raise PolicyError("the budget of labels a day is at least 1")
    _check_unique("kind", (rule.kind for rule in bundle.kinds))
    for rule in bundle.kinds:
        _check_kind(rule)
    _check_unique("budget", (budget.kind_group for budget in bundle.budgets))
    for budget in bundle.budgets:
        if budget.kind_group not in ALL_KIND_GROUPS:
            raise PolicyError(f"budget: unknown kind group {budget.kind_group!r}")
        if min(budget.lookups_per_day, budget.enrolment_per_epoch, budget.elements_per_second) < 0:
            raise PolicyError(f"budget of {budget.kind_group}: negative")
    _check_tiers(bundle.tiers)
    _check_unique("inquiry rule", ((rule.template, rule.dataset) for rule in bundle.inquiries))
    for inquiry in bundle.inquiries:
        _check_inquiry_rule(inquiry)


def _check_kind(rule: KindRule) -> None:
    if rule.kind not in Kind._value2member_map_:
        raise PolicyError(f"unknown kind {rule.kind!r}")
    if rule.kind_group != KIND_GROUPS[Kind(rule.kind)]:
        raise PolicyError(f"kind {rule.kind}: belongs to another kind group than {rule.kind_group!r}")
    if min(rule.expiry_days, rule.victim_window_days) < 1:
        raise PolicyError(f"kind {rule.kind}: expiry and victim window are at least one day")


def _check_tiers(tiers: list[Tier]) -> None:
    _check_unique("tier", (tier.name for tier in tiers))
    for tier in tiers:
        if tier.name == NO_TIER:
            raise PolicyError(f"tier {NO_TIER}: the name is reserved for indicators below every tier")
        if tier.verdict not in VERDICTS:
            raise PolicyError(f"tier {tier.name}: unknown verdict {tier.verdict!r}")
    for weaker, stronger in pairwise(tiers):
        if weaker.min_victims >= stronger.min_victims:
            raise PolicyError(f"tier {stronger.name}: needs more victims than {weaker.name} before it")
        if VERDICTS.index(weaker.verdict) > VERDICTS.index(stronger.verdict):
            raise PolicyError(f"tier {stronger.name}: more evidence may not give a weaker verdict")
    if tiers and tiers[0].min_victims < 1:
        raise PolicyError(f"tier {tiers[0].name}: needs at least one victim")


def _check_inquiry_rule(rule: InquiryRule) -> None:
    name = f"inquiry rule {rule.template} on {rule.dataset}"
    if rule.template not in TEMPLATES:
        raise PolicyError(f"{name}: the template is not in the catalogue")
    if rule.colluders < 1:
        raise PolicyError(f"{name}: at least the requester may be curious, so colluders is at least 1")
    bounds = (rule.max_cells, rule.max_days, rule.max_per_requester_per_day, rule.max_cell_value)
    if min(*bounds, rule.lifetime_seconds) < 1:
        raise PolicyError(f"{name}: bounds and lifetime are at least 1")


def _check_unique(what: str, values: Iterable[object]) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise PolicyError(f"{what} {value!r} occurs twice")
        seen.add(value)

"""The questions that can be put to the policy, one constructor each, so that all parties ask them alike."""

from __future__ import annotations

from collections.abc import Collection

from governance.policy.decision import AccessRequest

KIND_GROUP, INDEX, STATISTIC, LOG = "KindGroup", "Index", "Statistic", "Log"
CONSORTIUM = "consortium"


def statistic_id(template: str, dataset: str) -> str:
    """The resource id of an inquiry template on a data set."""
    return f"{template}/{dataset}"


def lookup(caller: str, kind_group: str, purpose: str, quota: str, elements: int) -> AccessRequest:
    """``caller`` asks a key holder to evaluate ``elements`` blinded elements."""
    return AccessRequest(
        caller,
        "lookup",
        (KIND_GROUP, kind_group),
        {"purpose": purpose, "quota": quota, "elements": elements},
    )


def contribute(caller: str, kind_group: str, purpose: str, labels: int) -> AccessRequest:
    """``caller`` submits ``labels`` labels of one kind group to the index."""
    return AccessRequest(
        caller, "contribute", (KIND_GROUP, kind_group), {"purpose": purpose, "labels": labels}
    )


def mirror(caller: str, purpose: str = "indicator-sharing") -> AccessRequest:
    """``caller`` fetches the index's feed."""
    return AccessRequest(caller, "mirror", (INDEX, CONSORTIUM), {"purpose": purpose})


def inquire(
    requester: str,
    template: str,
    dataset: str,
    purpose: str,
    cells: int,
    days: int,
    cohort: Collection[str],
    privacy: str,
    mode: str,
) -> AccessRequest:
    """``requester`` asks a joint statistic of ``cohort``."""
    return AccessRequest(
        requester,
        "inquire",
        (STATISTIC, statistic_id(template, dataset)),
        {
            "purpose": purpose,
            "cells": cells,
            "days": days,
            "cohort_size": len(set(cohort)),
            "in_cohort": requester in cohort,
            "privacy": privacy,
            "mode": mode,
        },
    )


def take_part(
    member: str,
    requester: str,
    template: str,
    dataset: str,
    purpose: str,
    cells: int,
    cohort: Collection[str],
) -> AccessRequest:
    """``member`` contributes to an inquiry of ``requester``; every member decides this for itself."""
    return AccessRequest(
        member,
        "take-part",
        (STATISTIC, statistic_id(template, dataset)),
        {
            "requester": requester,
            "purpose": purpose,
            "cells": cells,
            "cohort_size": len(set(cohort)),
            "in_cohort": member in cohort,
            "requester_in_cohort": requester in cohort,
        },
    )


def read_log(party: str, own: bool) -> AccessRequest:
    """``party`` reads log entries: only those that name it if ``own``, else all."""
    return AccessRequest(party, "read-log", (LOG, CONSORTIUM), {"own": own})

"""Why something is asked, and from which allowance it is paid. The words travel on the wire and stand in the log."""

from __future__ import annotations

from enum import StrEnum


class Purpose(StrEnum):
    """Why a party asks. Policy decides which role may have which purpose for which action."""

    FRAUD_PREVENTION = "fraud-prevention"  # scoring looks up counterparties
    INVESTIGATION = "investigation"  # a person works on a case
    INDICATOR_SHARING = "indicator-sharing"  # contributing to the index and mirroring it
    JOINT_STATISTICS = "joint-statistics"  # inquiries
    OVERSIGHT = "oversight"  # a regulator reads


class Quota(StrEnum):
    """What an evaluation is counted against: new counterparties, or a bank's existing book once per epoch."""

    LOOKUP = "lookup"
    ENROLMENT = "enrolment"

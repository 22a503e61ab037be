"""The sandbox's own probe: one bank's key asks an inquiry that policy forbids, past its node's own check.

A member node refuses such a question itself and nothing would be seen. Signed with the bank's key and sent straight
to the coordinator, it shows that the coordinator decides too, refuses, and logs the refusal.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from crypto.he.contexts import RequesterKey
from governance.inquiries import CONFIRMED_FRAUDS, NONCE_SIZE
from governance.messages.inquiry import Inquiry, OpenInquiry
from governance.messages.policy import PolicyBundle
from governance.messages.problems import ProblemError
from governance.messages.roll import MembershipRoll
from governance.messages.signed import open_signed, sign_message
from governance.purposes import Purpose
from member_node.client.coordinator import HttpCoordinator
from member_node.client.signed_http import Caller, SignedHttp
from member_node.secret_files import read_identity
from member_node.settings import load_settings
from member_node.traffic import TrafficMeter, WireCapture


@dataclass(frozen=True)
class Probe:
    """``asked``: what ``party`` asked; ``refused``: whether the coordinator said no; ``answer``: in its words."""

    party: str
    asked: str
    refused: bool
    answer: str


def ask_too_much(directory: Path, policy: PolicyBundle, *, capture: Path | None = None) -> Probe:
    """Ask in the name of the bank of data ``directory`` for more days than ``policy`` allows in one inquiry."""
    settings = load_settings(directory)
    trust = settings.require_trust()
    public = settings.public_directory
    if public is None:
        raise ValueError(f"{settings.party} holds no public directory to ask about")
    days = 1 + max(rule.max_days for rule in policy.inquiries if rule.dataset == public.dataset)
    key = read_identity(directory)
    keys = {trust.coordinator: trust.coordinator_key, settings.party: key.verify_key}
    caller = Caller(
        settings.party,
        key,
        lambda: policy.policy_epoch,
        lambda: keys,
        lambda: int(time.time()),
        secrets.token_bytes,
    )
    http = SignedHttp(caller, TrafficMeter(), capture=None if capture is None else WireCapture(capture))
    try:
        coordinator = HttpCoordinator(http, trust.coordinator, settings.coordinator_url)
        roll = open_signed(MembershipRoll, coordinator.membership(), keys)
        context = RequesterKey.generate().public_context()
        inquiry = Inquiry(
            nonce=secrets.token_bytes(NONCE_SIZE),
            requester=settings.party,
            template=CONFIRMED_FRAUDS,
            dataset=public.dataset,
            purpose=Purpose.JOINT_STATISTICS,
            first_day=0,
            last_day=days - 1,
            cells=public.cells * days,
            privacy="none",
            mode="strict",
            roll_version=roll.version,
            policy_epoch=policy.policy_epoch,
            created_at=int(time.time()),
            context_digest=hashlib.sha256(context).digest(),
        )
        asked = f"the confirmed frauds of {days} days at once"
        try:
            coordinator.open_inquiry(
                OpenInquiry(inquiry=sign_message(inquiry, settings.party, key), context=context)
            )
        except ProblemError as error:
            return Probe(settings.party, asked, refused=True, answer=str(error))
        return Probe(settings.party, asked, refused=False, answer="permitted")
    finally:
        http.close()

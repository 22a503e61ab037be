"""Contributing indicators: findings of this bank become signed, sealed labels in the index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from crypto.signing import SigningKey
from governance.indicators import kind_group
from governance.messages.codec import encode
from governance.messages.index import MAX_LABELS, Label, Receipt, SubmitLabels, labels_digest
from governance.messages.problems import RequestError
from governance.messages.signed import Signed, open_signed, sign_message
from governance.policy import requests
from governance.purposes import Purpose
from member_node.client.ports import Clock, CoordinatorPort, Random
from member_node.service.labels import seal_label
from member_node.service.lookup import LookupService
from member_node.service.policy import Consortium
from member_node.storage.labels import LabelStore
from member_node.storage.trust import Fault, FaultStore

DAY_MS = 86_400_000
CLOCK_SLACK_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Finding:
    """What this bank found out about one value (which does not print). Times in unix milliseconds of business time."""

    kind: str
    value: str = field(repr=False)
    typology: str
    distinct_victims: int
    first_seen_ms: int
    last_seen_ms: int


class BrokenReceiptError(Exception):
    """The coordinator's receipt is not for what was submitted."""

    def __init__(self, party: str, reason: str) -> None:
        super().__init__(f"{party}: {reason}")
        self.party = party
        self.reason = reason


class ContributionService:
    """Looks up, seals, signs, submits, and keeps the receipts until the mirror has seen the labels."""

    def __init__(
        self,
        key: SigningKey,
        consortium: Consortium,
        port: CoordinatorPort,
        lookup: LookupService,
        store: LabelStore,
        faults: FaultStore,
        *,
        clock: Clock,
        random: Random,
    ) -> None:
        self._party = consortium.anchors.party
        self._key = key
        self._consortium = consortium
        self._port = port
        self._lookup = lookup
        self._store = store
        self._faults = faults
        self._clock = clock
        self._random = random

    def contribute(self, findings: Sequence[Finding], now_ms: int) -> int:
        """Submit one label per indicator found; the number accepted. Labels are issued at ``now_ms`` (business time).

        Of two findings on one indicator (two spellings) the last one counts; findings without normal form are left
        out. Raises what lookup, policy and the port raise, :class:`BrokenReceiptError`, and
        :class:`~governance.indicators.InvalidIndicatorError` for an unknown kind; batches that were accepted before
        stay accepted.
        """
        accepted = 0
        for group_name, group_findings in _by_group(findings).items():
            labels = self._make_labels(group_findings, now_ms)
            for start in range(0, len(labels), MAX_LABELS):
                accepted += self._submit(group_name, labels[start : start + MAX_LABELS])
        return accepted

    def _make_labels(self, findings: Sequence[Finding], now_ms: int) -> list[Signed]:
        by_kind: dict[str, list[Finding]] = {}
        for finding in findings:
            by_kind.setdefault(finding.kind, []).append(finding)
        labels: dict[tuple[str, bytes], Signed] = {}
        for kind, same in by_kind.items():
            rule = self._consortium.kind_rule(kind)
            self._lookup.tags(kind, [finding.value for finding in same])
            epoch = self._consortium.roll.epoch
            for finding in same:
                cached = self._lookup.cached(kind, finding.value)
                if cached is None:
                    continue
                label = Label(
                    typology=finding.typology,
                    grade="confirmed",
                    distinct_victims=finding.distinct_victims,
                    first_seen=finding.first_seen_ms,
                    last_seen=finding.last_seen_ms,
                )
                sealed = seal_label(
                    label,
                    cached.label_key,
                    epoch=epoch,
                    kind=kind,
                    tag=cached.tag,
                    contributor=self._party,
                    issued_at=now_ms,
                    expires_at=now_ms + rule.expiry_days * DAY_MS,
                    random=self._random,
                )
                labels[kind, cached.tag] = sign_message(sealed, self._party, self._key)
        # By tag, which is pseudorandom: any other order (the bank's own is by value) would tell of two opened labels
        # that every tag between them stands for a value between theirs.
        return [labels[key] for key in sorted(labels)]

    def _submit(self, group_name: str, labels: list[Signed]) -> int:
        decision = self._consortium.decide(
            requests.contribute(self._party, group_name, Purpose.INDICATOR_SHARING, len(labels))
        )
        decision.require()
        signed = self._port.submit_labels(SubmitLabels(purpose=Purpose.INDICATOR_SHARING, labels=labels))
        receipt = self._check_receipt(signed, labels)
        self._store.save_receipt(receipt.digest, encode(signed), receipt.merge_by)
        return receipt.accepted

    def _check_receipt(self, signed: Signed, labels: list[Signed]) -> Receipt:
        """A receipt signed by the coordinator for exactly this batch, with a merge time the policy allows."""
        coordinator = self._consortium.anchors.coordinator
        receipt = open_signed(Receipt, signed, self._consortium.verify_keys())
        latest = self._clock() + self._consortium.policy.merge_delay_seconds + CLOCK_SLACK_SECONDS
        wrong = ""
        if signed.signer != coordinator:
            wrong = f"the receipt is signed by {signed.signer}"
        elif receipt.contributor != self._party or receipt.digest != labels_digest(labels):
            wrong = "the receipt is for another batch than the one submitted"
        elif receipt.accepted != len(labels):
            wrong = f"the receipt accepts {receipt.accepted} of {len(labels)} labels"
        elif receipt.merge_by > latest:
            wrong = "the receipt promises to merge later than the policy allows"
        if wrong:
            self._faults.record(Fault(coordinator, self._clock(), "receipt", wrong, encode(signed)))
            raise BrokenReceiptError(coordinator, wrong)
        return receipt


def _by_group(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.distinct_victims < 0 or not 0 <= finding.first_seen_ms <= finding.last_seen_ms:
            raise RequestError(
                "malformed", f"{finding.kind}: victims and times of a finding are not negative or reversed"
            )
        groups.setdefault(kind_group(finding.kind), []).append(finding)
    return groups

"""The index of tags: takes in signed batches of labels and serves them as a feed of deltas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coordinator.service.consortium import Consortium
from coordinator.service.log import GovernanceLog, LogTransaction
from coordinator.service.permission import Permission, log_refusal, make_refusal
from coordinator.storage import budgets
from coordinator.storage import index as stored
from coordinator.storage.database import Database
from coordinator.storage.index import StoredDelta
from crypto.signing import SigningKey
from governance.log.entries import DeltaEntry
from governance.messages.index import (
    MAX_LABELS,
    TAG_SIZE,
    Delta,
    Deltas,
    Receipt,
    SealedLabel,
    SubmitLabels,
    labels_digest,
)
from governance.messages.policy import KindRule
from governance.messages.problems import RequestError
from governance.messages.signed import Signed, open_signed, sign_message
from governance.policy import requests
from governance.purposes import Purpose

MAX_DELTAS = 64
MAX_PAGE_LABELS = 8192
MAX_SEALED_BYTES = 1024
DAY_MS = 86_400_000
SECONDS_PER_DAY = 86_400
LABELS_BUDGET = "labels"
BUDGET_RULE = "label-budget"


class IndexService:
    """Accepts labels of their contributor only, once each batch, in the order of their arrival."""

    def __init__(
        self,
        database: Database,
        log: GovernanceLog,
        consortium: Consortium,
        permission: Permission,
        *,
        key: SigningKey,
        label_clock: str,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._log = log
        self._consortium = consortium
        self._permission = permission
        self._key = key
        self._label_clock = label_clock
        self._clock = clock
        self._kinds = {rule.kind: rule for rule in consortium.policy.kinds}

    def submit(self, caller: str, message: SubmitLabels) -> Signed:
        """Take in a batch and return the signed :class:`Receipt`; the same batch again gets the same receipt."""
        batch = self._verified(caller, message.labels)
        digest = labels_digest(message.labels)
        by_group: dict[str, int] = {}
        for label, _ in batch:
            group = self._kinds[label.kind].kind_group
            by_group[group] = by_group.get(group, 0) + 1
        for group, count in sorted(by_group.items()):
            self._permission.require(
                requests.contribute(caller, group, message.purpose, count), message.purpose
            )
        with self._log.transaction() as transaction:
            delta = stored.find_delta(transaction.connection, caller, digest)
            if delta is None:
                self._check_present(transaction, caller, batch)
                if self._spend(transaction, caller, message.purpose, len(batch)):
                    delta = self._take_in(transaction, caller, message.purpose, digest, batch)
        if delta is None:
            limit = self._consortium.policy.labels_per_day
            raise RequestError(
                "budget-exceeded", f"{len(batch)} labels are more than is left of {limit} a day", caller
            )
        receipt = Receipt(contributor=caller, digest=digest, accepted=delta.accepted, merge_by=delta.merge_by)
        return sign_message(receipt, self._consortium.party, self._key)

    def deltas(self, caller: str, after: int, since: int) -> Deltas:
        """The page of the feed after delta number ``after``; at most 64 deltas and about 8,192 labels."""
        self._permission.require_read(requests.mirror(caller), str(Purpose.INDICATOR_SHARING))
        head = self._log.head
        with self._database.read() as connection:
            last = stored.last_number(connection)
            if after > last:
                raise RequestError("conflict", f"the feed ends at delta {last}, there is no {after}", caller)
            page = [
                delta
                for delta in stored.deltas_after(connection, after, MAX_DELTAS, MAX_PAGE_LABELS)
                if delta.entry_index < head.size
            ]
            labels = stored.labels_between(connection, page[0].number, page[-1].number) if page else {}
        return Deltas(
            after=after,
            last=last,
            checkpoint=self._log.update(since, head),
            deltas=[
                Delta(
                    number=delta.number,
                    labels=labels[delta.number],
                    entry=self._log.logged(delta.entry_index, head),
                )
                for delta in page
            ],
        )

    def _verified(self, caller: str, envelopes: Sequence[Signed]) -> list[tuple[SealedLabel, Signed]]:
        if not envelopes:
            raise RequestError("malformed", "a batch has at least one label", caller)
        if len(envelopes) > MAX_LABELS:
            raise RequestError(
                "too-large", f"{len(envelopes)} labels, at most {MAX_LABELS} are accepted", caller
            )
        batch = []
        seen: set[tuple[str, bytes]] = set()
        for position, envelope in enumerate(envelopes):
            label = open_signed(SealedLabel, envelope, self._consortium.keys)
            if (envelope.signer, label.contributor) != (caller, caller):
                raise RequestError(
                    "refused",
                    f"label {position} is of {label.contributor}: only a contributor itself submits",
                    caller,
                )
            self._check_label(position, label)
            if (label.kind, label.tag) in seen:
                raise RequestError("malformed", f"label {position} repeats a tag of the batch", caller)
            seen.add((label.kind, label.tag))
            batch.append((label, envelope))
        return batch

    def _check_label(self, position: int, label: SealedLabel) -> None:
        rule: KindRule | None = self._kinds.get(label.kind)
        who = label.contributor
        if rule is None:
            raise RequestError("malformed", f"label {position} is of a kind the policy does not know", who)
        if label.epoch != self._consortium.roll.epoch:
            raise RequestError(
                "stale-epoch",
                f"label {position} is of key epoch {label.epoch}, not {self._consortium.roll.epoch}",
                who,
            )
        if len(label.tag) != TAG_SIZE or not 0 < len(label.sealed) <= MAX_SEALED_BYTES:
            raise RequestError(
                "malformed",
                f"label {position}: a tag has {TAG_SIZE} bytes, a sealed label at most {MAX_SEALED_BYTES}",
                who,
            )
        if not 0 < label.expires_at - label.issued_at <= rule.expiry_days * DAY_MS or label.issued_at < 0:
            raise RequestError(
                "malformed",
                f"label {position} does not expire within {rule.expiry_days} days after its issue",
                who,
            )

    def _check_present(
        self, transaction: LogTransaction, caller: str, batch: Sequence[tuple[SealedLabel, Signed]]
    ) -> None:
        """Refuse what has expired; which clock says so is a setting (see :class:`Settings`)."""
        if self._label_clock == "wall":
            present = int(self._clock() * 1000)
        else:
            newest = max(label.issued_at for label, _ in batch)
            present = max(newest, stored.newest_issue(transaction.connection, caller))
        for position, (label, _) in enumerate(batch):
            if label.expires_at <= present:
                raise RequestError(
                    "conflict", f"label {position} has expired: issue it anew or leave it out", caller
                )
            if label.issued_at > present:
                raise RequestError(
                    "conflict", f"label {position} is issued in the future: set the clock", caller
                )

    def _spend(self, transaction: LogTransaction, caller: str, purpose: str, labels: int) -> bool:
        """Spend ``labels`` of the caller's day, or log that they are refused and return False."""
        policy = self._consortium.policy
        day = transaction.at // SECONDS_PER_DAY
        if budgets.spend(
            transaction.connection,
            caller,
            LABELS_BUDGET,
            period=day,
            amount=labels,
            limit=policy.labels_per_day,
        ):
            return True
        resource = f"{requests.INDEX}/{requests.CONSORTIUM}"
        reason = "the daily budget of labels is spent"
        refusal = make_refusal(
            caller, "contribute", resource, purpose, reason, BUDGET_RULE, policy.policy_epoch
        )
        log_refusal(transaction, refusal)
        return False

    def _take_in(
        self,
        transaction: LogTransaction,
        caller: str,
        purpose: str,
        digest: bytes,
        batch: Sequence[tuple[SealedLabel, Signed]],
    ) -> StoredDelta:
        number = stored.last_number(transaction.connection) + 1
        entry = DeltaEntry(
            at=transaction.at,
            parties=list(self._consortium.everyone),
            number=number,
            digest=digest.hex(),
            contributor=caller,
            purpose=purpose,
            labels=len(batch),
            kinds=sorted({label.kind for label, _ in batch}),
        )
        delta = StoredDelta(
            number=number,
            contributor=caller,
            digest=digest,
            accepted=len(batch),
            merge_by=transaction.at + self._consortium.policy.merge_delay_seconds,
            entry_index=transaction.append(entry),
        )
        stored.add_delta(transaction.connection, delta, batch)
        return delta

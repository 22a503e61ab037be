"""The mirror of the index: each delta verified against the log, each label against its contributor, opened where
this bank knows the tag. Nobody is asked to open a label, so an indicator that arrives today is matched with every
value this bank has ever looked up."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from crypto.errors import CryptoError
from governance.log.entries import DeltaEntry
from governance.log.follow import TrustedLog, UnprovenEntryError
from governance.messages.codec import MalformedError
from governance.messages.index import MAX_LABELS, Delta, Deltas, SealedLabel, labels_digest
from governance.messages.log import CheckpointUpdate, LogPage
from governance.messages.signed import Signed, open_signed
from member_node.client.ports import Clock, CoordinatorPort
from member_node.service.labels import LabelView, check_sealed, open_label
from member_node.service.policy import Consortium
from member_node.service.tag_cache import CachedTag, TagCache
from member_node.storage.labels import AppliedDelta, LabelStore
from member_node.storage.trust import Fault, FaultStore

DAY_MS = 86_400_000
LOG_PAGE = 256


class FeedError(Exception):
    """The feed contradicts itself or the log; nothing of the delta is applied and the coordinator is at fault."""

    def __init__(self, party: str, reason: str) -> None:
        super().__init__(f"{party}: {reason}")
        self.party = party
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Match:
    """A new label on something this bank has looked up before; ``value`` is the normal form and does not print."""

    kind: str
    value: str = field(repr=False)
    contributor: str


@dataclass(frozen=True)
class SyncReport:
    """What a sync applied. ``refused``: one text per label that was left out, naming its contributor.

    ``behind``: deltas that the log shows and the feed did not serve; with ``overdue_receipts`` it is 0 unless the
    coordinator keeps something back.
    """

    deltas: int
    labels: int
    refused: tuple[str, ...]
    matches: tuple[Match, ...]
    overdue_receipts: int
    behind: int = 0


class IndexMirror:
    """The index in memory and on disk. Thread safe."""

    def __init__(
        self,
        consortium: Consortium,
        port: CoordinatorPort,
        store: LabelStore,
        cache: TagCache,
        faults: FaultStore,
        *,
        clock: Clock,
    ) -> None:
        self._consortium = consortium
        self._port = port
        self._store = store
        self._cache = cache
        self._faults = faults
        self._clock = clock
        self._sync_lock = threading.Lock()
        self._lock = threading.RLock()
        self._epoch = 0
        # (kind, tag) -> contributor -> its latest label, and the same opened (made when first asked).
        self._sealed: dict[tuple[str, bytes], dict[str, SealedLabel]] = {}
        self._opened: dict[tuple[str, bytes], tuple[LabelView, ...]] = {}
        self._blamed: set[tuple[str, bytes]] = set()
        # Up to which log index deltas were looked for, and the newest number that was found.
        self._searched = store.last_log_index() + 1
        self._newest_logged = 0

    def sync(self, now_ms: int) -> SyncReport:
        """Fetch and apply all deltas there are; ``now_ms`` is the bank's business time and bounds nothing yet issued.

        Raises what the port raises, :class:`FeedError` or :class:`~governance.log.follow.LogFollowError` (coordinator
        at fault; what was applied before stays), and :class:`~governance.policy.decision.RefusedError`.
        """
        del now_ms  # labels carry business times; the reader of evidence() compares them with its own
        with self._sync_lock:
            self._consortium.require_fresh()
            self._use_epoch()
            deltas = labels = 0
            refused: list[str] = []
            matches: list[Match] = []
            while True:
                after = self._store.last_delta()
                page, log = self._consortium.follow(partial(self._port.deltas, after), _checkpoint_of)
                if page.after != after:
                    raise self._feed_error("answers for another place in the feed than was asked")
                if page.last < after + len(page.deltas):
                    raise self._feed_error(
                        f"ends the feed at delta {page.last}, after {after + len(page.deltas)} was served"
                    )
                for offset, delta in enumerate(page.deltas, start=1):
                    accepted = self._apply(delta, after + offset, log, refused)
                    deltas += 1
                    labels += len(accepted)
                    matches.extend(self._matches(accepted))
                if not page.deltas or after + len(page.deltas) >= page.last:
                    break
            behind = self._find_hidden(log.size)
            overdue = self._find_overdue()
            return SyncReport(deltas, labels, tuple(refused), tuple(matches), overdue, behind)

    def _find_hidden(self, size: int) -> int:
        """How many of the deltas among the log's first ``size`` entries the feed has not served; a fault if any.

        Only entries that are new since the last search are read: nothing while the log has not grown. What is
        appended while the pages are under way has an index from ``size`` on and is left to the next sync.
        """
        while self._searched < size:
            first = self._searched
            page, log = self._consortium.follow(partial(self._port.log, first, LOG_PAGE), _checkpoint_of)
            for logged in page.entries:
                try:
                    entry = log.verify_entry(logged)
                except UnprovenEntryError as error:
                    raise self._feed_error(f"serves a log entry that is not in the log: {error}") from error
                if isinstance(entry, DeltaEntry) and logged.index < size:
                    self._newest_logged = max(self._newest_logged, entry.number)
            indices = [logged.index for logged in page.entries]
            if indices != sorted(set(indices)) or (indices and indices[0] < first):
                raise self._feed_error("serves log entries out of their order")
            self._searched = size if len(indices) < LOG_PAGE else min(size, indices[-1] + 1)
        last = self._store.last_delta()
        behind = max(0, self._newest_logged - last)
        if behind:
            reason = f"ends the feed at delta {last}, the log shows delta {self._newest_logged}"
            self._record_once("feed", reason, b"")
        return behind

    def _find_overdue(self) -> int:
        """How many batches the coordinator promised to merge by now and did not; each receipt proves a fault."""
        overdue = self._store.overdue_receipts(self._clock())
        for receipt in overdue:
            reason = f"batch {receipt.digest.hex()[:16]} was to be merged by {receipt.merge_by} and is not"
            self._record_once("receipt", reason, receipt.envelope)
        return len(overdue)

    def _record_once(self, what: str, reason: str, evidence: bytes) -> None:
        self._faults.record_once(
            Fault(self._consortium.anchors.coordinator, self._clock(), what, reason, evidence)
        )

    def evidence(self, kind: str, values: Sequence[str]) -> dict[str, tuple[LabelView, ...]]:
        """The latest label of each contributor on each value that is in the tag cache.

        ``values`` in a spelling that was given to ``LookupService.tags``. Only values with at least one label that
        opens and verifies appear; expired labels are included, so that the caller judges by its business time.
        """
        self._use_epoch()
        known = self._cache.values_of(kind)
        sealed = self._sealed
        found: dict[str, tuple[LabelView, ...]] = {}
        for value in values:
            cached = known.get(value)
            if cached is not None and (kind, cached.tag) in sealed:
                views = self._open(cached)
                if views:
                    found[value] = views
        return found

    def label_count(self) -> int:
        """Labels held, opened or not."""
        with self._lock:
            return sum(len(each) for each in self._sealed.values())

    def last_delta(self) -> int:
        """Number of the newest delta applied."""
        return self._store.last_delta()

    def _use_epoch(self) -> None:
        epoch = self._consortium.roll.epoch
        if epoch == self._epoch:
            return
        self._cache.use_epoch(epoch)
        with self._lock:
            self._sealed.clear()
            self._opened.clear()
            for label in self._store.labels(epoch):
                self._sealed.setdefault((label.kind, label.tag), {})[label.contributor] = label
            self._epoch = epoch

    def _apply(self, delta: Delta, number: int, log: TrustedLog, refused: list[str]) -> list[SealedLabel]:
        """Verify one delta against the log, then its labels one by one, store, and only then show them."""
        entry = self._verified_entry(delta, number, log)
        accepted: list[SealedLabel] = []
        for signed in delta.labels:
            label, wrong = self._check_label(signed, entry.contributor)
            if label is not None and not wrong:
                accepted.append(label)
            else:
                refused.append(f"delta {number}: a label of {entry.contributor} {wrong}")
        if len(accepted) < len(delta.labels):
            reason = f"delta {number}: {len(delta.labels) - len(accepted)} labels that must not be used"
            self._faults.record(Fault(entry.contributor, self._clock(), "label", reason, b""))
        applied = AppliedDelta(
            number, entry.contributor, bytes.fromhex(entry.digest), len(accepted), delta.entry.index
        )
        self._store.apply(applied, accepted)
        with self._lock:
            for label in accepted:
                key = (label.kind, label.tag)
                mine = self._sealed.setdefault(key, {})
                known = mine.get(label.contributor)
                if known is None or known.issued_at <= label.issued_at:
                    mine[label.contributor] = label
                    self._opened.pop(key, None)
        return accepted

    def _verified_entry(self, delta: Delta, number: int, log: TrustedLog) -> DeltaEntry:
        if delta.number != number:
            raise self._feed_error(f"sends delta {delta.number} where {number} should follow")
        if not 1 <= len(delta.labels) <= MAX_LABELS:
            raise self._feed_error(f"delta {number} has {len(delta.labels)} labels")
        try:
            entry = log.verify_entry(delta.entry)
        except UnprovenEntryError as error:
            raise self._feed_error(f"delta {number} is not in the log: {error}") from error
        if not isinstance(entry, DeltaEntry) or entry.number != number:
            raise self._feed_error(f"delta {number} comes with the log entry of something else")
        if bytes.fromhex(entry.digest) != labels_digest(delta.labels) or entry.labels != len(delta.labels):
            raise self._feed_error(f"delta {number} has other labels than the log says")
        return entry

    def _check_label(self, signed: Signed, contributor: str) -> tuple[SealedLabel | None, str]:
        try:
            label = open_signed(SealedLabel, signed, self._consortium.verify_keys())
        except (CryptoError, MalformedError) as error:
            return None, f"is not valid: {error}"
        if signed.signer != contributor:
            return None, f"is signed by {signed.signer}"
        rules = {rule.kind: rule for rule in self._consortium.policy.kinds}
        rule = rules.get(label.kind)
        wrong = check_sealed(
            label,
            contributor=contributor,
            epoch=self._epoch,
            kinds=frozenset(rules),
            max_life_ms=0 if rule is None else rule.expiry_days * DAY_MS,
        )
        return label, wrong

    def _matches(self, labels: Sequence[SealedLabel]) -> list[Match]:
        matches = []
        for label in labels:
            cached = self._cache.find_tag(label.kind, label.tag)
            if cached is not None and any(v.contributor == label.contributor for v in self._open(cached)):
                matches.append(Match(label.kind, cached.text, label.contributor))
        return matches

    def _open(self, cached: CachedTag) -> tuple[LabelView, ...]:
        key = (cached.kind, cached.tag)
        views = self._opened.get(key)
        if views is not None:
            return views
        with self._lock:
            opened = []
            for contributor, sealed in sorted(self._sealed.get(key, {}).items()):
                view = open_label(sealed, cached.label_key)
                if view is not None:
                    opened.append(view)
                elif (contributor, sealed.sealed) not in self._blamed:
                    self._blamed.add((contributor, sealed.sealed))
                    reason = "a label that does not open under its tag"
                    self._faults.record(Fault(contributor, self._clock(), "label", reason, b""))
            self._opened[key] = tuple(opened)
            return self._opened[key]

    def _feed_error(self, reason: str) -> FeedError:
        party = self._consortium.anchors.coordinator
        self._faults.record(Fault(party, self._clock(), "feed", reason, b""))
        return FeedError(party, reason)


def _checkpoint_of(page: Deltas | LogPage) -> CheckpointUpdate:
    return page.checkpoint

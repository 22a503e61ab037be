"""Labels in, deltas out."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

import coordinator.service.index
from coordinator.export import export_log
from governance.log.entries import DeltaEntry, RefusalEntry, decode_entry
from governance.messages.index import Deltas, Receipt, labels_digest
from governance.messages.log import LogPage
from governance.messages.signed import Signed, open_signed
from governance.policy.default import default_bundle

LABELS = "/v1/index/labels"
BANKS = ("bank-a", "bank-b", "bank-c")
START_MS = 1_800_000_000_000
DAY_MS = 86_400_000


def submit(consortium, party, batch):
    keys = {"coordinator": bytes.fromhex(consortium.anchors.card.verify_key)}
    return open_signed(Receipt, consortium.post(party, LABELS, batch, Signed), keys)


def feed(consortium, party="bank-b", after=0, since=0):
    return consortium.get(party, f"/v1/index/deltas?after={after}&since={since}", Deltas)


def refuse(consortium, party, batch):
    before = feed(consortium), consortium.coordinator.log.head.size
    problem = consortium.refused(party, "POST", LABELS, batch)
    assert (feed(consortium), consortium.coordinator.log.head.size) == before
    assert problem.fix
    assert problem.party == party
    return problem.name


def test_a_batch_becomes_a_delta(consortium):
    batch = consortium.batch(consortium.label("bank-a"), consortium.label("bank-a", kind="iban"))
    receipt = submit(consortium, "bank-a", batch)
    assert receipt == Receipt(
        contributor="bank-a",
        digest=labels_digest(batch.labels),
        accepted=2,
        merge_by=int(consortium.clock.now) + 60,
    )
    page = feed(consortium)
    assert (page.after, page.last) == (0, 1)
    [delta] = page.deltas
    assert delta.labels == batch.labels
    trusted = consortium.trusted().advance(page.checkpoint, now=int(consortium.clock.now), max_age=300)
    entry = trusted.verify_entry(delta.entry)
    assert isinstance(entry, DeltaEntry)
    assert (entry.number, entry.digest, entry.contributor) == (1, receipt.digest.hex(), "bank-a")
    assert (entry.labels, entry.kinds, entry.purpose) == (2, ["iban", "terminal"], "indicator-sharing")
    assert feed(consortium, after=1, since=trusted.size).deltas == []
    assert consortium.refused("bank-b", "GET", "/v1/index/deltas?after=2").name == "conflict"


def test_the_same_batch_again_gets_the_same_receipt(consortium):
    batch = consortium.batch(consortium.label("bank-a"))
    first = submit(consortium, "bank-a", batch)
    consortium.clock.now += 10
    assert submit(consortium, "bank-a", batch) == first
    assert feed(consortium).last == 1


def test_labels_of_others(consortium):
    assert refuse(consortium, "bank-b", consortium.batch(consortium.label("bank-a"))) == "refused"
    borrowed = consortium.batch(consortium.label("bank-a", signer="bank-b"))
    assert refuse(consortium, "bank-b", borrowed) == "refused"
    forged = msgspec.structs.replace(consortium.label("bank-a"), signature=bytes(64))
    assert refuse(consortium, "bank-a", consortium.batch(forged)) == "invalid-signature"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"epoch": 2}, "stale-epoch"),
        ({"epoch": 0}, "stale-epoch"),
        ({"kind": "passport"}, "malformed"),
        ({"tag": bytes(15)}, "malformed"),
        ({"sealed": b""}, "malformed"),
        ({"sealed": bytes(1025)}, "malformed"),
        ({"expires_at": START_MS}, "malformed"),
        ({"expires_at": START_MS + 7 * DAY_MS + 1}, "malformed"),
        ({"issued_at": -1, "expires_at": 1}, "malformed"),
    ],
)
def test_wrong_labels(consortium, changes, name):
    batch = consortium.batch(consortium.label("bank-a"), consortium.label("bank-a", **changes))
    assert refuse(consortium, "bank-a", batch) == name


def test_empty_large_and_repeating_batches(consortium):
    assert refuse(consortium, "bank-a", consortium.batch()) == "malformed"
    label = consortium.label("bank-a")
    assert refuse(consortium, "bank-a", consortium.batch(*2049 * [label])) == "too-large"
    assert refuse(consortium, "bank-a", consortium.batch(label, label)) == "malformed"


def test_expired_labels_by_business_time(consortium):
    old = consortium.label("bank-a")
    new = consortium.label("bank-a", issued_at=START_MS + DAY_MS, expires_at=START_MS + 2 * DAY_MS)
    assert refuse(consortium, "bank-a", consortium.batch(old, new)) == "conflict"
    submit(consortium, "bank-a", consortium.batch(new))
    assert refuse(consortium, "bank-a", consortium.batch(old)) == "conflict"
    submit(consortium, "bank-b", consortium.batch(consortium.label("bank-b")))


def test_expired_labels_by_the_wall_clock(idle, start):
    consortium = idle
    settings = consortium.directory / "coordinator.toml"
    settings.write_text(settings.read_text().replace('"business"', '"wall"'))
    start(consortium)
    submit(consortium, "bank-a", consortium.batch(consortium.label("bank-a")))
    future = consortium.label("bank-a", issued_at=START_MS + 1)
    assert refuse(consortium, "bank-a", consortium.batch(future)) == "conflict"
    consortium.clock.now += 86_400
    consortium.coordinator.permission.close_due()
    assert refuse(consortium, "bank-a", consortium.batch(consortium.label("bank-a"))) == "conflict"


def test_policy_refusals_are_logged(consortium, tmp_path: Path):
    cases = [
        ("bank-a", "curiosity", "contribute"),
        ("regulator", "indicator-sharing", "contribute"),
        ("bank-b", 300 * "x", "contribute"),
    ]
    for party, purpose, action in cases:
        batch = consortium.batch(consortium.label(party), purpose=purpose)
        problem = consortium.refused(party, "POST", LABELS, batch)
        assert (problem.name, problem.status, problem.party) == ("refused", 403, party)
        page = consortium.get("regulator", "/v1/log?count=500", LogPage)
        entry = decode_entry(page.entries[-1].body)
        assert isinstance(entry, RefusalEntry)
        assert (entry.party, entry.action, entry.resource) == (party, action, "KindGroup/terminals")
        assert entry.purpose == purpose[:128]
    assert consortium.refused("regulator", "GET", "/v1/index/deltas").name == "refused"
    assert feed(consortium).last == 0
    assert export_log(consortium.directory, tmp_path / "out").refusals() == 4


def test_a_contributor_has_a_daily_budget_of_labels(tmp_path: Path, start, set_up_with):
    bundle = msgspec.structs.replace(default_bundle(), labels_per_day=5)
    consortium = start(set_up_with(tmp_path / "c", bundle))

    def batch(party, count):
        return consortium.batch(*(consortium.label(party) for _ in range(count)))

    first = batch("bank-a", 3)
    receipt = submit(consortium, "bank-a", first)
    for _ in range(3):
        problem = consortium.refused("bank-a", "POST", LABELS, batch("bank-a", 3))
        assert (problem.name, problem.status, problem.party) == ("budget-exceeded", 429, "bank-a")
    entry = consortium.entries()[-1]
    assert isinstance(entry, RefusalEntry)
    assert (entry.party, entry.action, entry.rule) == ("bank-a", "contribute", "label-budget")
    assert feed(consortium).last == 1
    # what was accepted before costs nothing again, what still fits is accepted, others have budgets of their own
    assert submit(consortium, "bank-a", first) == receipt
    submit(consortium, "bank-a", batch("bank-a", 2))
    assert consortium.refused("bank-a", "POST", LABELS, batch("bank-a", 1)).name == "budget-exceeded"
    submit(consortium, "bank-b", batch("bank-b", 5))
    # a clock that goes back renews nothing, another day does
    consortium.clock.now -= 86_400
    assert consortium.refused("bank-a", "POST", LABELS, batch("bank-a", 1)).name == "budget-exceeded"
    consortium.clock.now += 2 * 86_400
    submit(consortium, "bank-a", batch("bank-a", 5))
    assert export_log(consortium.directory, tmp_path / "out").refusals() == 5


def test_many_contributors_at_once(consortium):
    """Deltas have no gaps and the log follows itself, whatever the interleaving."""
    batches = {bank: [consortium.batch(consortium.label(bank)) for _ in range(12)] for bank in BANKS}
    failures: list[BaseException] = []

    def contribute(bank):
        try:
            for batch in batches[bank]:
                consortium.coordinator.index.submit(bank, batch)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=contribute, args=(bank,)) for bank in BANKS for _ in range(2)]
    for thread in threads:
        thread.start()
    trusted = consortium.trusted()
    while any(thread.is_alive() for thread in threads):
        page = consortium.coordinator.index.deltas("bank-b", 0, trusted.size)
        trusted = trusted.advance(page.checkpoint, now=int(consortium.clock.now), max_age=300)
        for delta in page.deltas:
            trusted.verify_entry(delta.entry)
    for thread in threads:
        thread.join()
    assert not failures
    page = feed(consortium)
    assert [delta.number for delta in page.deltas] == list(range(1, 37))
    assert {labels_digest(delta.labels) for delta in page.deltas} == {
        labels_digest(batch.labels) for bank in BANKS for batch in batches[bank]
    }


def test_pages(consortium):
    for _ in range(70):
        consortium.coordinator.index.submit("bank-a", consortium.batch(consortium.label("bank-a")))
    first = feed(consortium)
    assert (len(first.deltas), first.last) == (64, 70)
    assert [delta.number for delta in feed(consortium, after=64).deltas] == list(range(65, 71))


def test_a_page_ends_before_too_many_labels(consortium, monkeypatch):
    monkeypatch.setattr(coordinator.service.index, "MAX_PAGE_LABELS", 25)
    for size in (10, 10, 10, 30, 1):
        labels = [consortium.label("bank-a") for _ in range(size)]
        consortium.coordinator.index.submit("bank-a", consortium.batch(*labels))
    pages = [feed(consortium, after=after).deltas for after in (0, 2, 3, 4)]
    assert [[delta.number for delta in page] for page in pages] == [[1, 2], [3], [4], [5]]

"""What a coordinator's database shows, read from one that the coordinator's own storage wrote."""

from contextlib import closing

import pytest

from coordinator.storage import index
from coordinator.storage import inquiries as stored
from coordinator.storage.database import Database
from governance.messages.index import SealedLabel
from governance.messages.signed import Signed
from sandbox.coordinator_view import KindView, inquiries_owed, read_view


def label(contributor, kind, tag):
    fields = dict.fromkeys(SealedLabel.__struct_fields__, 0)
    fields |= {"contributor": contributor, "kind": kind, "tag": tag * 16, "issued_at": 1, "expires_at": 2}
    return SealedLabel(**fields), Signed(signer=contributor, payload=b"p" * 10, signature=b"s" * 64)


BATCHES = [
    ("bank-a", [("iban", b"1"), ("iban", b"2"), ("terminal", b"3")]),
    ("bank-b", [("iban", b"1"), ("terminal", b"4")]),
    ("bank-a", [("iban", b"2")]),  # renewed by the same bank: not of several
]


@pytest.fixture
def directory(tmp_path):
    with closing(Database.in_directory(tmp_path)) as database, database.write() as connection:
        for number, (contributor, labels) in enumerate(BATCHES, start=1):
            delta = index.StoredDelta(number, contributor, bytes([number]) * 32, len(labels), 0, number)
            index.add_delta(connection, delta, [label(contributor, *each) for each in labels])
        for number, state in enumerate(("keys", "contributions", "closed")):
            inquiry = stored.StoredInquiry(
                inquiry_id=bytes([number]) * 32,
                requester="bank-a",
                signed=Signed(signer="bank-a", payload=b"q", signature=b"s" * 64),
                context=b"",
                cohort=("bank-a", "bank-b", "bank-c"),
                state=state,
                opened_at=0,
                deadline=0,
                intent_index=0,
            )
            stored.add_inquiry(connection, inquiry)
        sent = Signed(signer="bank-b", payload=b"c", signature=b"s" * 64)
        message = stored.StoredMessage("contribution", "bank-b", b"d" * 32, sent)
        for number in (1, 2):
            stored.add_message(connection, bytes([number]) * 32, message)
        stored.erase_contributions(connection, b"\x02" * 32)
    return tmp_path


def test_equal_tags_of_several_banks_are_counted(directory):
    view = read_view(directory)
    assert view.deltas == 3
    assert view.kinds == (
        KindView("iban", labels=4, tags=2, tags_of_several=1, bytes=4 * 74),
        KindView("terminal", labels=2, tags=2, tags_of_several=0, bytes=2 * 74),
    )
    assert (view.inquiries, view.contributions_kept, view.log_entries) == (3, 1, 0)


def test_open_inquiries_wait_for_those_who_have_not_contributed(directory):
    assert inquiries_owed(directory, "bank-a") == 2
    assert inquiries_owed(directory, "bank-b") == 1


def test_reading_changes_nothing(directory):
    before = (directory / "coordinator.sqlite3").read_bytes()
    read_view(directory)
    assert (directory / "coordinator.sqlite3").read_bytes() == before

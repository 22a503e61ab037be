"""The offline audit: accepts an honest export, refuses it after any single byte change, and reads its meaning."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from crypto.signing import SigningKey
from governance.log import evidence
from governance.log.audit import prove_entry, verify_entry_proof, verify_export
from governance.log.cli import app
from governance.log.entries import entry_type
from governance.log.export import FILES, AuditError, RawEntry, decode_line, encode_line, write_export
from governance.log.history import NEXT
from governance.log.notes import verifier_key
from governance.messages.inquiry import Outcome, Veto

BANKS = ["bank-a", "bank-b", "bank-c"]
AT = 1_790_000_000


def test_honest_export(sample_log: Any, tmp_path: Path) -> None:
    directory = sample_log.export(tmp_path / "export")
    report = verify_export(directory, sample_log.verifier)
    assert report.size == len(sample_log.entries)
    assert report.root == sample_log.tree().root().hex()
    assert report.key_pinned
    assert report.members == BANKS
    assert report.policy_epoch == 1
    assert sum(report.entries.values()) == report.size
    assert report.inquiries == {"closed": 1, "expired": 1, "refused": 1, "vetoed": 1}
    rows = {(row.party, row.action, row.decision): row for row in report.requests}
    assert rows["bank-a", "evaluate", "permitted"].amount == 400
    assert rows["bank-a", "evaluate", "refused"].reason == "budget exceeded"
    assert rows["bank-b", "contribute", "permitted"].amount == 3
    assert rows["bank-b", "inquire", "refused"].purpose == "curiosity"
    assert rows["bank-c", "mirror", "refused"].requests == 1
    assert report.refusals() == 4 + 1 + 1
    assert not verify_export(directory, None).key_pinned


@pytest.mark.parametrize("pinned", [True, False])
def test_any_changed_byte_is_refused(sample_log: Any, tmp_path: Path, pinned: bool) -> None:
    """Every byte of the small files; of the entries all structure, and of the rest one byte in seven."""
    directory = sample_log.export(tmp_path / "export")
    key = sample_log.verifier if pinned else None
    verify_export(directory, key)
    chance = random.Random(5)
    tried = 0
    for name in sorted(FILES):
        path = directory / name
        raw = path.read_bytes()
        for position in range(len(raw)):
            structural = raw[position] in b'{}[],:"\n'
            if name == "entries.jsonl" and position % 7 and (pinned or not structural):
                continue
            changed = bytearray(raw)
            changed[position] ^= chance.choice((0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80))
            path.write_bytes(changed)
            with pytest.raises(AuditError):
                verify_export(directory, key)
            tried += 1
        path.write_bytes(raw)
    assert tried > 2000
    verify_export(directory, key)


def test_all_values_of_structural_bytes(sample_log: Any, tmp_path: Path) -> None:
    """The ends of files, of lines and of base64 are where a lax parser accepts a second spelling."""
    directory = sample_log.export(tmp_path / "export")
    for name in sorted(FILES):
        path = directory / name
        raw = path.read_bytes()
        places = {0, 1, len(raw) - 1, len(raw) - 2, len(raw) - 3, raw.find(b"\n"), raw.find(b"=")} - {-1}
        for position in places:
            for value in set(range(0, 256, 5)) | set(b'\n\r\t ="{}A0') - {raw[position]}:
                if value == raw[position]:
                    continue
                path.write_bytes(raw[:position] + bytes([value]) + raw[position + 1 :])
                with pytest.raises(AuditError):
                    verify_export(directory, None)
        for changed in (raw + b"\n", raw + b" ", raw[:-1], b"\n" + raw, b"", raw * 2, b"\xef\xbb\xbf" + raw):
            path.write_bytes(changed)
            with pytest.raises(AuditError):
                verify_export(directory, None)
        path.write_bytes(raw)


def test_files_that_are_missing_or_do_not_belong(sample_log: Any, tmp_path: Path) -> None:
    directory = sample_log.export(tmp_path / "export")
    extra = directory / "notes.txt"
    extra.write_text("hello")
    with pytest.raises(AuditError, match=r"notes\.txt"):
        verify_export(directory, None)
    extra.unlink()
    for name in FILES:
        path = directory / name
        moved = tmp_path / name
        path.rename(moved)
        with pytest.raises(AuditError, match=name):
            verify_export(directory, None)
        path.symlink_to(moved)
        with pytest.raises(AuditError, match="regular"):
            verify_export(directory, None)
        path.unlink()
        moved.rename(path)
    with pytest.raises(AuditError, match="directory"):
        verify_export(tmp_path / "nowhere", None)
    with pytest.raises(AuditError, match="empty directory"):
        sample_log.export(directory)


def test_another_log_is_not_this_log(
    sample_log: Any, tmp_path: Path, cosign: Callable[[str, str, SigningKey], str]
) -> None:
    directory = sample_log.export(tmp_path / "export")
    other = verifier_key("subrosa.example/test-log", SigningKey(b"\x09" * 32).verify_key)
    with pytest.raises(AuditError, match="pinned"):
        verify_export(directory, other)
    # A signature nobody can check would be bytes that may change.
    note = cosign(sample_log.note(), "stranger.example", SigningKey(b"\x09" * 32))
    (directory / "checkpoint").write_bytes(note.encode())
    with pytest.raises(AuditError, match="not among the trust anchors"):
        verify_export(directory, None)


def test_a_dropped_or_reordered_entry_is_refused(sample_log: Any, tmp_path: Path) -> None:
    directory = sample_log.export(tmp_path / "export")
    path = directory / "entries.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in (lines[:-1], [*lines, lines[-1]], [*lines[:5], lines[6], lines[5], *lines[7:]]):
        path.write_bytes(b"".join(changed))
        with pytest.raises(AuditError, match=r"entries\.jsonl"):
            verify_export(directory, None)


def refused(sample: Any, tmp_path: Path, match: str) -> None:
    """A log whose own key signs nonsense is refused for its meaning."""
    with pytest.raises(AuditError, match=match):
        verify_export(sample.export(tmp_path / "export"), sample.verifier)


def test_a_log_begins_with_its_members(sample_log: Any, tmp_path: Path) -> None:
    sample_log.entries = [*sample_log.entries[1:], sample_log.entries[0]]
    refused(sample_log, tmp_path, "first entry")


@pytest.mark.parametrize(
    ("type_name", "message"),
    [
        ("delta", "delta 2 after delta 2"),
        ("policy", "policy epoch 1 after 1"),
        ("membership", "roll version 1 after version 1"),
        ("key-epoch", "does not move forward"),
        ("evaluation-totals", "account 2 of 'bank-b' after its account 2"),
        ("inquiry-intent", "inquiry-intent for an inquiry that is expired"),
        ("inquiry-veto", "second veto"),
        ("inquiry-outcome", "inquiry-outcome for an inquiry that is closed"),
        ("inquiry-expired", "inquiry-expired for an inquiry that is expired"),
    ],
)
def test_nothing_happens_twice(sample_log: Any, tmp_path: Path, type_name: str, message: str) -> None:
    again = [entry for entry in sample_log.entries if entry_type(entry) == type_name][-1]
    sample_log.add(again)
    refused(sample_log, tmp_path, message)


@pytest.mark.parametrize("type_name", ["delta", "evaluation-totals", "inquiry-intent"])
def test_nothing_is_left_out(sample_log: Any, tmp_path: Path, type_name: str) -> None:
    first = next(index for index, entry in enumerate(sample_log.entries) if entry_type(entry) == type_name)
    del sample_log.entries[first]
    refused(sample_log, tmp_path, "after|unknown")


@pytest.mark.parametrize(
    ("type_name", "changes", "message"),
    [
        ("delta", {"contributor": "bank-z"}, "not a member"),
        ("delta", {"contributor": "regulator"}, "not a member"),
        ("key-epoch", {"threshold": 4}, "threshold"),
        ("inquiry-intent", {"cohort": ["bank-b", "bank-c"]}, "lacks the requester"),
        ("inquiry-intent", {"cohort": ["bank-a", "regulator"]}, "not a member"),
        ("inquiry-intent", {"policy_epoch": 2}, "policy epoch 2, not 1"),
        ("inquiry-intent", {"purpose": "investigation"}, "bank-a|digest"),
        ("inquiry-veto", {"member": "bank-z"}, "cohort"),
        ("inquiry-veto", {"reason": "put into its mouth"}, "signature of 'bank-c'"),
        ("inquiry-expired", {"missing": ["bank-z"]}, "cohort"),
        ("inquiry-outcome", {"cells": 99}, "another size"),
        ("inquiry-outcome", {"commitment": "00" * 32}, "signature of 'bank-a'"),
        ("evaluation-totals", {"period_end": 0}, "backwards"),
        ("evaluation-totals", {"counts": []}, "signature of 'bank-b'"),
        ("reads", {"period_start": 2_000_000_000}, "backwards"),
        ("reads", {"period_end": 1_900_000_000}, "backwards"),
        ("refusal", {"since": 1_900_000_000}, "begin after"),
    ],
)
def test_entries_that_lie(
    sample_log: Any, tmp_path: Path, type_name: str, changes: dict[str, Any], message: str
) -> None:
    place = next(index for index, entry in enumerate(sample_log.entries) if entry_type(entry) == type_name)
    sample_log.entries[place] = msgspec.structs.replace(sample_log.entries[place], **changes)
    refused(sample_log, tmp_path, message)


def test_outcomes_only_of_permitted_inquiries(
    empty_log: Any, make_inquiry: Callable[..., Any], tmp_path: Path
) -> None:
    asked = empty_log.signed(make_inquiry(), "bank-a")
    digest = hashlib.sha256(asked.payload).digest()
    empty_log.add(evidence.intent_entry(asked, at=AT, cohort=BANKS, rule="r"))
    veto = Veto(inquiry_id=digest, member="bank-b", reason="overlap")
    empty_log.add(evidence.veto_entry(empty_log.signed(veto, "bank-b"), at=AT, parties=BANKS))
    outcome = Outcome(inquiry_id=digest, requester="bank-a", commitment=bytes(32), cells=100)
    empty_log.add(evidence.outcome_entry(empty_log.signed(outcome, "bank-a"), at=AT, parties=BANKS))
    refused(empty_log, tmp_path, "vetoed")


def test_asking_again_may_be_refused_and_changes_nothing(sample_log: Any, tmp_path: Path) -> None:
    refusal = next(entry for entry in sample_log.entries if entry_type(entry) == "inquiry-refusal")
    for entry in [entry for entry in sample_log.entries if entry_type(entry) == "inquiry-intent"]:
        changes = {"inquiry_id": entry.inquiry_id, "requester": entry.requester}
        sample_log.add(msgspec.structs.replace(refusal, **changes))
    report = verify_export(sample_log.export(tmp_path / "export"), sample_log.verifier)
    assert report.inquiries == {"closed": 1, "expired": 1, "refused": 1, "vetoed": 1}


def test_keys_of_the_roll_in_force_count(
    empty_log: Any, make_roll: Callable[..., Any], make_inquiry: Callable[..., Any], tmp_path: Path
) -> None:
    old = empty_log.keys["bank-a"]
    new = SigningKey(b"\x21" * 32)
    first = empty_log.signed(make_inquiry(nonce=1), "bank-a")
    empty_log.add(evidence.intent_entry(first, at=AT, cohort=BANKS, rule="r"))
    empty_log.keys["bank-a"] = new
    rolled = empty_log.signed(make_roll(empty_log.keys, version=2), "coordinator")
    empty_log.add(evidence.membership_entry(rolled, at=AT))
    second = empty_log.signed(make_inquiry(nonce=2), "bank-a")
    empty_log.add(evidence.intent_entry(second, at=AT, cohort=BANKS, rule="r"))
    assert verify_export(empty_log.export(tmp_path / "good"), None).size == 5
    empty_log.keys["bank-a"] = old
    third = empty_log.signed(make_inquiry(nonce=3), "bank-a")
    empty_log.add(evidence.intent_entry(third, at=AT, cohort=BANKS, rule="r"))
    refused(empty_log, tmp_path, "signature of 'bank-a'")


def test_a_clock_that_went_back_is_reported(
    empty_log: Any, make_policy: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = empty_log.signed(make_policy(2), "coordinator")
    empty_log.add(evidence.policy_entry(bundle, at=1, parties=BANKS))
    report = verify_export(empty_log.export(tmp_path / "export"), None)
    assert report.clock_steps == 1
    assert "dated before" in report.to_text()


def test_the_inquiry_table_names_only_entry_types(sample_log: Any) -> None:
    assert {word for _, word in NEXT} <= {entry_type(entry) for entry in sample_log.entries}


def test_an_export_without_members_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="membership"):
        write_export(tmp_path / "e", note="", origin="o", verify_key="k", entries=[])


def test_lines() -> None:
    raw = RawEntry(bytes(range(32)), b'{"at":1}')
    assert decode_line(encode_line(raw), "here") == raw
    assert json.loads(encode_line(raw)) == {"body": {"at": 1}, "salt": raw.salt.hex()}
    for line in (b"", b"\n", encode_line(raw)[:-1], encode_line(raw).upper(), encode_line(raw)[1:]):
        with pytest.raises(AuditError, match="here"):
            decode_line(line, "here")


def test_entry_proofs(sample_log: Any, tmp_path: Path) -> None:
    directory = sample_log.export(tmp_path / "export")
    proof = prove_entry(directory, 5)
    proven = verify_entry_proof(proof, sample_log.verifier)
    assert (proven.index, proven.entry) == (5, sample_log.entries[5])
    for position in range(len(proof)):
        changed = bytearray(proof)
        changed[position] ^= 1
        with pytest.raises(AuditError):
            verify_entry_proof(bytes(changed), sample_log.verifier)
    for index in (-1, len(sample_log.entries)):
        with pytest.raises(AuditError, match="no entry"):
            prove_entry(directory, index)
    with pytest.raises(AuditError, match="accepted"):
        verify_entry_proof(b" " * (5 * 2**20), sample_log.verifier)


def test_command_line(sample_log: Any, tmp_path: Path) -> None:
    directory = sample_log.export(tmp_path / "export")
    run = CliRunner()
    accepted = run.invoke(app, ["verify", str(directory), "--key", sample_log.verifier])
    assert accepted.exit_code == 0
    assert "ACCEPTED" in accepted.output
    assert "curiosity" in accepted.output
    assert "\x1b" not in accepted.output
    as_json = json.loads(run.invoke(app, ["verify", str(directory), "--json"]).output)
    assert as_json["holds"] is True
    assert as_json["report"]["size"] == len(sample_log.entries)

    proof = tmp_path / "proof.json"
    assert run.invoke(app, ["proof", str(directory), "3", "--out", str(proof)]).exit_code == 0
    assert run.invoke(app, ["proof", str(directory), "3"]).output == proof.read_text()
    shown = run.invoke(app, ["verify", str(proof), "--key", sample_log.verifier])
    assert shown.exit_code == 0
    assert '"type":"delta"' in shown.output
    assert run.invoke(app, ["verify", str(proof)]).exit_code == 1
    assert run.invoke(app, ["proof", str(directory), "99"]).exit_code == 1

    entries = directory / "entries.jsonl"
    entries.write_bytes(entries.read_bytes().replace(b"curiosity", b"curiositi"))
    refusal = run.invoke(app, ["verify", str(directory)])
    assert refusal.exit_code == 1
    assert "REFUSED" in refusal.output
    as_json = json.loads(run.invoke(app, ["verify", str(directory), "--json"]).output)
    assert as_json["holds"] is False
    assert run.invoke(app, ["verify", str(tmp_path / "none"), "--json"]).exit_code == 1

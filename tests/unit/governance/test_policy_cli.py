"""``subrosa policy``: what it prints, what it refuses to read, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from governance.log.entries import KnownParty
from governance.log.export import LogAnchor, TrustAnchors
from governance.messages.policy import PolicyBundle
from governance.messages.roll import Directory
from governance.policy.cli import app, example_roll, read_bundle
from governance.policy.default import default_bundle
from governance.policy.outline import outline_rules


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def changed(**fields: object) -> PolicyBundle:
    return msgspec.structs.replace(default_bundle(), **fields)


def write(path: Path, value: object) -> Path:
    path.write_bytes(msgspec.json.encode(value))
    return path


def test_show_names_every_parameter_and_rule() -> None:
    result = run("show")
    assert result.exit_code == 0
    bundle = default_bundle()
    for kind in bundle.kinds:
        assert f"\n  {kind.kind} " in result.stdout
    for tier in bundle.tiers:
        assert f"\n  {tier.name} " in result.stdout
    assert "confirmed-frauds-per-entity" in result.stdout
    assert "20000" in result.stdout
    rules = outline_rules(bundle.cedar)
    assert len(rules) == bundle.cedar.count("@id(")
    for rule in rules:
        assert f"\n  {rule.rule} " in result.stdout
        assert rule.reason in result.stdout


def test_outline_reads_effect_who_and_actions() -> None:
    by_id = {rule.rule: rule for rule in outline_rules(default_bundle().cedar)}
    assert (by_id["members-look-up"].effect, by_id["members-look-up"].who) == ("permit", "member")
    assert by_id["cohort-size"].actions == ("inquire", "take-part")
    assert (by_id["regulators-only-read"].effect, by_id["regulators-only-read"].actions) == ("forbid", ())


def test_the_json_of_show_is_a_bundle_again(tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    path.write_text(run("show", "--json").stdout)
    assert read_bundle(path) == default_bundle()
    assert run("show", "--bundle", path).stdout == run("show").stdout


def test_show_tells_a_given_bundle_from_the_default(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle.json", changed(policy_epoch=7))
    assert "policy epoch 7" in run("show", "--bundle", path).stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "bundle.json"),
        (b"{}", "policy_epoch"),
        (msgspec.json.encode(changed(cedar="permit (principal")), "does not parse"),
        (msgspec.json.encode(changed(cedar="permit (principal, action, resource);")), "no @id"),
        (msgspec.json.encode(changed(policy_epoch=0)), "counts from 1"),
        (msgspec.json.encode({**msgspec.structs.asdict(default_bundle()), "extra": 1}), "extra"),
        (b"\xff\xfe", "bundle.json"),
    ],
)
@pytest.mark.parametrize("command", [["show"], ["test", "--action", "mirror", "--party", "bank-a"]])
def test_a_bundle_that_cannot_decide_is_named_in_one_line(
    tmp_path: Path, content: bytes, said: str, command: list[str]
) -> None:
    path = tmp_path / "bundle.json"
    path.write_bytes(content)
    result = run(*command, "--bundle", path)
    assert result.exit_code == 2
    assert "bundle.json" in result.stderr
    assert said in result.stderr
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    result = run("show", "--bundle", tmp_path / "none.json")
    assert (result.exit_code, "none.json" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "rule"),
    [
        (
            "--action lookup --party bank-a --kind-group terminals --purpose investigation",
            0,
            "members-look-up",
        ),
        ("--action lookup --party bank-a --kind-group terminals --purpose curiosity", 1, "default-deny"),
        ("--action lookup --party bank-a --elements 4097", 1, "lookup-batch-size"),
        (
            "--action lookup --party bank-a --quota enrolment --purpose investigation",
            1,
            "enrolment-is-for-prevention",
        ),
        ("--action lookup --party regulator", 1, "regulators-only-read"),
        ("--action lookup --party bank-z", 1, "default-deny"),
        ("--action lookup --party bank-a --kind-group planets", 1, "evaluation-failed"),
        ("--action contribute --party bank-b --labels 2048", 0, "members-contribute"),
        ("--action contribute --party bank-b --labels 2049", 1, "contribution-batch-size"),
        ("--action mirror --party bank-c", 0, "members-mirror"),
        ("--action inquire --party bank-a", 0, "members-inquire"),
        ("--action inquire --party bank-a --cohort bank-b,bank-c,bank-d", 1, "requester-in-cohort"),
        ("--action inquire --party bank-a --cohort bank-a,bank-b", 1, "cohort-size"),
        ("--action inquire --party bank-a --days 32", 1, "inquiry-size"),
        ("--action take-part --party bank-b --requester bank-a", 0, "members-take-part"),
        ("--action take-part --party bank-b --requester regulator", 1, "take-part-in-cohort"),
        ("--action read-log --party bank-a", 0, "parties-read-their-entries"),
        ("--action read-log --party bank-a --all", 1, "default-deny"),
        ("--action read-log --party regulator --all", 0, "regulators-read-everything"),
    ],
)
def test_a_decision_is_tried(arguments: str, code: int, rule: str) -> None:
    result = run("test", *arguments.split())
    assert result.exit_code == code, result.output
    assert result.stdout.startswith("REFUSED" if code else "PERMITTED")
    assert f"rule {rule}:" in result.stdout
    answer = json.loads(run("test", *arguments.split(), "--json").stdout)
    assert (answer["permitted"], answer["rule"]) == (code == 0, rule)
    assert answer["reason"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--action mirror --party bank-a --cells 3", "--cells does not belong to mirror"),
        ("--action lookup --party bank-a --own", "--own does not belong to lookup"),
        ("--action take-part --party bank-b", "--requester"),
        ("--action fly --party bank-b", "fly"),
        ("--action mirror", "--party"),
        ("--action lookup --party bank-a --elements many", "--elements"),
    ],
)
def test_a_question_that_is_none_is_a_usage_error(arguments: str, said: str) -> None:
    result = run("test", *arguments.split())
    assert result.exit_code == 2
    assert said in result.stderr


def test_the_roll_of_a_file_decides(tmp_path: Path) -> None:
    anchors = TrustAnchors(
        log=LogAnchor(origin="example.org/log", verify_key="irrelevant"),
        parties=[
            KnownParty(party=party, role=role, verify_key=f"{number:064x}")
            for number, (party, role) in enumerate(
                [("coordinator", "coordinator"), ("north-bank", "member"), ("watchdog", "regulator")]
            )
        ],
        roll_version=3,
    )
    path = write(tmp_path / "parties.json", anchors)
    assert run("test", "--action", "mirror", "--party", "north-bank", "--roll", path).exit_code == 0
    assert run("test", "--action", "mirror", "--party", "bank-a", "--roll", path).exit_code == 1
    small = run("test", "--action", "inquire", "--party", "north-bank", "--roll", path, "--json")
    assert json.loads(small.stdout)["rule"] == "cohort-size"


def test_a_whole_roll_decides_with_its_own_directories(tmp_path: Path) -> None:
    roll = example_roll(default_bundle())
    with_directory = write(tmp_path / "with.json", roll)
    without = write(
        tmp_path / "without.json",
        msgspec.structs.replace(roll, directories=[Directory(dataset="atms", cells=1, digest=bytes(32))]),
    )
    inquire = ("test", "--action", "inquire", "--party", "bank-a", "--json", "--roll")
    assert json.loads(run(*inquire, with_directory).stdout)["permitted"]
    refused = json.loads(run(*inquire, without).stdout)
    assert (refused["permitted"], refused["rule"]) == (False, "exact-counts-only-of-confirmed-frauds")


def test_a_roll_that_is_none_is_named(tmp_path: Path) -> None:
    twice = example_roll(default_bundle())
    path = write(
        tmp_path / "roll.json", msgspec.structs.replace(twice, parties=twice.parties + twice.parties[:1])
    )
    result = run("test", "--action", "mirror", "--party", "bank-a", "--roll", path)
    assert (result.exit_code, "roll.json" in result.stderr, "twice" in result.stderr) == (2, True, True)
    path.write_text("[]")
    assert run("test", "--action", "mirror", "--party", "bank-a", "--roll", path).exit_code == 2

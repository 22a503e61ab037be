"""One table turns every error into a problem document that names a party and a fix and leaks nothing."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

import crypto.errors
from crypto.errors import CryptoError, InvalidEncodingError, InvalidShareError, InvalidSignatureError
from governance.budgets import BudgetExceededError
from governance.indicators import InvalidIndicatorError, normalise
from governance.inquiries import InquiryError, InquiryOrderError
from governance.log.entries import MalformedEntryError
from governance.log.follow import ForkError, StaleCheckpointError
from governance.log.notes import MalformedNoteError
from governance.members import MembershipError
from governance.messages import http_signatures, signature_fields
from governance.messages.codec import MalformedError
from governance.messages.http_signatures import HttpSignatureError
from governance.messages.problems import (
    _SIGNATURE_PROBLEMS,
    MAX_PROBLEM_BYTES,
    PROBLEMS,
    TYPE_PREFIX,
    Problem,
    ProblemError,
    RequestError,
    make_problem,
    parse_problem,
    problem_for,
)
from governance.policy.decision import AccessRequest, Decision, PolicyError, RefusedError

DOCS = Path(__file__).parents[3] / "docs" / "protocols"
DENIED = Decision(
    permitted=False,
    rule="cohort-size",
    reason="a cohort is larger",
    policy_epoch=3,
    request=AccessRequest("bank-a", "inquire", ("Statistic", "x")),
)


@pytest.mark.parametrize(
    ("error", "name", "status", "party"),
    [
        (MalformedError("Inquiry: not the canonical encoding"), "malformed", 400, "caller"),
        (HttpSignatureError("replayed", "bank-b", "d"), "replayed", 409, "bank-b"),
        (HttpSignatureError("expired", "bank-b", "d"), "stale-request", 401, "bank-b"),
        (HttpSignatureError("unsigned", "", "d"), "unsigned", 401, "caller"),
        (HttpSignatureError("wrong-recipient", "bank-b", "d"), "wrong-recipient", 421, "bank-b"),
        (RefusedError(DENIED, "bank-a"), "refused", 403, "bank-a"),
        (PolicyError("broken"), "policy-unusable", 503, "caller"),
        (BudgetExceededError("bank-b", "lookups per day", 9, 0, 1, 5), "budget-exceeded", 429, "bank-b"),
        (InquiryOrderError("bank-b", "late"), "out-of-order", 409, "bank-b"),
        (InquiryError("bank-b", "wrong"), "inquiry-refused", 422, "bank-b"),
        (MembershipError("bank-b", "is not on the roll"), "membership", 409, "bank-b"),
        (InvalidIndicatorError("iban", "no"), "invalid-indicator", 422, "caller"),
        (MalformedEntryError("no"), "malformed", 400, "caller"),
        (MalformedNoteError("no"), "malformed", 400, "caller"),
        (StaleCheckpointError("old"), "stale-checkpoint", 503, "caller"),
        (ForkError("two logs", ("a", "b")), "untrusted-log", 502, "caller"),
        (InvalidSignatureError("no"), "invalid-signature", 401, "caller"),
        (InvalidShareError(2, "no"), "invalid-share", 422, "caller"),
        (InvalidEncodingError("no"), "cryptography", 422, "caller"),
        (RequestError("too-large", "17 MB", "bank-b"), "too-large", 413, "bank-b"),
        (RequestError("not-found", "inquiry"), "not-found", 404, "caller"),
    ],
)
def test_errors_become_problems(error: Exception, name: str, status: int, party: str) -> None:
    problem = problem_for(error, "caller")
    assert (problem.name, problem.status, problem.party) == (name, status, party)
    assert problem.type == TYPE_PREFIX + name
    assert problem.detail
    assert problem.fix == PROBLEMS[name].fix
    assert parse_problem(problem.encode()) == problem


def test_the_rule_of_a_refusal_is_named() -> None:
    detail = problem_for(RefusedError(DENIED, "bank-a")).detail
    assert "cohort-size" in detail
    assert "policy epoch 3" in detail


def test_every_signature_code_has_a_problem() -> None:
    """The codes are collected from the source, so that a new one cannot be forgotten here."""
    source = inspect.getsource(http_signatures) + inspect.getsource(signature_fields)
    codes = {
        part.split('"')[1]
        for part in source.replace("\n", " ").replace("( ", "(").split("HttpSignatureError(")[1:]
        if part.lstrip().startswith('"')
    }
    assert len(codes) > 15
    assert codes == set(_SIGNATURE_PROBLEMS) & codes
    assert codes == set(_SIGNATURE_PROBLEMS)
    for code in codes:
        assert problem_for(HttpSignatureError(code, "bank-a", "d")).status in (400, 401, 403, 409, 421)


def test_the_documentation_names_every_signature_code_with_its_problem() -> None:
    rows = [line for line in (DOCS / "requests.md").read_text().splitlines() if line.startswith("| `")]
    for code, name in _SIGNATURE_PROBLEMS.items():
        (row,) = [row for row in rows if f"`{code}`" in row.split("|")[1]]
        assert row.endswith(f"| `{name}` | {PROBLEMS[name].status} |")


def test_every_crypto_error_has_a_problem() -> None:
    for error in vars(crypto.errors).values():
        if inspect.isclass(error) and issubclass(error, CryptoError):
            instance = error(1, "x") if error is InvalidShareError else error("x")
            assert problem_for(instance).status in (401, 422)


def test_the_unexpected_is_reported_without_its_text() -> None:
    problem = problem_for(ValueError("DE89370400440532013000"), "bank-a")
    assert (problem.name, problem.status, problem.party) == ("internal", 500, "")
    assert b"DE89" not in problem.encode()
    assert "ValueError" in problem.detail


def test_no_indicator_value_reaches_a_problem() -> None:
    with pytest.raises(InvalidIndicatorError) as caught:
        normalise("iban", "DE00370400440532013000")
    assert b"3704" not in problem_for(caught.value).encode()


def test_a_client_raises_what_it_was_told() -> None:
    problem = make_problem("refused", "rule cohort-size", "bank-a")
    error = ProblemError(problem, "coordinator")
    assert error.problem is problem
    assert str(error).startswith(
        "coordinator answered: 403 The policy does not permit this: rule cohort-size (at fault: bank-a)"
    )
    assert problem_for(error) is problem


def test_details_are_bounded() -> None:
    assert len(make_problem("malformed", "x" * 5000).detail) == 1000


def test_only_names_of_the_table_are_raised() -> None:
    with pytest.raises(KeyError):
        RequestError("tea-time", "x")
    with pytest.raises(KeyError):
        make_problem("tea-time", "x")


def test_the_table_is_usable_by_people() -> None:
    for name, kind in PROBLEMS.items():
        assert name == name.lower().replace("_", "-")
        assert 400 <= kind.status <= 599
        assert kind.title
        assert kind.fix.endswith(".")


def document(**changes: object) -> bytes:
    plain = json.loads(make_problem("malformed", "d", "bank-a").encode())
    return json.dumps(
        {key: value for key, value in {**plain, **changes}.items() if value is not None}
    ).encode()


def test_the_document_has_the_members_of_the_rfc() -> None:
    """RFC 9457 section 3.1: type, title, status and detail; party and fix are extensions."""
    assert list(json.loads(document())) == ["type", "title", "status", "detail", "party", "fix"]
    assert isinstance(parse_problem(document()), Problem)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        document(status="400"),
        document(status=200),
        document(type="about:blank"),
        document(fix=None),
        document(extra=1),
        document() + b"x",
        document(detail="x" * MAX_PROBLEM_BYTES),
        b"[" * 10_000,
    ],
)
def test_what_is_not_a_problem_document_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedError, match="Problem"):
        parse_problem(body)

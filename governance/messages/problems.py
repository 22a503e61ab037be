"""Errors on the wire: RFC 9457 problem documents, and the one table from exceptions to status, name and fix.

A problem names the party at fault and what to do. It never repeats a value of an indicator: the exceptions it is
made from carry none, and an exception that is not in the table is reported without its text.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from crypto.errors import (
    CryptoError,
    InvalidProofError,
    InvalidShareError,
    InvalidSignatureError,
    UnsealingError,
)
from governance.budgets import BudgetExceededError
from governance.indicators import InvalidIndicatorError
from governance.inquiries import InquiryError, InquiryOrderError
from governance.log.entries import MalformedEntryError
from governance.log.follow import LogFollowError, StaleCheckpointError
from governance.log.notes import MalformedNoteError
from governance.members import MembershipError
from governance.messages.codec import MalformedError
from governance.messages.http_signatures import HttpSignatureError
from governance.policy.decision import PolicyError, RefusedError

PROBLEM_MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:subrosa:problem:"
MAX_PROBLEM_BYTES = 16 * 1024
MAX_DETAIL_CHARACTERS = 1000


class Problem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A problem document (RFC 9457). ``type`` is ``urn:subrosa:problem:NAME``; ``party`` is at fault, "" if unknown."""

    type: str
    title: str
    status: int
    detail: str
    party: str
    fix: str

    @property
    def name(self) -> str:
        """The last part of ``type``."""
        return self.type.removeprefix(TYPE_PREFIX)

    def encode(self) -> bytes:
        """The document as JSON bytes."""
        return msgspec.json.encode(self)


class ProblemError(Exception):
    """What a client raises for a problem answer; ``answered_by`` is the party that gave it."""

    def __init__(self, problem: Problem, answered_by: str = "") -> None:
        said = f"{answered_by} answered: " if answered_by else ""
        fault = f" (at fault: {problem.party})" if problem.party else ""
        super().__init__(f"{said}{problem.status} {problem.title}: {problem.detail}{fault}. {problem.fix}")
        self.problem = problem
        self.answered_by = answered_by


@dataclass(frozen=True)
class ProblemKind:
    """One row of the table."""

    status: int
    title: str
    fix: str


class RequestError(Exception):
    """A process refuses a request for a reason of its own; ``name`` is a row of :data:`PROBLEMS`."""

    def __init__(self, name: str, detail: str, party: str = "") -> None:
        if name not in PROBLEMS:
            raise KeyError(f"{name!r} is not in the table of problems")
        super().__init__(f"{name}: {detail}")
        self.name = name
        self.detail = detail
        self.party = party


PROBLEMS: dict[str, ProblemKind] = {
    # the message
    "malformed": ProblemKind(
        400, "The message is malformed", "Send the canonical encoding of the documented message."
    ),
    "too-large": ProblemKind(413, "The message is too large", "Send fewer items in one request."),
    "unsupported-media-type": ProblemKind(
        415, "The media type is not accepted", "Use the documented media type."
    ),
    "not-found": ProblemKind(
        404, "There is no such thing", "Check the identifier; it may have been deleted."
    ),
    "method-not-allowed": ProblemKind(405, "The method is not allowed here", "Use the documented method."),
    # the signature of the request
    "unsigned": ProblemKind(401, "The request is not signed", "Sign it as docs/protocols/requests.md says."),
    "signature-profile": ProblemKind(
        401,
        "The signature does not follow the profile",
        "Cover the components and give the parameters of the profile.",
    ),
    "wrong-digest": ProblemKind(400, "The body does not match its digest", "Send the body that was signed."),
    "stale-request": ProblemKind(
        401,
        "The signature is not valid now",
        "Set the clock and sign each request anew, for at most 60 seconds.",
    ),
    "replayed": ProblemKind(409, "The request was seen before", "Sign each attempt with a fresh nonce."),
    "wrong-recipient": ProblemKind(
        421, "The request is for another party", "Check the address of the recipient."
    ),
    "unknown-party": ProblemKind(
        403, "The party is not a member", "Ask the coordinator for admission, or synchronise."
    ),
    "invalid-signature": ProblemKind(
        401, "The signature does not verify", "Check the identity key and what is changed on the way."
    ),
    # what is permitted
    "refused": ProblemKind(
        403, "The policy does not permit this", "Read the rule in the policy; a vote can change it."
    ),
    "policy-unusable": ProblemKind(
        503, "The policy cannot be evaluated", "Install a valid bundle; until then all is denied."
    ),
    "stale-policy": ProblemKind(409, "The policy epochs differ", "Fetch the newest policy and repeat."),
    "stale-checkpoint": ProblemKind(
        503, "The newest checkpoint is too old", "Synchronise with the coordinator."
    ),
    "untrusted-log": ProblemKind(
        502, "The log cannot be trusted", "Keep the evidence and ask the coordinator and the regulator."
    ),
    "stale-epoch": ProblemKind(
        409, "The key epoch or generation differs", "Fetch the newest membership roll and repeat."
    ),
    "budget-exceeded": ProblemKind(429, "The budget is spent", "Wait until the budget renews."),
    "unauthenticated": ProblemKind(
        401, "The operator token is missing or wrong", "Send the bank's own operator token."
    ),
    "not-permitted": ProblemKind(
        403, "This person may not do that", "Ask a colleague with the role the text names."
    ),
    "operator": ProblemKind(
        422, "The bank's own operator can put this right", "Mend what the text names and call again."
    ),
    # protocols
    "out-of-order": ProblemKind(
        409, "The message does not fit the state", "Ask for the state and go on from there."
    ),
    "inquiry-refused": ProblemKind(
        422, "The inquiry is not acceptable", "Correct the inquiry and sign it again."
    ),
    "conflict": ProblemKind(
        409, "It contradicts what is already known", "Ask for the state and correct the message."
    ),
    "membership": ProblemKind(
        409, "The membership roll does not allow this", "Fetch the newest membership roll."
    ),
    "invalid-indicator": ProblemKind(422, "The value has no normal form", "Correct the value or its kind."),
    "invalid-proof": ProblemKind(
        422, "A proof does not verify", "The named party must answer for its proof."
    ),
    "invalid-share": ProblemKind(422, "A key holder's answer is wrong", "Ask another key holder."),
    "unsealing": ProblemKind(
        422, "A sealed value does not open", "Check the key epoch and the associated fields."
    ),
    "cryptography": ProblemKind(
        422, "A value is not acceptable to the protocol", "Send values made by the protocol."
    ),
    # the answering side
    "unavailable": ProblemKind(503, "The service cannot answer now", "Try again later."),
    "internal": ProblemKind(500, "The service failed", "Tell the operator of the answering party."),
}

_SIGNATURE_PROBLEMS: dict[str, str] = {
    "unsigned": "unsigned",
    "malformed": "signature-profile",
    "duplicate-header": "signature-profile",
    "missing-header": "signature-profile",
    "missing-component": "signature-profile",
    "unexpected-component": "signature-profile",
    "missing-parameter": "signature-profile",
    "unexpected-parameter": "signature-profile",
    "wrong-algorithm": "signature-profile",
    "wrong-tag": "signature-profile",
    "validity-too-long": "stale-request",
    "not-yet-valid": "stale-request",
    "expired": "stale-request",
    "wrong-digest": "wrong-digest",
    "wrong-recipient": "wrong-recipient",
    "wrong-signer": "invalid-signature",
    "unknown-party": "unknown-party",
    "invalid-signature": "invalid-signature",
    "replayed": "replayed",
}

# Most special first: the first row whose type matches decides.
_EXCEPTIONS: tuple[tuple[type[Exception], str], ...] = (
    (MalformedError, "malformed"),
    (MalformedEntryError, "malformed"),
    (MalformedNoteError, "malformed"),
    (StaleCheckpointError, "stale-checkpoint"),
    (LogFollowError, "untrusted-log"),
    (InvalidIndicatorError, "invalid-indicator"),
    (RefusedError, "refused"),
    (PolicyError, "policy-unusable"),
    (BudgetExceededError, "budget-exceeded"),
    (InquiryOrderError, "out-of-order"),
    (InquiryError, "inquiry-refused"),
    (MembershipError, "membership"),
    (InvalidSignatureError, "invalid-signature"),
    (InvalidProofError, "invalid-proof"),
    (InvalidShareError, "invalid-share"),
    (UnsealingError, "unsealing"),
    (CryptoError, "cryptography"),
)


def make_problem(name: str, detail: str, party: str = "") -> Problem:
    """The problem of row ``name`` of :data:`PROBLEMS`."""
    kind = PROBLEMS[name]
    return Problem(
        type=TYPE_PREFIX + name,
        title=kind.title,
        status=kind.status,
        detail=detail[:MAX_DETAIL_CHARACTERS],
        party=party,
        fix=kind.fix,
    )


def problem_for(error: Exception, party: str = "") -> Problem:
    """Translate an exception; ``party`` is at fault unless the exception itself names one.

    Anything unexpected becomes ``internal`` without its text, which nobody has checked for values.
    """
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, HttpSignatureError):
        return make_problem(_SIGNATURE_PROBLEMS[error.code], error.detail, error.party or party)
    if isinstance(error, RequestError):
        return make_problem(error.name, error.detail, error.party or party)
    for kind, name in _EXCEPTIONS:
        if isinstance(error, kind):
            return make_problem(name, str(error), getattr(error, "party", "") or party)
    return make_problem("internal", f"unexpected {type(error).__name__}")


def parse_problem(body: bytes) -> Problem:
    """Read a problem document, or raise :class:`~governance.messages.codec.MalformedError`."""
    if len(body) > MAX_PROBLEM_BYTES:
        raise MalformedError(f"Problem: {len(body)} bytes, at most {MAX_PROBLEM_BYTES} are accepted")
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"Problem: {error}") from error
    if not problem.type.startswith(TYPE_PREFIX) or not 400 <= problem.status <= 599:
        raise MalformedError("Problem: not a problem of this protocol")
    return problem

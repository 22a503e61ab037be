"""What a bank's own staff and systems call on their member node: the bank-internal API, with the operator token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from governance.messages.codec import MalformedError
from governance.messages.problems import Problem, ProblemError, parse_problem

TOKEN_FILE = "operator.token"  # noqa: S105 - the name of a file, not a secret


class DeskError(RuntimeError):
    """A member node refused or failed a call of its own bank; the text names the bank, the reason and the fix.

    ``problem``: what the node answered, None if that was no problem document.
    """

    def __init__(self, text: str, problem: Problem | None = None) -> None:
        super().__init__(text)
        self.problem = problem


class BankUnreachableError(DeskError):
    """The member node's process does not answer."""


class BankDesk:
    """Calls one member node on behalf of its own bank."""

    def __init__(
        self, party: str, url: str, directory: Path, *, token_file: Path | None = None, timeout: float = 600.0
    ) -> None:
        """``url`` is where the node listens, ``directory`` its data folder, which holds the operator's token.

        ``token_file``: a person's own token, in place of the operator's.
        """
        token = (token_file or directory / TOKEN_FILE).read_text(encoding="utf-8").strip()
        self.party = party
        self._http = httpx.Client(
            base_url=f"{url}/bank/v1",
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout,
            trust_env=False,
        )

    def get(self, path: str) -> dict[str, Any]:
        """GET ``path`` below the bank-internal API; the JSON object it answers."""
        return self._call("GET", path, None)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """POST ``body`` as JSON to ``path`` below the bank-internal API; the JSON object it answers."""
        return self._call("POST", path, body)

    def delete(self, path: str) -> dict[str, Any]:
        """DELETE ``path`` below the bank-internal API; the JSON object it answers."""
        return self._call("DELETE", path, None)

    def close(self) -> None:
        """Close the connection pool."""
        self._http.close()

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        try:
            response = self._http.request(method, f"/{path}", json=body)
        except httpx.TransportError as error:
            raise BankUnreachableError(f"{self.party} does not answer {path}: {error!r}") from error
        if response.is_error:
            raise self._refusal(path, response)
        try:
            answer = response.json()
        except ValueError as error:
            raise DeskError(
                f"{self.party} did not answer {path} in JSON: another program listens at its address"
            ) from error
        if not isinstance(answer, dict):
            raise DeskError(f"{self.party} did not answer {path} with a JSON object")
        return answer

    def _refusal(self, path: str, response: httpx.Response) -> DeskError:
        try:
            problem = parse_problem(response.content)
        except MalformedError:
            return DeskError(f"{self.party} refused {path}: {response.status_code} {response.text[:500]}")
        return DeskError(f"{self.party} refused {path}: {ProblemError(problem)}", problem)

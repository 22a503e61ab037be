"""Query parameters, strictly: known names once each, plain numbers within bounds."""

from __future__ import annotations

import re

from governance.messages.problems import RequestError

_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")
_SECONDS = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,6})?")
_PAIR = re.compile(r"([a-z]+)=([0-9.]+)")
_INQUIRY_ID = re.compile(r"[0-9a-f]{64}")


class Query:
    """The parameters of one request; ``names`` are the documented ones."""

    def __init__(self, text: str, *names: str) -> None:
        self._values: dict[str, str] = {}
        for part in text.split("&") if text else []:
            match = _PAIR.fullmatch(part)
            if match is None or match[1] not in names or match[1] in self._values:
                raise RequestError("malformed", f"the query takes {', '.join(names) or 'nothing'}, once each")
            self._values[match[1]] = match[2]

    def number(self, name: str, default: int = 0) -> int:
        """A whole number, not negative."""
        text = self._values.get(name, str(default))
        if not _NUMBER.fullmatch(text):
            raise RequestError("malformed", f"{name} is not a whole number in its shortest form")
        return int(text)

    def seconds(self, name: str) -> float:
        """A time in seconds, by default none."""
        text = self._values.get(name, "0")
        if not _SECONDS.fullmatch(text):
            raise RequestError("malformed", f"{name} is not a number of seconds")
        return float(text)


def read_inquiry_id(text: str) -> bytes:
    """The 32 bytes of an inquiry id in a path."""
    if not _INQUIRY_ID.fullmatch(text):
        raise RequestError("not-found", "an inquiry id is 64 lower-case hexadecimal digits")
    return bytes.fromhex(text)

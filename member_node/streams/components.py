"""Device components as they travel: one JSON object a transaction, kept as text until a device is derived from it."""

from __future__ import annotations

from typing import Any

import msgspec

from scoring.row_codes import RowCode

# FingerprintJS 5 collects about 8 KiB with all its fonts and plug-ins.
MAX_COMPONENTS = 32_768
_OBJECT = msgspec.json.Decoder(dict[str, Any])


def component_fault(text: str | bytes) -> RowCode:
    """What is wrong with a text that should be a JSON object of components; ACCEPTABLE if nothing is."""
    if len(text) > MAX_COMPONENTS:
        return RowCode.TEXT_TOO_LONG
    try:
        _OBJECT.decode(text)
    except msgspec.ValidationError:
        return RowCode.WRONG_TYPE
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return RowCode.MALFORMED
    return RowCode.ACCEPTABLE

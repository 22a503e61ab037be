"""Faults as an operator writes them."""

import pytest

from sandbox.faults import Kill, parse_kill


@pytest.mark.parametrize(
    ("text", "kill"),
    [
        ("bank-b@12", Kill("bank-b", 12, "confirm")),
        ("bank-b@12:confirm", Kill("bank-b", 12, "confirm")),
        ("bank-a@1:share", Kill("bank-a", 1, "share")),
        ("bank-l@9999:score", Kill("bank-l", 9999, "score")),
    ],
)
def test_kills_are_read(text, kill):
    assert parse_kill(text) == kill


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bank-b",
        "bank-b@",
        "bank-b@0",
        "bank-b@x",
        "Bank@1",
        "bank-b@1:",
        "bank-b@1:sleep",
        "b@1",
        "bank-b@1 ",
    ],
)
def test_anything_else_shows_the_form(text):
    with pytest.raises(ValueError, match="PARTY@DAY:PART"):
        parse_kill(text)

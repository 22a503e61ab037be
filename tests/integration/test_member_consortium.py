"""Members and the real coordinator over loopback HTTP: the whole path, a restart, and what crossed the wire."""

from __future__ import annotations

import base64
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from governance.messages.problems import parse_problem
from member_node.client.desk import DeskError

DAY_MS = 86_400_000
SECRETS = [f"SECRET{number:04d}MERCHANT" for number in range(5)]


def share_and_sync(banks, value: str, *, sharer: str = "bank-a", victims: int = 3) -> dict:
    return banks.desk(sharer).post(
        "indicators",
        kind="merchant",
        value=value,
        typology="bust-out",
        distinct_victims=victims,
        first_seen_ms=1_000,
        last_seen_ms=2_000,
        now_ms=10_000,
    )


def test_an_indicator_of_one_bank_is_found_by_another(three_banks):
    desk = three_banks.desk("bank-b")
    before = desk.post("lookups", kind="merchant", value=SECRETS[0])
    assert (before["asked_consortium"], before["labels"]) == (True, [])
    assert share_and_sync(three_banks, SECRETS[0]) == {"accepted": 1}
    report = desk.post("sync")
    assert {"kind": "merchant", "value": SECRETS[0], "contributor": "bank-a"} in report["matches"]
    after = desk.post("lookups", kind="merchant", value=SECRETS[0].lower())
    assert after["asked_consortium"] is False
    (label,) = after["labels"]
    assert (label["contributor"], label["distinct_victims"], label["typology"]) == ("bank-a", 3, "bust-out")
    assert label["expires_at_ms"] == 10_000 + 7 * DAY_MS


def test_the_joint_statistic_is_the_sum_of_all_banks(three_banks):
    answer = three_banks.desk("bank-a").post("inquiries", first_day=17_000, last_day=17_002)
    expected = sum(each.counts(17_000, 17_002) for each in three_banks.statistics.values())
    assert (answer["days"], answer["cells"], answer["total"]) == (*expected.shape, int(expected.sum()))
    got = np.zeros_like(expected)
    names = {value: cell for cell, value in enumerate(three_banks.nodes["bank-a"].directory_values)}
    for each in answer["counts"]:
        got[each["day"] - 17_000, names[each["entity"]]] = each["count"]
    np.testing.assert_array_equal(got, expected)
    rows = {row["operation"]: row for row in three_banks.desk("bank-a").get("status")["latencies"]}
    assert rows["inquiry"]["items"] >= expected.size
    assert rows["inquiry"]["p50_ms"] > 0


def test_two_banks_may_ask_at_once(three_banks):
    expected = sum(each.counts(17_100, 17_101) for each in three_banks.statistics.values())
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(node.inquiry.ask, 17_100, 17_101) for node in three_banks.nodes.values()]
        for each in asked:
            np.testing.assert_array_equal(each.result(60), expected)


def test_refusals_are_problems_that_name_party_and_fix(three_banks):
    desk = three_banks.desk("bank-a")
    with pytest.raises(DeskError, match="rule"):
        desk.post("inquiries", first_day=17_000, last_day=17_100)
    with pytest.raises(DeskError, match="no normal form"):
        desk.post("lookups", kind="iban", value="nonsense")
    with pytest.raises(DeskError, match="may not lookup"):
        desk.post("lookups", kind="merchant", value="X9", purpose="oversight")
    url = f"http://127.0.0.1:{three_banks.ports['bank-a']}"
    answer = httpx.get(f"{url}/bank/v1/status", headers={"Authorization": "Bearer no"}, trust_env=False)
    assert parse_problem(answer.content).name == "unauthenticated"


def test_totals_reach_the_log_and_the_status_shows_who_asked_what(three_banks):
    three_banks.desk("bank-b").post("lookups", kind="merchant", value="T0T4L")
    for name in three_banks.names:
        # A period has whole seconds: right after the node's own first account there is none to send yet.
        deadline = time.monotonic() + 5
        while three_banks.desk(name).post("totals") != {"sent": 1}:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    rows = [row for name in three_banks.names for row in three_banks.desk(name).get("status")["traffic"]]
    answered = [row for row in rows if (row["direction"], row["call"]) == ("answered", "evaluate")]
    assert sum(row["elements"] for row in answered if row["peer"] == "bank-b") >= 1
    assert all(row["p50_ms"] is not None for row in answered)
    # What was asked and what was answered are the same elements, counted on both sides.
    asked = [row for row in rows if (row["direction"], row["call"]) == ("asked", "evaluate")]
    assert sum(row["elements"] for row in asked) == sum(row["elements"] for row in answered) > 0


def test_a_member_that_restarts_catches_up_and_keeps_its_cache(three_banks):
    three_banks.desk("bank-c").post("lookups", kind="merchant", value=SECRETS[1])
    three_banks.stop_member("bank-c")
    share_and_sync(three_banks, SECRETS[1])
    with pytest.raises(Exception, match="bank-c"):
        three_banks.desk("bank-c").get("status")
    # Two of three key holders are enough for the others.
    assert three_banks.desk("bank-b").post("lookups", kind="merchant", value="WHILEAWAY")["asked_consortium"]
    three_banks.start_member("bank-c")
    desk = three_banks.desk("bank-c")
    assert [match["value"] for match in desk.post("sync")["matches"]] == [SECRETS[1]]
    found = desk.post("lookups", kind="merchant", value=SECRETS[1])
    assert (found["asked_consortium"], len(found["labels"])) == (False, 1)
    assert three_banks.desk("bank-c").get("status")["fault_count"] == 0


def test_an_inquiry_waits_for_a_member_that_is_away_and_then_completes(three_banks):
    three_banks.stop_member("bank-b")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(three_banks.nodes["bank-a"].inquiry.ask, 17_200, 17_200)
        three_banks.start_member("bank-b")
        answer = asked.result(60)
    expected = sum(each.counts(17_200, 17_200) for each in three_banks.statistics.values())
    np.testing.assert_array_equal(answer, expected)


def test_nothing_that_crossed_a_boundary_betrays_a_value(three_banks):
    """Runs last in this module, over everything the tests before it have sent."""
    bodies = [path.read_bytes() for path in (three_banks.path / "capture").rglob("*.http")]
    assert len(bodies) > 100
    assert {"sent", "received"} <= {
        path.name.split("-")[1] for path in (three_banks.path / "capture").rglob("*.http")
    }
    needles: dict[bytes, str] = {}
    for value in [*SECRETS, *(each.lower() for each in SECRETS), "T0T4L", "WHILEAWAY"]:
        raw = value.encode()
        for form in (raw, *(hashlib.new(name, raw).digest() for name in ("md5", "sha1", "sha256", "sha512"))):
            for needle in (form, form.hex().encode(), base64.b64encode(form).rstrip(b"=")[:-1]):
                needles[needle] = value
    for body in bodies:
        assert [value for needle, value in needles.items() if needle in body] == []

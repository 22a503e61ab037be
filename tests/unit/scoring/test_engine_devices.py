"""Devices in the core: what is sent again, refused or corrected does not count twice, whatever the batches."""

import json

import numpy as np
import pytest

from scoring.devices.linker import NUMBERS, DeviceLinker
from scoring.engine import ScoringCore
from scoring.features.admission import Disposition
from scoring.features.engine import FeatureEngine
from scoring.features.spec import parse_spec
from scoring.rules.columns import Column, ColumnSchema, ColumnType
from scoring.rules.deployment import Deployment
from scoring.rules.ruleset import load_ruleset
from scoring.schema import Channel, transaction_batch
from scoring.scored import InForce, Sight

SPEC = parse_spec(
    """
lateness = "1h"
[[feature]]
name = "seen_1d"
entity = "device"
aggregation = "count"
window = "1d"
"""
)
START = 1_780_000_000_000_000
HOUR = 3_600_000_000


def core():
    return ScoringCore(FeatureEngine(SPEC), features=SPEC.names, linker=DeviceLinker())


def bundle(number, **more):
    return json.dumps({"os": "android", "model": "Pixel 9", "installId": f"i{number}", **more})


def rows(*given, correct=False):
    """Rows (id, hours, customer)."""
    ids, hours, customers = zip(*given, strict=True)
    return transaction_batch(
        event_id=np.array(ids),
        time_us=START + (np.array(hours) * HOUR).astype(np.int64),
        amount=[1.0] * len(given),
        channel=Channel.CARD,
        entities={"customer": list(customers)},
        correction=[correct] * len(given),
    )


def number(advanced, name):
    return dict(zip(advanced.names, advanced.values.tolist(), strict=True))[name]


def test_what_is_sent_again_or_refused_does_not_count():
    engine = core()
    first = engine.advance(rows((1, 5, 1), (2, 5, 2)), bundles=[bundle(1), bundle(1)])
    assert number(first, "device_seen") == [1, 2]
    before = engine.state()
    again = engine.advance(rows((1, 5, 7), (2, 5, 8)), bundles=[bundle(1), bundle(3)])
    assert again.disposition.tolist() == [Disposition.DUPLICATE] * 2
    late = engine.advance(rows((3, 3, 9)), bundles=[bundle(1)])
    assert late.disposition.tolist() == [Disposition.REFUSED_LATE]
    after = engine.state()
    assert all(np.array_equal(after[name], before[name]) for name in before if name.startswith("devices/"))
    # Repeated within one batch: only the first counts, and those behind it are counted right.
    third = engine.advance(rows((4, 6, 3), (4, 6, 4), (1, 5, 5), (5, 6, 1)), bundles=[bundle(1)] * 4)
    assert third.rows.tolist() == [0, 3]
    assert number(third, "device_seen") == [3, 4]
    assert number(third, "device_customers") == [3, 3]
    assert number(third, "seen_1d") == [3, 4]


def test_a_correction_keeps_its_device_and_is_not_counted_again():
    engine = core()
    engine.advance(rows((1, 5, 1), (2, 5, 2)), bundles=[bundle(1), bundle(1)])
    corrected = engine.advance(rows((1, 5, 1), correct=True), bundles=[bundle(1)])
    assert corrected.disposition.tolist() == [Disposition.CORRECTED]
    assert number(corrected, "device_seen") == [2]
    assert number(engine.advance(rows((3, 5, 1)), bundles=[bundle(1)]), "device_seen") == [3]


@pytest.mark.parametrize("seed", range(3))
def test_devices_do_not_depend_on_batches_redelivery_or_a_restart(seed):
    random = np.random.default_rng(seed)
    given = [(i, i / 4, int(random.integers(1, 5))) for i in range(60)]
    bundles = [bundle(int(random.integers(1, 4))) if random.random() < 0.8 else None for _ in given]
    plain = core()
    wanted = plain.advance(rows(*given), bundles=bundles)
    engine, values, ids = core(), [], []
    place = 0
    while place < len(given):
        last = min(len(given), place + int(random.integers(1, 9)))
        repeated = max(0, place - int(random.integers(0, 12)))
        part = engine.advance(rows(*given[repeated:last]), bundles=bundles[repeated:last])
        assert part.rows.tolist() == list(range(place - repeated, last - repeated))
        values.append(part.values)
        ids += part.device_ids.tolist()
        place = last
        if random.random() < 0.3:
            state = engine.state()
            engine = core()
            engine.restore(state, Deployment(1, load_ruleset(RULES, schema())))
    np.testing.assert_array_equal(np.concatenate(values, axis=1), wanted.values)
    assert ids == wanted.device_ids.tolist()


RULES = """
name = "test"
version = 1
[[rule]]
id = "rooted"
when = "device_tampering > 0.3"
verdict = "review"
reason = "tampering {device_tampering}"
[[rule]]
id = "large"
when = "amount >= 1"
verdict = "challenge"
reason = "{amount}"
"""


def schema():
    return ColumnSchema([Column(name, ColumnType.NUMBER) for name in ("amount", *NUMBERS)])


def test_a_device_rule_that_speaks_tells_the_signs():
    engine = core()
    given = rows((1, 5, 1), (2, 5, 2), (3, 5, 3))
    advanced = engine.advance(given, bundles=[bundle(1, rooted=True, emulator=True), bundle(2), None])
    seen = Sight({"amount": advanced.batch.amount}, {})
    force = InForce(Deployment(1, load_ruleset(RULES, schema())))
    scored = engine.judge(advanced, seen, seen, np.empty(0, np.int64), force)
    assert scored.live.verdict.tolist() == [2, 1, 1]
    told = {row: [(reason.rule, reason.text) for reason in given] for row, given in scored.reasons.items()}
    assert told[0][-1] == ("device", "signs of tampering: emulator, rooted")
    assert [rule for rule, _ in told[1]] == [rule for rule, _ in told[2]] == ["large"]

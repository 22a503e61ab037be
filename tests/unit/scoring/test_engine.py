"""The scoring core: precedence of lists and rules, exemptions, models that fail, the brake, the bank alone."""

import numpy as np
import pytest

from scoring.engine import ScoringCore
from scoring.features.engine import FeatureEngine
from scoring.features.spec import parse_spec
from scoring.lists import ListKind, ListSet, empty_list
from scoring.models.served import Serving
from scoring.rules.columns import Column, ColumnSchema, ColumnType
from scoring.rules.deployment import Deployment
from scoring.rules.ruleset import load_ruleset
from scoring.schema import Channel, transaction_batch
from scoring.scored import MODEL_DEGRADED, MODEL_SCORE, InForce, Sight

NEVER = np.iinfo(np.int64).max
SPEC = parse_spec(
    """
[[feature]]
name = "count_1d"
entity = "customer"
aggregation = "count"
window = "1d"
"""
)
RULES = """
name = "test"
version = {version}
{brake}
[[rule]]
id = "many"
when = "count_1d >= {many}"
verdict = "review"
reason = "{{count_1d}} a day"
[[rule]]
id = "large"
when = "amount > 100"
verdict = "challenge"
reason = "{{amount}}"
[[rule]]
id = "elsewhere"
when = "victims > 0"
verdict = "block"
reason = "known elsewhere"
[[rule]]
id = "scored"
when = "model_score > 0.5"
verdict = "review"
reason = "score {{model_score}}"
[[rule]]
id = "blind"
when = "model_degraded and amount > 50"
verdict = "challenge"
reason = "no model"
"""
LISTS = ListSet(
    [
        empty_list("bad", ListKind.BLOCK, "payee").added(["7"], np.array([NEVER])),
        empty_list("good", ListKind.ALLOW, "customer").added(["1"], np.array([NEVER])),
        empty_list("cleared", ListKind.EXEMPTION, "customer").added(["2"], np.array([10_000_000]), ["large"]),
    ]
)


def schema():
    columns = [Column(name, ColumnType.NUMBER) for name in ("amount", "count_1d", "victims", MODEL_SCORE)]
    return ColumnSchema([*columns, Column(MODEL_DEGRADED, ColumnType.BOOLEAN), *LISTS.columns()])


def rules(version=1, many=3, brake=""):
    return load_ruleset(RULES.format(version=version, many=many, brake=brake), schema())


def core():
    return ScoringCore(FeatureEngine(SPEC), features=SPEC.names)


def batch(amounts, customers, payees=None, start=0):
    count = len(amounts)
    return transaction_batch(
        event_id=np.arange(start, start + count),
        time_us=(start + np.arange(count)) * 1_000_000 + 1,
        amount=np.array(amounts, float),
        channel=Channel.CARD,
        entities={"customer": customers, "payee": payees if payees is not None else [0] * count},
    )


def judge(engine, given, force, victims=None, without=None):
    advanced = engine.advance(given)
    rows = len(advanced.batch)
    seen = {
        "amount": advanced.batch.amount,
        "victims": np.zeros(rows) if victims is None else np.array(victims, float),
    }
    alone = seen if without is None else seen | {"victims": np.array(without, float)}
    differing = np.flatnonzero(seen["victims"] != alone["victims"])
    return engine.judge(advanced, Sight(seen, {}), Sight(alone, {}), differing, force)


def told(scored):
    return [scored.deciders[code] if code >= 0 else "" for code in scored.live.decider.tolist()]


def test_a_block_list_beats_an_allow_list_and_both_beat_the_rules():
    force = InForce(Deployment(1, rules()), LISTS)
    scored = judge(core(), batch([500, 500, 500, 5], [1, 1, 3, 4], [7, 1, 1, 7]), force)
    assert scored.live.verdict.tolist() == [3, 0, 1, 3]
    assert told(scored) == ["list:bad", "list:good", "large", "list:bad"]
    assert [reason.rule for reason in scored.reasons[0]] == ["list:bad", "large"]
    assert scored.reasons[0][0].text == "its payee is on the block list bad"
    assert sorted(scored.reasons) == [0, 2, 3]


def test_an_exemption_takes_one_rule_out_for_one_customer_until_its_end():
    force = InForce(Deployment(1, rules()), LISTS)
    engine = core()
    scored = judge(engine, batch([500, 500], [2, 3]), force)
    assert scored.live.verdict.tolist() == [0, 1]
    # The third event of a day is another rule's, and after its end the exemption is none.
    scored = judge(engine, batch([500, 500], [2, 2], start=2), force)
    assert told(scored) == ["", "many"]
    assert judge(engine, batch([500], [5], start=20), force).live.verdict.tolist() == [1]
    late = InForce(Deployment(1, rules(many=99)), LISTS)
    assert judge(engine, batch([500], [2], start=21), late).live.verdict.tolist() == [1]


def test_one_event_is_judged_as_it_is_among_others():
    random = np.random.default_rng(3)
    amounts, customers = random.integers(1, 200, 300), random.integers(1, 9, 300)
    payees = random.integers(1, 9, 300)
    force = InForce(Deployment(1, rules(), (rules(2, 5), 50.0), (rules(3, 1),)), LISTS)
    whole = judge(core(), batch(amounts, customers, payees), force)
    engine = core()
    for row in range(300):
        part = slice(row, row + 1)
        one = judge(engine, batch(amounts[part], customers[part], payees[part], start=row), force)
        assert one.live.verdict[0] == whole.live.verdict[row]
        assert (told(one)[0], one.version[0]) == (told(whole)[row], whole.version[row])
        assert one.reasons.get(0) == whole.reasons.get(row)
        assert one.shadow_verdicts[3][0] == whole.shadow_verdicts[3][row]
    assert set(whole.version.tolist()) == {1, 2}
    assert set(whole.live.verdict.tolist()) == {0, 1, 2, 3}


def test_without_the_consortium_only_what_differs_is_judged_again():
    force = InForce(Deployment(1, rules()), LISTS)
    given = batch([500, 500, 5, 5], [3, 1, 4, 5])
    scored = judge(core(), given, force, victims=[2, 2, 2, 0], without=[0, 0, 0, 0])
    assert scored.live.verdict.tolist() == [3, 0, 3, 0]
    assert scored.alone.verdict.tolist() == [1, 0, 0, 0]
    assert [scored.deciders[code] for code in scored.alone.decider[:2].tolist()] == ["large", "list:good"]


class Broken:
    """A model in service that fails."""

    version, name, features = 4, "broken 4", ("amount",)

    def score_or_degrade(self, values, rows):
        return np.full(rows, np.nan), np.ones(rows, np.bool_)


class Fixed(Broken):
    def score_or_degrade(self, values, rows):
        return values["amount"] / 1000, np.zeros(rows, np.bool_)

    def inputs(self, columns, rows):
        return columns["amount"][rows][:, None].astype(np.float32)

    def contributions(self, matrix):
        return np.ones((len(matrix), 1))


def test_a_broken_model_leaves_the_rules_to_decide_and_says_so():
    given = batch([600, 90, 10], [3, 4, 5])
    scored = judge(core(), given, InForce(Deployment(1, rules()), models=Serving(active=Fixed())))
    assert told(scored) == ["scored", "", ""]
    assert [reason.rule for reason in scored.reasons[0]] == ["scored", "large", "model:broken 4"]
    assert scored.score.tolist() == [0.6, 0.09, 0.01]
    scored = judge(core(), given, InForce(Deployment(1, rules()), models=Serving(active=Broken())))
    assert told(scored) == ["large", "blind", ""]
    assert (scored.model_degraded.all(), scored.model_version) == (True, 4)
    scored = judge(core(), given, InForce(Deployment(1, rules()), models=Serving(failure="gone")))
    assert told(scored) == ["large", "blind", ""]
    assert scored.model_failure == "gone"
    scored = judge(core(), given, InForce(Deployment(1, rules())))
    assert told(scored) == ["large", "", ""]
    assert not scored.has_model


class Blind(Fixed):
    """A model whose column the stream has no more."""

    features = ("gone",)

    def score_or_degrade(self, values, rows):
        return np.full(rows, np.nan), np.array(["gone" not in values] * rows)

    def inputs(self, columns, rows):
        return columns["gone"][rows][:, None]


class Speechless(Fixed):
    def contributions(self, matrix):
        raise FloatingPointError("no leaf")


@pytest.mark.parametrize("rows", [1, 3])
def test_a_model_that_cannot_score_or_explain_costs_no_verdict(rows, caplog):
    given = batch([600, 90, 10][:rows], [3, 4, 5][:rows])
    # A rule may well ask whether there is a score: it has spoken, and there is nothing to explain.
    asking = load_ruleset(
        'name = "x"\nversion = 1\n[[rule]]\nid = "no-score"\nwhen = "missing(model_score)"\nverdict = "review"\n'
        'reason = "none"',
        schema(),
    )
    scored = judge(core(), given, InForce(Deployment(1, asking), models=Serving(active=Blind())))
    assert scored.live.verdict.tolist() == [2, 2, 2][:rows]
    assert scored.model_degraded.all()
    assert {reason.rule for each in scored.reasons.values() for reason in each} == {"no-score"}
    scored = judge(core(), given, InForce(Deployment(1, rules()), models=Serving(active=Speechless())))
    assert told(scored) == ["scored", "", ""][:rows]
    assert scored.reasons[0][-1].rule == "model:broken 4"
    assert "cannot be told" in scored.reasons[0][-1].text
    assert "no leaf" in caplog.text


@pytest.mark.parametrize("rows", [1, 4])
def test_without_a_rule_lists_decide_and_everything_else_is_allowed(rows):
    empty = load_ruleset('name = "none"\nversion = 1', schema())
    force = InForce(Deployment(1, empty, (empty, 50.0), (empty,)), LISTS, Serving(active=Fixed()))
    given = batch([500, 500, 500, 5][:rows], [4, 1, 2, 3][:rows], [7, 1, 1, 1][:rows])
    scored = judge(core(), given, force, victims=[2] * rows, without=[0] * rows)
    assert scored.live.verdict.tolist() == scored.alone.verdict.tolist() == [3, 0, 0, 0][:rows]
    assert told(scored) == ["list:bad", "list:good", "", ""][:rows]
    assert scored.rule_hits.tolist() == []


@pytest.mark.parametrize("rows", [1, 3])
def test_a_rule_on_a_list_that_is_gone_or_on_a_missing_number_is_counted_and_does_not_hit(rows):
    ruleset = load_ruleset(
        """
name = "x"
version = 1
[[rule]]
id = "listed"
when = "not listed_bad"
verdict = "block"
reason = "x"
[[rule]]
id = "counted"
when = "count_1d / victims > 1 or count_1d < 99"
verdict = "review"
reason = "{count_1d}"
[[rule]]
id = "large"
when = "amount > 100"
verdict = "challenge"
reason = "{amount}"
""",
        schema(),
    )
    engine = core()
    advanced = engine.advance(batch([500, 90, 500][:rows], [3, 4, 5][:rows]))
    advanced.values[:, :] = np.nan
    seen = Sight({"amount": advanced.batch.amount, "victims": np.zeros(rows)}, {})
    scored = engine.judge(advanced, seen, seen, np.empty(0, np.int64), InForce(Deployment(1, ruleset)))
    assert told(scored) == ["large", "", "large"][:rows]
    assert scored.rule_errors.tolist()[0] == rows


def test_exemptions_brake_and_lists_are_told_by_row():
    lists = LISTS.with_table(
        empty_list("whole", ListKind.EXEMPTION, "customer").added(["6"], np.array([NEVER]), [""])
    )
    force = InForce(Deployment(1, rules(many=99, brake="[brake]\nmin_events = 1\nchallenge = 0.4\n")), lists)
    scored = judge(core(), batch([500, 5, 500, 500, 500, 500], [2, 2, 6, 3, 4, 5]), force)
    exempt = [scored.exempt.rules[place] for place in scored.exempt.places.tolist()]
    assert (scored.exempt.rows.tolist(), exempt) == ([0, 1, 2], ["large", "large", ""])
    # Exempt rows are no hits; the third hit of six events is above the share.
    assert scored.live.verdict.tolist() == [0, 0, 0, 1, 1, 0]
    braked = [scored.braked.rules[place] for place in scored.braked.places.tolist()]
    assert (scored.braked.rows.tolist(), braked) == ([5], ["large"])
    assert set(scored.listed) == {"listed_bad", "listed_good", "listed_cleared", "listed_whole"}


BRAKED = "[brake]\nmin_events = 20\nmin_customers = 1\nchallenge = 0.3\n"


def play(engine, force, cuts, recall=None):
    """Batches of 10; those before ``recall`` are only recalled, from ``cuts`` judged before."""
    verdicts = []
    for number in range(10):
        given = batch([500 if row % 2 else 5 for row in range(10)], list(range(20, 30)), start=10 * number)
        if recall is not None and number < recall:
            advanced = engine.advance(given)
            engine.recall(advanced, *cuts[number], force.deployment)
            continue
        scored = judge(engine, given, force)
        cuts.append((scored.version, scored.spoke))
        verdicts.append(scored.live.verdict.tolist())
    return verdicts


def test_a_stopped_rule_stays_stopped_over_a_snapshot_and_a_replay():
    force = InForce(Deployment(1, rules(many=99, brake=BRAKED)), LISTS)
    cuts = []
    whole = play(core(), force, cuts)
    # Half of the events are large: at the twentieth, the first that counts, the rule is stopped.
    assert sum(map(sum, whole)) == sum(map(sum, whole[:2])) == 9
    for recalled in (1, 2, 3, 7):
        assert play(core(), force, list(cuts), recalled) == whole[recalled:]
    engine = core()
    for number in range(3):
        judge(
            engine,
            batch([500 if row % 2 else 5 for row in range(10)], list(range(20, 30)), start=10 * number),
            force,
        )
    state = engine.state()
    assert all(array.dtype.kind in "biuf" for array in state.values())
    again = core()
    again.restore(state, force.deployment)
    given = batch([500] * 10, list(range(20, 30)), start=30)
    assert judge(again, given, force).live.verdict.tolist() == [0] * 10
    assert [count.rule for count in again.brake_counts() if count.braked] == ["large"]
    # Another version with the same rule: what was stopped stays stopped.
    other = InForce(Deployment(2, rules(2, many=99, brake=BRAKED)), LISTS)
    again = core()
    again.restore(state, other.deployment)
    assert judge(again, given, other).live.verdict.tolist() == [0] * 10

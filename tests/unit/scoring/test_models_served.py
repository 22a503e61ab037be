"""Training, the one file a model is kept in, serving and its failures, and reasons."""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import replace
from typing import Any

import lightgbm
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from scoring.models import artefact as artefact_module
from scoring.models import shap
from scoring.models.artefact import (
    MAGIC,
    MAX_CARD_BYTES,
    ArtefactError,
    ModelArtefact,
    artefact_digest,
    check_name,
    decode_artefact,
    encode_artefact,
)
from scoring.models.dataset import NEVER, DatasetError, DataWindow, LabelledRows
from scoring.models.explanation import top_reasons
from scoring.models.lifecycle import (
    NEXT,
    LifecycleError,
    ModelState,
    ModelVerb,
    check_second_person,
    next_state,
)
from scoring.models.served import ModelError, ServedModel, Serving
from scoring.models.training import TrainingOptions, train
from scoring.models.trees import as_inputs

DAY = 86_400_000_000
NAMES = ("amount", "count_1d", "risk_7d", "night")
OPTIONS = TrainingOptions(trees=25, leaves=15)


def rows(n: int = 6000, seed: int = 0) -> LabelledRows:
    """Thirty days in which a large amount at a risky terminal is often fraud, known three days later."""
    random = np.random.default_rng(seed)
    features = np.column_stack(
        [random.lognormal(3, 1, n), random.integers(0, 9, n), random.random(n) ** 3, random.integers(0, 2, n)]
    ).astype(float)
    chance = 1 / (1 + np.exp(6 - 5 * features[:, 2] - 0.03 * features[:, 0]))
    features[random.random(n) < 0.1, 2] = np.nan
    times = np.sort(random.integers(0, 30 * DAY, n))
    fraud = random.random(n) < chance
    return LabelledRows(
        names=NAMES,
        features=features,
        fraud_known_us=np.where(fraud, times + 3 * DAY, NEVER),
        time_us=times,
        amount=features[:, 0],
        customer=random.integers(0, 500, n),
        weight=np.ones(n),
    )


WINDOW = DataWindow(0, 16 * DAY, 7 * DAY, 30 * DAY)


@pytest.fixture(scope="module")
def trained() -> ModelArtefact:
    return train("cards", rows(), WINDOW, OPTIONS)


@pytest.fixture(scope="module")
def content(trained: ModelArtefact) -> bytes:
    return encode_artefact(trained)


@pytest.fixture
def columns() -> dict[str, NDArray[np.float64]]:
    fresh = rows(3000, seed=9)
    return dict(zip(NAMES, np.ascontiguousarray(fresh.features.T), strict=True))


# ---- training


def test_training_is_lightgbm_on_the_training_window_alone(trained: ModelArtefact) -> None:
    data = rows()
    inside = data.time_us < 16 * DAY
    inputs = as_inputs(data.features[inside])
    label = (data.fraud_known_us[inside] <= 23 * DAY).astype(float)
    parameters = {
        "objective": "binary",
        "num_leaves": 15,
        "learning_rate": 0.05,
        "min_data_in_leaf": 20,
        "seed": 0,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }
    reference = lightgbm.train(parameters, lightgbm.Dataset(inputs, label), 25)
    fresh = as_inputs(rows(500, seed=4).features)
    np.testing.assert_allclose(
        trained.trees.predict(fresh), reference.predict(fresh, raw_score=True), atol=1e-12
    )
    card = trained.card
    assert (card.train_rows, card.train_frauds) == (int(inside.sum()), int(label.sum()))
    after = data.time_us >= 23 * DAY
    assert (card.metrics.rows, card.metrics.frauds) == (
        int(after.sum()),
        int((data.fraud_known_us[after] != NEVER).sum()),
    )
    assert card.metrics.roc_auc > 0.75
    assert card.features == NAMES
    assert card.parameters["trees"] == 25


def test_equal_rows_and_options_give_the_same_file(content: bytes) -> None:
    told: list[tuple[int, int]] = []
    again = train(
        "cards",
        rows(),
        WINDOW,
        replace(OPTIONS, threads=2),
        advance=lambda done, of: told.append((done, of)),
    )
    assert encode_artefact(again) == content
    assert told == [(i, 25) for i in range(1, 26)]
    assert encode_artefact(train("cards", rows(seed=1), WINDOW, OPTIONS)) != content


def test_weights_count(trained: ModelArtefact) -> None:
    data = rows()
    heavier = replace(data, weight=np.where(data.fraud_known_us != NEVER, 20.0, 1.0))
    found = train("cards", heavier, WINDOW, OPTIONS)
    fresh = as_inputs(rows(500, seed=4).features)
    assert found.trees.predict(fresh).mean() > trained.trees.predict(fresh).mean() + 1


@pytest.mark.parametrize(
    "changes",
    [{"trees": 0}, {"leaves": 1}, {"learning_rate": 2.0}, {"threads": 0}, {"target_precision": 1.5}],
)
def test_options_out_of_bounds_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DatasetError, match=next(iter(changes))):
        TrainingOptions(**changes)


# ---- the file


def test_the_file_gives_the_model_back(trained: ModelArtefact, content: bytes) -> None:
    again = decode_artefact(content, expected_digest=artefact_digest(content))
    assert encode_artefact(again) == content
    assert again.card == trained.card
    assert np.array_equal(again.trees.threshold, trained.trees.threshold)
    assert np.array_equal(again.baselines[2].fine.counts, trained.baselines[2].fine.counts)
    assert b"pickle" not in content


def test_a_damaged_or_foreign_file_is_refused(content: bytes) -> None:
    with pytest.raises(ArtefactError, match="digest is another"):
        decode_artefact(content, expected_digest=bytes(32))
    with pytest.raises(ArtefactError, match="no model"):
        decode_artefact(b"\x80\x04" + content)
    random = np.random.default_rng(0)
    for place in random.integers(len(MAGIC), len(content), 40).tolist():
        changed = bytearray(content)
        changed[place] ^= 1 << int(random.integers(8))
        with pytest.raises(ArtefactError, match="damaged"):
            decode_artefact(bytes(changed))
    for end in (0, 10, len(MAGIC) + 5, len(content) // 2, len(content) - 1):
        with pytest.raises(ArtefactError):
            decode_artefact(content[:end])
    with pytest.raises(ArtefactError):
        decode_artefact(content + b"x")


def test_a_file_too_large_is_neither_read_nor_written(
    content: bytes, trained: ModelArtefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefact_module, "MAX_ARTEFACT_BYTES", len(content) - 1)
    with pytest.raises(ArtefactError, match="at most"):
        decode_artefact(content)
    with pytest.raises(ArtefactError, match="at most"):
        encode_artefact(trained)


def test_a_well_formed_file_that_contradicts_itself_is_refused(trained: ModelArtefact) -> None:
    left = trained.trees.left.copy()
    left[np.flatnonzero(left >= 0)[-1]] = 0
    fewer = msgspec.structs.replace(trained.card, features=NAMES[:2])
    for bad, words in (
        (replace(trained, trees=replace(trained.trees, left=left)), "child"),
        (replace(trained, card=fewer), "contradicts"),
        (replace(trained, baselines=trained.baselines[:-1]), "baselines"),
        (replace(trained, probes=trained.probes[:0], probe_scores=trained.probe_scores[:0]), "probes"),
        (replace(trained, card=msgspec.structs.replace(trained.card, name="../x")), "name"),
        (replace(trained, card=msgspec.structs.replace(trained.card, features=("a",) * 4)), "each once"),
    ):
        with pytest.raises(ArtefactError, match=words):
            decode_artefact(encode_artefact(bad))


def test_a_card_that_cannot_be_told_as_json_is_refused(trained: ModelArtefact) -> None:
    # Stored, it would end every listing of the models in an error.
    metrics = msgspec.structs.replace(trained.card.metrics, target_precision=math.nan)
    for card in (
        msgspec.structs.replace(trained.card, metrics=metrics),
        msgspec.structs.replace(trained.card, parameters={"rate": math.inf}),
        msgspec.structs.replace(trained.card, trained_with="x" * MAX_CARD_BYTES),
    ):
        with pytest.raises(ArtefactError, match="card"):
            decode_artefact(encode_artefact(replace(trained, card=card)))


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "-", "ä", "x" * 65])
def test_names_are_plain(name: str) -> None:
    with pytest.raises(ArtefactError):
        check_name(name)
    check_name("cards-2026.1_b")


# ---- serving


def test_scores_are_the_trees_and_do_not_depend_on_the_batch(
    content: bytes, trained: ModelArtefact, columns: dict[str, NDArray[np.float64]]
) -> None:
    model = ServedModel.load(content, version=3, columns=[*NAMES, "other"])
    matrix = as_inputs(np.column_stack([columns[name] for name in NAMES]))
    whole = model.score(columns, 3000)
    assert whole.dtype == np.float64
    np.testing.assert_allclose(whole, 1 / (1 + np.exp(-trained.trees.predict(matrix))), atol=1e-6)
    for size in (1, 7, 64, 1000):
        parts = [
            model.score({name: each[at : at + size] for name, each in columns.items()}, min(size, 3000 - at))
            for at in range(0, 3000 if size > 1 else 50, size)
        ]
        assert np.array_equal(np.concatenate(parts), whole[: sum(map(len, parts))])
    threaded = ServedModel.load(content, threads=3)
    assert np.array_equal(threaded.score(columns, 3000), whole)
    threaded.close()


def test_threads_share_a_model(content: bytes, columns: dict[str, NDArray[np.float64]]) -> None:
    model = ServedModel.load(content)
    whole = model.score(columns, 3000)
    wrong: list[int] = []

    def work(offset: int) -> None:
        for _ in range(30):
            part = {name: each[offset : offset + 500] for name, each in columns.items()}
            if not np.array_equal(model.score(part, 500), whole[offset : offset + 500]):
                wrong.append(offset)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(0, 2500, 500)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_extreme_values_score_and_missing_columns_are_named(content: bytes) -> None:
    model = ServedModel.load(content)
    strange = np.array([1e300, -1e300, math.inf, -math.inf, math.nan, 0.0])
    score = model.score(dict.fromkeys(NAMES, strange), 6)
    assert ((score > 0) & (score < 1)).all()
    assert len(model.score(dict.fromkeys(NAMES, strange), 0)) == 0
    booleans = {name: np.array([True, False]) for name in NAMES}
    assert len(model.score(booleans, 2)) == 2
    with pytest.raises(ModelError, match="does not have: count_1d, night"):
        ServedModel.load(content, columns=["amount", "risk_7d"])


class Broken:
    """A session that fails when told to."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.fail: str = ""

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[NDArray[np.float32]]:
        (found,) = self.session.run(outputs, inputs)
        if self.fail == "raise":
            raise RuntimeError("the runtime gave up")
        if self.fail == "nan":
            found[::2] = np.nan
        return [found]


def test_a_model_that_breaks_degrades_and_comes_back(
    content: bytes, columns: dict[str, NDArray[np.float64]], caplog: pytest.LogCaptureFixture
) -> None:
    model = ServedModel.load(content, version=5)
    broken = Broken(model._session)
    model._session = broken
    serving = Serving(active=model, shadows=(ServedModel.load(content, version=6),))
    good = serving.columns(columns, 100)
    assert not good.degraded.any()
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            broken.fail = "raise"
            found = serving.columns(columns, 100)
            assert np.isnan(found.score).all()
            assert found.degraded.all()
            assert np.array_equal(found.shadows[6], good.score)  # the others are not affected
            broken.fail = "nan"
            found = serving.columns(columns, 100)
            assert found.degraded.sum() == 50
            assert np.array_equal(found.score[1::2], good.score[1::2])
    assert model.failures == 450
    assert len(caplog.records) == 1, "logged once"
    assert "cards 5" in caplog.text
    broken.fail = ""
    assert np.array_equal(serving.columns(columns, 100).score, good.score)
    missing = serving.columns({"amount": columns["amount"]}, 100)
    assert missing.degraded.all()
    assert len([each for each in caplog.records if each.levelno == logging.ERROR]) == 2


def test_no_model_is_not_a_failed_model() -> None:
    nothing = Serving().columns({}, 4)
    assert np.isnan(nothing.score).all()
    assert not nothing.degraded.any()
    assert Serving(failure="its file is gone").columns({}, 4).degraded.all()


def test_a_model_that_does_not_give_its_scores_is_not_served(trained: ModelArtefact) -> None:
    for bad, words in (
        (replace(trained, onnx=b"not a model"), "refuses"),
        (replace(trained, probe_scores=trained.probe_scores + 1e-3), "scores it gave"),
        (replace(trained, probe_scores=trained.probe_scores * np.nan), "scores it gave"),
    ):
        with pytest.raises(ModelError, match=words):
            ServedModel.load(encode_artefact(bad))
    other = train(
        "cards", replace(rows(), names=NAMES[:3], features=rows().features[:, :3].copy()), WINDOW, OPTIONS
    )
    with pytest.raises(ModelError, match="does not read 4"):
        ServedModel.load(encode_artefact(replace(trained, onnx=other.onnx)))


def test_a_model_that_cannot_be_explained_is_not_served(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shap, "MAX_PATH", 1)
    with pytest.raises(ModelError, match="cannot be explained: a path tests"):
        ServedModel.load(content)


# ---- reasons


def test_reasons_name_what_raised_the_score(content: bytes, columns: dict[str, NDArray[np.float64]]) -> None:
    model = ServedModel.load(content)
    score = model.score(columns, 3000)
    worst = np.argsort(-score)[:5]
    matrix = model.inputs(columns, worst)
    phi = model.contributions(matrix)
    raw = np.log(score[worst] / (1 - score[worst]))
    np.testing.assert_allclose(phi.sum(axis=1) + model.paths.expected, raw, atol=1e-4)
    given = top_reasons(model, matrix, top=2, words={"risk_7d": "fraud rate of the terminal over 7 days"})
    for row, reasons in enumerate(given):
        order = np.argsort(-phi[row], kind="stable")[:2]
        assert [each.feature for each in reasons] == [NAMES[i] for i in order if phi[row, i] > 0]
        raised = phi[row][phi[row] > 0].sum()
        for each in reasons:
            place = NAMES.index(each.feature)
            assert each.log_odds == phi[row, place]
            assert each.share == pytest.approx(phi[row, place] / raised)
            assert each.value == matrix[row, place]
            assert each.text.endswith(f"{each.share:.0%} of what speaks for fraud")
    assert "fraud rate of the terminal over 7 days is 0." in given[0][0].text + given[0][1].text
    calm = model.inputs(columns, np.argsort(score)[:1])
    assert all(each.log_odds > 0 for each in top_reasons(model, calm, top=9)[0])


def test_a_missing_value_is_a_reason_in_words(content: bytes) -> None:
    model = ServedModel.load(content)
    row = as_inputs(np.array([[3000.0, 2.0, np.nan, 0.0]]))
    texts = [each.text for each in top_reasons(model, row, top=4)[0]]
    assert any(text.startswith("amount is 3000: ") for text in texts)
    shown = [each for each in top_reasons(model, row, top=4)[0] if each.feature == "risk_7d"]
    assert all("is not known" in each.text for each in shown)


# ---- the life of a model


def test_the_table_of_states() -> None:
    for state in ModelState:
        for verb in ModelVerb:
            if (state, verb) in NEXT:
                assert next_state(1, state, verb) is NEXT[state, verb]
            else:
                with pytest.raises(LifecycleError, match=state.value):
                    next_state(1, state, verb)
    assert {end for (_, verb), end in NEXT.items() if verb is ModelVerb.RETIRE} == {ModelState.RETIRED}
    check_second_person(1, "anna", "ben")
    with pytest.raises(LifecycleError, match="somebody else"):
        check_second_person(1, "anna", "anna")

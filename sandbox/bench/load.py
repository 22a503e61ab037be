"""What the scoring benchmark scores: seeded events, a model trained on them, fifty rules, three lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from member_node.scoring_settings import ScoringSettings
from member_node.service.history import HistoryStore
from member_node.service.history_feed import HistoryFeed
from member_node.service.layout import rule_columns
from member_node.service.scoring import ScoringService
from member_node.service.surroundings import Surveyor
from member_node.service.warming import read_numbers
from member_node.streams.events import EventBatch, event_schema, transactions_of
from member_node.streams.journal import Journal
from member_node.streams.mapping import StreamMapping
from scoring.engine import ScoringCore
from scoring.features.engine import FeatureEngine
from scoring.features.spec import FeatureSpec, FieldFeature, parse_spec
from scoring.lists import ListKind, ListSet, empty_list
from scoring.models.dataset import NEVER, DataWindow, LabelledRows
from scoring.models.served import ServedModel, Serving
from scoring.rules.deployment import Deployment
from scoring.rules.ruleset import load_ruleset
from scoring.schema import ENTITIES
from scoring.scored import InForce
from scoring.verdicts import TierTable

CUSTOMERS, OTHERS = 50_000, 20_000
DAYS = 30
DAY_US = 86_400_000_000
START_US = 20_454 * DAY_US  # 2026-01-01
LISTED = 10_000
RULES, PREDICATES = 50, 5
LEAVES, TREES = 31, 200
BATCH = 8192
TRAINING_ROWS = 60_000
SINGLES = 2_000
SPEC = Path(__file__).parents[1] / "features" / "reference.toml"


def mapping_of(spec: FeatureSpec, numbers: Sequence[str]) -> StreamMapping:
    """A live stream with every entity that ``spec`` reads, and the three the lists are about."""
    read = {name for each in spec.entities for name in each.split("+")}
    used = [name for name in ENTITIES if name in read | {"customer", "payee", "device"}]
    fields = ("event_id", "time", "amount", "channel", *used)
    return StreamMapping(
        name="bench",
        columns={name: name for name in fields},
        types=dict.fromkeys(("event_id", *used), "integer"),
        numbers={name: name for name in numbers},
    )


def make_events(mapping: StreamMapping, rows: int, seed: int) -> EventBatch:
    """``rows`` card and transfer events over thirty days by time; customers and counterparties by a power law."""
    random = np.random.default_rng(seed)
    columns: dict[str, pa.Array] = {
        "event_id": pa.array(np.arange(rows, dtype=np.int64)),
        "time_us": pa.array(START_US + np.sort(random.integers(0, DAYS * DAY_US, rows))),
        "channel": pa.array(random.integers(2, 6, rows).astype(np.uint8)),
        "amount": pa.array(np.round(random.gamma(1.5, 60.0, rows), 2)),
    }
    for name in mapping.entities:
        count = CUSTOMERS if name in ("customer", "account", "card") else OTHERS
        columns[name] = pa.array((count * random.random(rows) ** 1.5).astype(np.int64))
    for name in mapping.numbers:
        columns[name] = pa.array(random.uniform(-80.0, 80.0, rows))
    schema = event_schema(
        dict.fromkeys(mapping.entities, True), integer_ids=True, numbers=tuple(mapping.numbers)
    )
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def numbers_for_rules(spec: FeatureSpec) -> list[str]:
    """The features that rules and the model may read."""
    return [
        each.name for each in spec.features if not isinstance(each, FieldFeature) and each.name.isidentifier()
    ]


def make_rules(features: Sequence[str], model: bool) -> str:
    """Fifty rules of five predicates, each true for about one row in ten thousand or fewer."""
    random = np.random.default_rng(5)
    lines = ['name = "bench"', "version = 1"]
    for rule in range(RULES):
        read = random.choice(len(features), PREDICATES - 1, replace=False)
        tests = [f"{features[place]} > {10.0 + 3 * index}" for index, place in enumerate(read.tolist())]
        tests.append(
            f"model_score > {0.9 + rule / 1000:.3f}" if model and rule % 5 == 0 else f"amount > {600 + rule}"
        )
        verdict = ("challenge", "review", "block")[rule % 3]
        lines += [
            "[[rule]]",
            f'id = "rule-{rule}"',
            f'when = "{" and ".join(tests)}"',
            f'verdict = "{verdict}"',
            'reason = "amount {amount}"',
        ]
    return "\n".join(lines)


def listed() -> list[tuple[str, ListKind, str, list[str]]]:
    """A block list of payees, an allow list of devices, a watch list of customers: name, kind, entity, values."""
    random = np.random.default_rng(7)
    return [
        # Most values are of nobody in the stream, as on real lists.
        (name, kind, entity, [str(value) for value in random.integers(0, 10**9, LISTED).tolist()])
        for name, kind, entity in (
            ("mules", ListKind.BLOCK, "payee"),
            ("trusted", ListKind.ALLOW, "device"),
            ("watched", ListKind.WATCH, "customer"),
        )
    ]


def make_lists() -> ListSet:
    """The lists as the engine probes them."""
    forever = np.full(LISTED, np.iinfo(np.int64).max)
    return ListSet(
        empty_list(name, kind, entity).added(values, forever) for name, kind, entity, values in listed()
    )


def mapping_text(mapping: StreamMapping) -> str:
    """The mapping as a file."""
    lines = ["[columns]", *(f'{name} = "{column}"' for name, column in mapping.columns.items())]
    lines += ["[types]", *(f'{name} = "{kind}"' for name, kind in mapping.types.items())]
    lines += ["[numbers]", *(f'{name} = "{column}"' for name, column in mapping.numbers.items())]
    return "\n".join(lines)


def train_model(spec: FeatureSpec, events: EventBatch, features: Sequence[str]) -> ServedModel:
    """LightGBM, 200 trees of 31 leaves, trained on ``events`` with labels that follow from some of the features."""
    from scoring.models.training import TrainingOptions, train

    batch = transactions_of(events)
    matrix = FeatureEngine(spec).update(batch)
    places = [matrix.names.index(name) for name in features]
    values = np.nan_to_num(matrix.values[:, places])
    random = np.random.default_rng(11)
    weights = random.normal(0, 1, len(places)) / (values.std(axis=0) + 1e-9)
    signal = (values - values.mean(axis=0)) @ weights
    fraud = signal + random.normal(0, signal.std(), len(signal)) > np.quantile(signal, 0.98)
    rows = LabelledRows(
        names=tuple(features),
        features=np.ascontiguousarray(matrix.values[:, places]),
        fraud_known_us=np.where(fraud, batch.time_us + 1, NEVER),
        time_us=batch.time_us,
        amount=batch.amount,
        customer=np.arange(len(batch), dtype=np.int64),
        weight=np.ones(len(batch)),
    )
    window = DataWindow.ending(
        START_US + (DAYS + 1) * DAY_US, train_us=24 * DAY_US, valid_us=7 * DAY_US, label_delay_us=DAY_US
    )
    options = TrainingOptions(trees=TREES, leaves=LEAVES, least_leaf_rows=5)
    return ServedModel(train("bench", rows, window, options), version=1)


class Bench:
    """One prepared load: events, spec, what is in force."""

    def __init__(self, size: int, spec_file: Path = SPEC) -> None:
        """``size`` events and some single ones, rules, lists and a trained model; takes some seconds."""
        self.spec_text = spec_file.read_text(encoding="utf-8")
        self.spec: FeatureSpec = parse_spec(self.spec_text)
        self.mapping = mapping_of(self.spec, read_numbers(self.spec))
        self.features = numbers_for_rules(self.spec)
        self.events = make_events(self.mapping, size + SINGLES, 1)
        lists = make_lists()
        self.model = train_model(self.spec, make_events(self.mapping, TRAINING_ROWS, 2), self.features)
        columns = rule_columns(self.mapping, self.features, [], lists=lists.columns())
        self.rules_text = make_rules(self.features, model=True)
        self.force = InForce(
            Deployment(1, load_ruleset(self.rules_text, columns)), lists, Serving(self.model)
        )
        self.size = size

    def batches(self) -> Iterator[EventBatch]:
        """The first ``size`` events in batches of :data:`BATCH`."""
        for start in range(0, self.size, BATCH):
            yield self.events.slice(start, min(BATCH, self.size - start))

    @contextmanager
    def service(self, directory: Path) -> Iterator[ScoringService]:
        """A stream with journal and history below ``directory``."""
        history = HistoryStore(directory / "history")
        feed = HistoryFeed(history, None)
        with Journal(directory / "journal") as journal:
            service = ScoringService(
                core=self.core(),
                surveyor=self.surveyor(),
                in_force=lambda: self.force,
                deployment_at=lambda _number: self.force.deployment,
                journal=journal,
                feed=feed,
                numbers=read_numbers(self.spec),
            )
            yield service
            service.close()
            feed.close()
            history.close()

    def core(self) -> ScoringCore:
        """An engine without state."""
        return ScoringCore(
            FeatureEngine(self.spec, threads=ScoringSettings().feature_threads), features=self.features
        )

    def surveyor(self) -> Surveyor:
        """Time of day and channel, and nobody to ask."""
        nobody = Nobody()
        return Surveyor(
            "bank", self.mapping, tags=nobody, mirror=nobody, tiers=lambda: TierTable([]), counts=None
        )


class Nobody:
    """No consortium: the benchmark is of the bank's own engine."""

    def tags(self, kind: str, values: object) -> None:
        """Nothing to ensure."""

    def evidence(self, kind: str, values: object) -> dict[str, tuple[()]]:
        """Nothing known."""
        return {}

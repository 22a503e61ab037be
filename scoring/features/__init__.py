"""Declarative windowed features over any entity, computed by a streaming engine with exact, stable windows."""

from scoring.features.admission import Disposition
from scoring.features.engine import EngineSize, FeatureEngine, FeatureMatrix, join_shards, shard_of
from scoring.features.spec import (
    Aggregation,
    Calendar,
    CalendarFeature,
    Clock,
    Derivation,
    DerivedFeature,
    FeatureSpec,
    FieldFeature,
    Filter,
    Span,
    SpecError,
    WindowFeature,
    parse_spec,
)

__all__ = [
    "Aggregation",
    "Calendar",
    "CalendarFeature",
    "Clock",
    "Derivation",
    "DerivedFeature",
    "Disposition",
    "EngineSize",
    "FeatureEngine",
    "FeatureMatrix",
    "FeatureSpec",
    "FieldFeature",
    "Filter",
    "Span",
    "SpecError",
    "WindowFeature",
    "join_shards",
    "parse_spec",
    "shard_of",
]

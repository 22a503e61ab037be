"""How well each bank does alone, with the consortium, and if all rows were pooled: measured, never assumed."""

from sandbox.evaluation.calendar import Weeks
from sandbox.evaluation.evaluate import Evaluation, evaluate
from sandbox.evaluation.results import (
    ExactnessCheck,
    GrowthStep,
    ModelRow,
    Quality,
    TierRow,
    VerdictRow,
    VerdictTable,
)
from sandbox.evaluation.stream import ScoredStream, load_stream, truth_of

__all__ = [
    "Evaluation",
    "ExactnessCheck",
    "GrowthStep",
    "ModelRow",
    "Quality",
    "ScoredStream",
    "TierRow",
    "VerdictRow",
    "VerdictTable",
    "Weeks",
    "evaluate",
    "load_stream",
    "truth_of",
]

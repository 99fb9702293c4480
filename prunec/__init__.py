"""prunec: a compiler that makes Vision Transformers faster by letting them look at fewer tokens."""

from prunec.anatomy import Anatomy, NoMatch
from prunec.data.preprocess import Preprocess
from prunec.errors import (
    CaptureError,
    NoGainError,
    PolicyError,
    PruneError,
    RecognitionError,
    SourceError,
    TargetError,
    UsageError,
    VerificationError,
)
from prunec.measure import Measure
from prunec.modes import Masked, Packed, Padded, Static
from prunec.planner.goal import Goal
from prunec.planner.planned import Search
from prunec.policy import Policy, presets
from prunec.verbs import (
    Result,
    anatomy,
    benchmark,
    diff,
    latency_table,
    load,
    optimize,
    plan,
    save,
    sweep,
    transform,
)
from prunec.version import __version__

__all__ = [
    "Anatomy",
    "CaptureError",
    "Goal",
    "Masked",
    "Measure",
    "NoGainError",
    "NoMatch",
    "Packed",
    "Padded",
    "Policy",
    "PolicyError",
    "Preprocess",
    "PruneError",
    "RecognitionError",
    "Result",
    "Search",
    "SourceError",
    "Static",
    "TargetError",
    "UsageError",
    "VerificationError",
    "__version__",
    "anatomy",
    "benchmark",
    "diff",
    "latency_table",
    "load",
    "optimize",
    "plan",
    "presets",
    "save",
    "sweep",
    "transform",
]

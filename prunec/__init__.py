"""prunec: a compiler that makes Vision Transformers faster by letting them look at fewer tokens."""

from prunec.anatomy import Anatomy, NoMatch
from prunec.compiler import anatomy, transform
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
from prunec.policy import Policy, presets

__version__ = "0.1.0"

__all__ = [
    "Anatomy",
    "CaptureError",
    "NoGainError",
    "NoMatch",
    "Policy",
    "PolicyError",
    "PruneError",
    "RecognitionError",
    "SourceError",
    "TargetError",
    "UsageError",
    "VerificationError",
    "__version__",
    "anatomy",
    "presets",
    "transform",
]

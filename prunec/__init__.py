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
from prunec.modes import Masked, Packed, Padded, Static
from prunec.policy import Policy, presets
from prunec.verbs import Result, anatomy, diff, load, optimize, transform
from prunec.version import __version__

__all__ = [
    "Anatomy",
    "CaptureError",
    "Masked",
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
    "SourceError",
    "Static",
    "TargetError",
    "UsageError",
    "VerificationError",
    "__version__",
    "anatomy",
    "diff",
    "load",
    "optimize",
    "presets",
    "transform",
]

"""prunec: a compiler that makes Vision Transformers faster by letting them look at fewer tokens.

A name is imported when it is first used (PEP 562): `import prunec` and `prunec --help` do not wait for torch.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from prunec.version import __version__

if TYPE_CHECKING:  # the same names as in _MODULES, for type checkers and editors
    from prunec.api.running import Predictor
    from prunec.api.verbs import (
        Result,
        anatomy,
        benchmark,
        diff,
        from_pretrained,
        latency_table,
        load,
        optimize,
        plan,
        save,
        sweep,
        transform,
    )
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
    from prunec.measure.measure import Measure
    from prunec.planner.planned import Search
    from prunec.policy.modes import Masked, Packed, Padded, Static
    from prunec.policy.policy import Policy, presets
    from prunec.schedules.goal import Goal
    from prunec.structure import Anatomy, NoMatch

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
    "Predictor",
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
    "from_pretrained",
    "latency_table",
    "load",
    "optimize",
    "plan",
    "presets",
    "save",
    "sweep",
    "transform",
]

#: Exported name -> the module that defines it. No module may have an exported name: once imported, it would
#: stand in its place.
_MODULES = {
    "Anatomy": "prunec.structure",
    "CaptureError": "prunec.errors",
    "Goal": "prunec.schedules.goal",
    "Masked": "prunec.policy.modes",
    "Measure": "prunec.measure.measure",
    "NoGainError": "prunec.errors",
    "NoMatch": "prunec.structure",
    "Packed": "prunec.policy.modes",
    "Padded": "prunec.policy.modes",
    "Policy": "prunec.policy.policy",
    "PolicyError": "prunec.errors",
    "Predictor": "prunec.api.running",
    "Preprocess": "prunec.data.preprocess",
    "PruneError": "prunec.errors",
    "RecognitionError": "prunec.errors",
    "Result": "prunec.api.verbs",
    "Search": "prunec.planner.planned",
    "SourceError": "prunec.errors",
    "Static": "prunec.policy.modes",
    "TargetError": "prunec.errors",
    "UsageError": "prunec.errors",
    "VerificationError": "prunec.errors",
    "anatomy": "prunec.api.verbs",
    "benchmark": "prunec.api.verbs",
    "diff": "prunec.api.verbs",
    "from_pretrained": "prunec.api.verbs",
    "latency_table": "prunec.api.verbs",
    "load": "prunec.api.verbs",
    "optimize": "prunec.api.verbs",
    "plan": "prunec.api.verbs",
    "presets": "prunec.policy.policy",
    "save": "prunec.api.verbs",
    "sweep": "prunec.api.verbs",
    "transform": "prunec.api.verbs",
}


logging.getLogger(__name__).addHandler(logging.NullHandler())  # whoever imports prunec says what is shown


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value  # found here from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

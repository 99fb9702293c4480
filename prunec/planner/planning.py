"""The planner: which blocks get a site, and how many tokens go on, so that a budget is met on this device.

    table (measured) --.
                       +--> frontier --> the best few --> built, timed, compared --> one of them, or none
    losses (measured) -'        ^                               |
                                '-- scale, losses that add up --'

A budget is a share of the compiled dense model's time, or a loss. What is predicted only says what to build;
what is chosen is chosen by what was measured. When no schedule gains enough it says so, and why.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunec import cost, figures
from prunec.anatomy import Anatomy
from prunec.compiler import Compiled, compile_recognised
from prunec.errors import NoGainError
from prunec.figures import Progress
from prunec.lowering import Lowering
from prunec.planner.frontiers import Map, Point
from prunec.planner.losses import Losses, Trial
from prunec.planner.schedule import Schedule, scheduled
from prunec.policy import Policy
from prunec.program import Program
from prunec.sources import Pictures
from prunec.targets import Flat, Target, device_of

LEAST_GAIN = 0.03
MOST_BUILT = 4  # schedules in one round of the loop
MARGINS = (1.0, 0.97, 1.03, 0.94)  # shares of the budget that these are the best for, by the prediction
ROUNDS = 15

"""Learning-rate multipliers as pure functions of the step, so that a resumed run cannot drift."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from lowbit.settings.recipe import SchedulerConfig

Schedule = Callable[[float], float]
"""From the 0-based step to a factor on the learning rate."""


def linear(step: float, steps: int, warmup: float) -> float:
    """Rise linearly to 1 over the first `warmup` of the steps, then fall linearly to 0.

    The first step has factor 0, as in the published code (`warmup_linear` of BertAdam).
    """
    progress = step / steps
    if progress < warmup:
        return progress / warmup
    return max((progress - 1.0) / (warmup - 1.0), 0.0)


def cosine(step: float, steps: int, warmup: float) -> float:
    """Rise linearly to 1, then follow half a cosine to 0."""
    progress = step / steps
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min((progress - warmup) / (1 - warmup), 1.0)))


def constant(step: float, steps: int, warmup: float) -> float:
    """Rise linearly to 1 and stay there."""
    progress = step / steps
    return progress / warmup if progress < warmup else 1.0


_SCHEDULES = {"linear": linear, "cosine": cosine, "constant": constant}


def build_schedule(settings: SchedulerConfig, steps: int) -> Schedule:
    """Return the schedule of a stage of `steps` steps."""
    return partial(_SCHEDULES[settings.kind], steps=steps, warmup=settings.warmup)

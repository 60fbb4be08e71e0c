"""How a number moves from one value to another: weights of loss terms, mixes of interventions."""

import math

RAMPS = ("constant", "linear", "cosine")


def ramped(start: float, end: float | None, ramp: str, progress: float) -> float:
    """Return the value between `start` and `end` at `progress`, 0 to 1; without an end it stays at `start`."""
    if end is None:
        return start
    if ramp == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return start + (end - start) * progress


def check_ramp(what: str, key: str, ramp: str, end: float | None) -> None:
    """Raise ValueError for an unknown ramp, or one that does not go with `<key>_end`."""
    if ramp not in RAMPS:
        raise ValueError(f"{what} ramp {ramp!r}: allowed are {', '.join(RAMPS)}")
    if (ramp == "constant") != (end is None):
        raise ValueError(f"{what}: `ramp: linear` or `cosine` and `{key}_end` go together")

"""Effect sizes of an ablation: paired differences to the recipe, their mean and its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from lowbit.results.formats import Grid, write_csv
from lowbit.results.scores import scale_of, std
from lowbit.results.text import EMPTY, score_text

CONFIDENCE = 0.95
_COLUMNS = ("slot", "change", "metric", "n", "expected", "mean", "difference", "low", "high", "reading")


@dataclass(frozen=True)
class Effect:
    """One arm of an ablation.

    Attributes:
        slot: What is changed.
        change: How.
        expected: Jobs.
        scores: Those of the finished ones.
        differences: Score minus that of the recipe, for every seed that both have.
    """

    slot: str
    change: str
    expected: int
    scores: tuple[float, ...]
    differences: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Mean difference."""
        return fmean(self.differences) if self.differences else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Confidence interval of the mean difference by Student's t; None of fewer than two seeds."""
        return confidence_interval(self.differences)

    @property
    def reading(self) -> str:
        """What the numbers allow to say."""
        if self.mean is None:
            return "not run"
        if self.interval is None:
            return "one seed: no interval"
        low, high = self.interval
        if low <= 0 <= high:
            return "interval includes 0"
        return "better" if low > 0 else "worse"


def confidence_interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Return mean ± t(n - 1) std / sqrt(n); None of fewer than two values.

    Example:
        >>> [round(end, 3) for end in confidence_interval([1.0, 2.0, 3.0])]
        [-0.484, 4.484]
    """
    from scipy.special import stdtrit

    count, spread = len(differences), std(differences)
    if spread is None:
        return None
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * spread / math.sqrt(count)
    return fmean(differences) - half, fmean(differences) + half


def ranked(effects: Sequence[Effect]) -> list[Effect]:
    """Return the recipe first, then what costs most, what gains most last, and what has not run at the very end."""
    base, *others = effects
    return [base, *sorted(others, key=lambda effect: math.inf if effect.mean is None else effect.mean)]


def effects_grid(effects: Sequence[Effect], metric: str | None) -> Grid:
    """Return the table, in the unit of papers."""
    scale = scale_of(metric)
    heads = ("slot", "change", (metric or "score").replace("/", " "), "difference", "95 % interval", "reading")
    lines, styles = [], {}
    for number, effect in enumerate(ranked(effects)):
        n = len(effect.scores)
        score = score_text(effect.scores, metric)
        score = score if n in (0, effect.expected) else f"{score}, {n} of {effect.expected}"
        mean = EMPTY if effect.mean is None else f"{scale * effect.mean:+.2f}"
        ends = effect.interval
        interval = EMPTY if ends is None else " to ".join(f"{scale * end:+.2f}" for end in ends)
        is_base = number == 0
        lines.append([effect.slot, effect.change, score, mean, interval, EMPTY if is_base else effect.reading])
        styles[number, 5] = {"better": "above", "worse": "below", "not run": "not-run"}.get(effect.reading, "")
    aligned = [(name, "left" if place in (0, 1, 5) else "right") for place, name in enumerate(heads)]
    return Grid(aligned, lines, styles=styles, groups=frozenset([1]), notes=_notes(effects))  # type: ignore[arg-type]


def _notes(effects: Sequence[Effect]) -> list[str]:
    told = sum(effect.interval is not None for effect in effects)
    notes = ["Difference: mean over the seeds of the variant's score minus that of the recipe with the same seed."]
    if told:
        notes.append(
            f"Of {told} such 95 % intervals about {told * (1 - CONFIDENCE):.1f} miss 0 even if no change has an effect."
        )
    else:
        notes.append("No interval: give two seeds or more, for example seed=1,2,3.")
    return notes


def effects_csv(effects: Sequence[Effect], metric: str | None) -> str:
    """Return the raw numbers, in the unit of run.json."""
    lines: list[Sequence[object]] = [_COLUMNS]
    for place, effect in enumerate(ranked(effects)):
        mean = fmean(effect.scores) if effect.scores else None
        low, high = effect.interval or (None, None)
        reading = "" if place == 0 else effect.reading
        facts = [effect.slot, effect.change, metric, len(effect.scores), effect.expected]
        lines.append([*facts, mean, effect.mean, low, high, reading])
    return write_csv(lines)

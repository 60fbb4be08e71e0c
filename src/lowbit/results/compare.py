"""Two runs side by side, and the effects of an ablation: paired differences with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lowbit.results.render import Align, Grid
from lowbit.results.scores import EMPTY, scale_of, score_text, std

ABSENT = "(none)"
_COSTS = ("steps", "seconds")
_CIRCUMSTANCES = ("status", "sweep", "device", "threads", "commit", "started", "finished")


@dataclass(frozen=True)
class Difference:
    """One key whose values differ; `change` is right minus left, of numbers."""

    key: str
    left: Any
    right: Any

    @property
    def change(self) -> float | None:
        """Right minus left."""
        numbers = [value for value in (self.left, self.right) if isinstance(value, int | float)]
        flags = isinstance(self.left, bool) or isinstance(self.right, bool)
        return None if flags or len(numbers) < 2 else numbers[1] - numbers[0]


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, list[Difference]]:
    """Return what differs between two runs (contents of run.json), by section; a section may be empty.

    A mapping that only one of them has is one difference; a setting that is null is the same as one that is not there.
    """
    sections = {
        "config": (left["config"], right["config"]),
        "metrics": (left["metrics"], right["metrics"]),
        "size": (left["size"], right["size"]),
        "cost": (_chosen(left, _COSTS), _chosen(right, _COSTS)),
        "teacher": (left["teacher"] or {}, right["teacher"] or {}),
        "versions": (left.get("versions", {}), right.get("versions", {})),
        "circumstances": (_chosen(left, _CIRCUMSTANCES), _chosen(right, _CIRCUMSTANCES)),
    }
    return {name: list(_differing(a, b)) for name, (a, b) in sections.items()}


def _chosen(run: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: run[key] for key in keys if key in run}


def _differing(left: Any, right: Any, key: str = "") -> Iterator[Difference]:
    ours, theirs = _items(left), _items(right)
    if ours is not None and theirs is not None:
        for name in dict.fromkeys([*ours, *theirs]):
            inner = f"{key}.{name}" if key else name
            yield from _differing(ours.get(name, ABSENT), theirs.get(name, ABSENT), inner)
    elif left != right and not (left != left and right != right) and {str(left), str(right)} != {"None", ABSENT}:
        yield Difference(key, left, right)  # nan equals nan here


def _items(value: Any) -> dict[str, Any] | None:
    """Return the items of a mapping, or of a list of more than plain values, by name; None for anything else."""
    if isinstance(value, Mapping):
        return {str(name): item for name, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        return {str(number): item for number, item in enumerate(value)}
    return None


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested builtins by dotted key; a list of plain values is a leaf."""
    items = _items(value)
    if items is None:
        yield prefix, value
    else:
        for key, item in items.items():
            yield from flat(item, f"{prefix}.{key}" if prefix else key)


CONFIDENCE = 0.95
_COLUMNS = ("slot", "change", "metric", "n", "expected", "mean", "difference", "low", "high", "reading")


@dataclass(frozen=True)
class Effect:
    """One arm of an ablation: what changes (`slot`) and how (`change`).

    Attributes:
        expected: Number of jobs.
        scores: Scores of the finished jobs.
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
    """Return the table, in the unit of papers; its numbers are in the unit of run.json."""
    scale = scale_of(metric)
    numbers: list[Sequence[object]] = [_COLUMNS]
    score_head = (metric or "score").replace("/", " ")
    words: list[tuple[str, Align]] = [("slot", "left"), ("change", "left")]
    measures: list[tuple[str, Align]] = [(name, "right") for name in (score_head, "difference", "95 % interval")]
    lines, styles = [], {}
    for number, effect in enumerate(ranked(effects)):
        n = len(effect.scores)
        score = score_text(effect.scores, metric)
        score = score if n in (0, effect.expected) else f"{score}, {n} of {effect.expected}"
        mean = EMPTY if effect.mean is None else f"{scale * effect.mean:+.2f}"
        ends = effect.interval
        interval = EMPTY if ends is None else " to ".join(f"{scale * end:+.2f}" for end in ends)
        reading = "" if number == 0 else effect.reading
        lines.append([effect.slot, effect.change, score, mean, interval, reading or EMPTY])
        measured = [metric, n, effect.expected, fmean(effect.scores) if n else None, effect.mean]
        numbers.append([effect.slot, effect.change, *measured, *(ends or (None, None)), reading])
        styles[number, 5] = {"better": "above", "worse": "below", "not run": "not-run"}.get(effect.reading, "")
    return Grid(
        [*words, *measures, ("reading", "left")],
        lines,
        styles=styles,
        groups=frozenset([1]),
        notes=_notes(effects),
        numbers=numbers,
    )


def _notes(effects: Sequence[Effect]) -> list[str]:
    n = sum(effect.interval is not None for effect in effects)
    missed = f"Of {n} such 95 % intervals about {n * (1 - CONFIDENCE):.1f} miss 0 even if no change has an effect."
    return [
        "Difference: mean over the seeds of the variant's score minus that of the recipe with the same seed.",
        missed if n else "No interval: give two seeds or more, for example seed=1,2,3.",
    ]

"""Scores over seeds, how they are judged against a published value, and both as text."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

Verdict = Literal["match", "below", "above"]

# The one place of the tolerance rule; `RULE` and docs/tables.md say it in words.
POINTS = 0.5
STANDARD_ERRORS = 2.0
RULE = (
    f"match: |difference| <= max(published std, {STANDARD_ERRORS:g} x std / sqrt(n), {POINTS:g} points); "
    "below and above: outside of it"
)
EMPTY = "-"
CHECKPOINT = "checkpoint last"
# Papers print these times 100; run.json holds them as fractions.
_IN_PERCENT = ("accuracy", "matthews", "mcc", "f1", "pearson", "spearman", "exact_match", "ndcg")
_MIB = 2**20
_ROUNDING = 1e-9  # 97.5 - 97 of binary fractions


@dataclass(frozen=True)
class Published:
    """What papers say of the runs of a cell, in their unit; `low` and `high` differ where sources do.

    Attributes:
        low, high: The value.
        std: Published standard deviation.
        sources: Paper and table of each.
        assumed: What the comparison takes for granted.
    """

    low: float
    high: float
    std: float | None = None
    sources: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the value with the digits of its source."""
        text = f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"
        return text if self.std is None else f"{text} ± {self.std:g}"


@dataclass(frozen=True)
class Comparison:
    """A measured mean against a published value, in the unit of the latter."""

    difference: float
    tolerance: float

    @property
    def verdict(self) -> Verdict:
        """Whether the difference is within the tolerance; nan has not met anything."""
        if abs(self.difference) <= self.tolerance + _ROUNDING:
            return "match"
        return "above" if self.difference > 0 else "below"


def compare(values: Sequence[float], metric: str, published: Published) -> Comparison:
    """Judge the scores of a cell by the tolerance rule; of a published range the nearer end counts.

    Example:
        >>> compare([0.551, 0.557], "val/matthews", Published(55.7, 55.7)).verdict
        'match'
    """
    scaled = [value * scale_of(metric) for value in values]
    center, spread = fmean(scaled), std(scaled)
    nearest = min(max(center, published.low), published.high)
    error = 0.0 if spread is None else STANDARD_ERRORS * spread / math.sqrt(len(scaled))
    # A diverged seed makes the error infinite or nan, which must not pass for agreement.
    error = error if math.isfinite(error) else 0.0
    return Comparison(center - nearest, max(published.std or 0.0, error, POINTS))


def std(values: Sequence[float]) -> float | None:
    """Sample standard deviation (ddof=1); None of fewer than two values."""
    if len(values) < 2:
        return None
    # Not statistics.stdev: it fails on the inf of a diverged run.
    mean = fmean(values)
    return float((sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5)


def scale_of(metric: str | None) -> float:
    """Return the factor from `run.json` to the unit of papers: 100 for shares and correlations."""
    return 100.0 if any(name in (metric or "").rsplit("/", 1)[-1].lower() for name in _IN_PERCENT) else 1.0


def score_of(facts: Mapping[str, Any], score: str) -> float | None:
    """Return a metric of a run or teacher, `size/mib` (simulated, 2^20 bytes) or `size/compression`; None: none."""
    size = facts["size"]
    if score == "size/mib":
        return float(size.get("simulated_bytes", size["float_bytes"])) / _MIB
    if score == "size/compression":
        return float(size.get("compression", 1.0))
    value = facts["metrics"].get(score)
    return None if value is None else float(value)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What is measured and published in one place of a table.

    Attributes:
        metric: Metric of `values`; None where nothing has run and no layout names it.
        values: One value per seed that has it.
        expected: Number of jobs, finished or not.
        missing: Commands of the jobs without a value.
        damaged: What is wrong with the files of some of them.
        commits, devices: Where the runs come from.
        published: Published value.
    """

    metric: str | None = None
    values: Sequence[float] = ()
    expected: int = 1
    missing: Sequence[str] = ()
    damaged: Sequence[str] = ()
    commits: Sequence[str] = ()
    devices: Sequence[str] = ()
    published: Published | None = None

    @property
    def mean(self) -> float | None:
        """Mean over the seeds."""
        return fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds (ddof=1)."""
        return std(self.values)

    @property
    def text(self) -> str:
        """The mean and, of several seeds, the standard deviation and their number."""
        return score_text(self.values, self.metric)

    @property
    def comparison(self) -> Comparison | None:
        """The mean against the published value, where both are there."""
        if self.published is None or not self.values or self.metric is None:
            return None
        return compare(self.values, self.metric, self.published)

    @property
    def compared(self) -> tuple[str, str, str]:
        """The published value, the difference to it and the verdict, as text."""
        published = EMPTY if self.published is None else str(self.published)
        found = self.comparison
        return (published, EMPTY, EMPTY) if found is None else (published, f"{found.difference:+.2f}", found.verdict)

    @property
    def numbers(self) -> list[object]:
        """The published value, the difference to it and the verdict, as raw numbers in the unit of papers."""
        value, found = self.published, self.comparison
        published = [None] * 3 if value is None else [value.low, value.high, value.std]
        return [*published, *([None] * 3 if found is None else [found.difference, found.tolerance, found.verdict])]


def describe_sources(scores: Sequence[Scores]) -> list[str]:
    """Return the notes of a table: the rule, the published sources, commits and devices, and files that are damaged."""
    published = [one.published for one in scores if one.published]
    notes = []
    if published:
        ranges = any(value.low != value.high for value in published)
        sources = dict.fromkeys(source for value in published for source in value.sources)
        notes = [
            f"{RULE}. A range: sources differ, and the nearer end counts." if ranges else f"{RULE}.",
            "Scores are those of the last weights; papers may report the best on the development set.",
            f"Published: {'; '.join(sources)}.",
            *(f"Assumed: {text}." for text in dict.fromkeys(text for value in published for text in value.assumed)),
        ]
    commits = list(dict.fromkeys(commit for one in scores for commit in one.commits))
    devices = list(dict.fromkeys(device for one in scores for device in one.devices))
    origin = f"{_agreed('commit', commits)}; {_agreed('device', devices)}; {CHECKPOINT}"
    return [
        *notes,
        origin if commits else "no run has finished",
        *damage_notes(d for one in scores for d in one.damaged),
    ]


def damage_notes(damaged: Iterable[str]) -> list[str]:
    """Say which files keep runs out of the table, and what to do."""
    return [f"Damaged: {message}" for message in dict.fromkeys(damaged)]


def _agreed(name: str, values: Sequence[str]) -> str:
    # Runs of different commits or devices are still shown, but never as if they were one.
    return f"{name} {values[0]}" if len(values) == 1 else f"{name}s differ: {', '.join(values)}"


def score_text(values: Sequence[float], metric: str | None) -> str:
    """Return the mean and, of several values, the standard deviation; times 100 where papers print it so."""
    if not values:
        return EMPTY
    mean, spread, scale = fmean(values), std(values), scale_of(metric)
    digits = 2 if scale != 1.0 else decimals(mean, 4)
    text = f"{scale * mean:.{digits}f}"
    return text if spread is None else f"{text} ± {scale * spread:.{digits}f} ({len(values)})"


def decimals(value: float, digits: int) -> int:
    """Return how many decimals a number needs for as many significant digits."""
    if value == 0 or not math.isfinite(value):
        return digits - 1
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))

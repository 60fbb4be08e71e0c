"""Rows as the text a reader sees: headers, numbers in a sensible number of digits, provenance."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from lowbit.results.formats import Align
from lowbit.results.rows import TEACHER, Row
from lowbit.results.scores import CHECKPOINT, RULE, Comparison, Published, scale_of, std

EMPTY = "-"
_PUBLISHED: tuple[tuple[str, Align], ...] = (("published", "right"), ("difference", "right"), ("vs paper", "left"))


def columns(rows: Sequence[Row]) -> list[tuple[str, Align]]:
    """Header and alignment of each column; rows of several metrics get a `metric` column of their own."""
    names = _metrics(rows)
    value: list[tuple[str, Align]]
    if len(names) > 1:
        value = [("metric", "left"), ("score", "right")]
    else:
        value = [(_spoken(names[0]) if names else "score", "right")]
    return [
        ("method", "left"),
        *value,
        *(_PUBLISHED if any(row.published for row in rows) else ()),
        ("bits (W-E-A)", "right"),
        ("size (MB)", "right"),
        ("compression", "right"),
        ("steps", "right"),
        ("seconds", "right"),
        ("status", "left"),
    ]


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The text of each row, in the order of `columns`."""
    mixed = len(_metrics(rows)) > 1
    # One teacher needs no name; several (a sweep over data sets) would be indistinguishable without it.
    several = sum(row.label == TEACHER for row in rows) > 1
    published = any(row.published for row in rows)
    return [
        [
            f"{TEACHER} {row.teacher_id}" if several and row.label == TEACHER else row.label,
            *([_spoken(row.metric) if row.metric else EMPTY] if mixed else []),
            score(row),
            *(describe_comparison(row.published, row.comparison) if published else []),
            row.bits or EMPTY,
            _significant(row.simulated_mb),
            EMPTY if row.compression is None else f"{row.compression:.1f}x",
            EMPTY if row.steps is None else str(row.steps),
            _seconds(row.seconds),
            row.status,
        ]
        for row in rows
    ]


def describe_comparison(published: Published | None, comparison: Comparison | None) -> list[str]:
    """The published value, the difference to it and the verdict."""
    if comparison is None:
        return [EMPTY if published is None else str(published), EMPTY, EMPTY]
    return [str(published), f"{comparison.difference:+.2f}", comparison.verdict]


def notes_on(published: Sequence[Published]) -> list[str]:
    """What to know about published values: the rule, their sources, what is assumed."""
    if not published:
        return []
    sources = dict.fromkeys(source for value in published for source in value.sources)
    assumed = dict.fromkeys(text for value in published for text in value.assumed)
    notes = [f"{RULE}. A range: sources differ, and the nearer end counts." if _ranges(published) else f"{RULE}."]
    notes.append("Scores are those of the last weights; papers may report the best on the development set.")
    notes.append(f"Published: {'; '.join(sources)}.")
    return [*notes, *(f"Assumed: {text}." for text in assumed)]


def damage_notes(damaged: Iterable[str]) -> list[str]:
    """Say which files keep runs out of the table, and what to do."""
    return [f"Damaged: {message}" for message in dict.fromkeys(damaged)]


def _ranges(published: Sequence[Published]) -> bool:
    return any(value.low != value.high for value in published)


def provenance(rows: Sequence[Row]) -> str:
    """One line: the commits and devices of the runs, and which checkpoint was evaluated."""
    return origin(
        [commit for row in rows for commit in row.commits], [device for row in rows for device in row.devices]
    )


def origin(commits: Sequence[str], devices: Sequence[str]) -> str:
    """Do the same from the commits and devices themselves."""
    parts = [_agreed("commit", list(dict.fromkeys(commits))), _agreed("device", list(dict.fromkeys(devices)))]
    return "; ".join([*parts, CHECKPOINT]) if commits else "no run has finished"


def _agreed(name: str, values: list[str]) -> str:
    # Runs of different commits or devices are still shown, but never as if they were one.
    return f"{name} {values[0]}" if len(values) == 1 else f"{name}s differ: {', '.join(values)}"


def _metrics(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.metric for row in rows if row.metric is not None))


def _spoken(metric: str) -> str:
    return metric.replace("/", " ")


def score(row: Row) -> str:
    """The mean and, of several seeds, the standard deviation of a row's metric; times 100 where papers print it so."""
    return score_text(row.values, row.metric)


def score_text(values: Sequence[float], metric: str | None) -> str:
    """The same of the values themselves."""
    if not values:
        return EMPTY
    mean, spread, scale = fmean(values), std(values), scale_of(metric)
    decimals = 2 if scale != 1.0 else _decimals(mean, 4)
    text = f"{scale * mean:.{decimals}f}"
    return text if spread is None else f"{text} ± {scale * spread:.{decimals}f} ({len(values)})"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return EMPTY
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


def _significant(value: float | None) -> str:
    """Three significant digits, never an exponent, never fewer digits than the integer part has."""
    return EMPTY if value is None else f"{value:.{_decimals(value, 3)}f}"


def _decimals(value: float, digits: int) -> int:
    if value == 0 or not math.isfinite(value):
        return digits - 1
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))

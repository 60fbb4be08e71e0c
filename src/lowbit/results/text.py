"""Rows as the text a reader sees: headers, numbers in a sensible number of digits, provenance."""

import math
from collections.abc import Sequence
from typing import Literal

from lowbit.results.rows import TEACHER, Row

Align = Literal["left", "right"]
EMPTY = "-"
# Papers print these times 100; run.json holds them as fractions.
_IN_PERCENT = ("accuracy", "matthews", "mcc", "f1", "pearson", "spearman")


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
    return [
        [
            f"{TEACHER} {row.teacher_id}" if several and row.label == TEACHER else row.label,
            *([_spoken(row.metric) if row.metric else EMPTY] if mixed else []),
            _score(row),
            row.bits or EMPTY,
            _significant(row.simulated_mb),
            EMPTY if row.compression is None else f"{row.compression:.1f}x",
            EMPTY if row.steps is None else str(row.steps),
            _seconds(row.seconds),
            row.status,
        ]
        for row in rows
    ]


def provenance(rows: Sequence[Row]) -> str:
    """One line: the commits and devices of the runs, and which checkpoint was evaluated."""
    commits = dict.fromkeys(commit for row in rows for commit in row.commits)
    devices = dict.fromkeys(device for row in rows for device in row.devices)
    parts = [_agreed("commit", list(commits)), _agreed("device", list(devices)), "checkpoint last"]
    return "; ".join(parts) if commits else "no run has finished"


def _agreed(name: str, values: list[str]) -> str:
    # Runs of different commits or devices are still shown, but never as if they were one.
    return f"{name} {values[0]}" if len(values) == 1 else f"{name}s differ: {', '.join(values)}"


def _metrics(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.metric for row in rows if row.metric is not None))


def _spoken(metric: str) -> str:
    return metric.replace("/", " ")


def _score(row: Row) -> str:
    mean, std = row.mean, row.std
    if mean is None:
        return EMPTY
    percent = any(name in (row.metric or "").rsplit("/", 1)[-1].lower() for name in _IN_PERCENT)
    scale, decimals = (100.0, 2) if percent else (1.0, _decimals(mean, 4))
    text = f"{scale * mean:.{decimals}f}"
    return text if std is None else f"{text} ± {scale * std:.{decimals}f} ({len(row.values)})"


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

"""A paper's table as text: per row its means, the published values and the differences; and as raw numbers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from lowbit.results.formats import Format, Grid, write_csv, write_grid
from lowbit.results.pivot import Entry, Pivot
from lowbit.results.scores import scale_of, std
from lowbit.results.table import numbers_of
from lowbit.results.terminal import print_grid
from lowbit.results.text import EMPTY, damage_notes, describe_comparison, notes_on, origin, score_text

if TYPE_CHECKING:
    from rich.console import Console

_CSV_COLUMNS = (
    *("row", "column", "metric", "mean", "std", "n", "expected", "scale"),
    *("published", "published_high", "published_std", "difference", "tolerance", "status"),
    *("source", "assumed", "commit", "device", "command"),
)
_PUBLISHED, _DIFFERENCE = "published", "difference"
_READING = "Mean ± sample standard deviation (number of seeds), in per cent where papers are."


def render_pivot(table: Pivot, fmt: Format) -> str:
    """The table as text; `csv` has a line per cell, with raw numbers: mean times scale is in the unit of the paper.

    Raises:
        ValueError: `fmt` is none of the formats.
    """
    return _csv(table) if fmt == "csv" else write_grid(grid_of(table), fmt)


def print_pivot(table: Pivot, console: Console | None = None) -> None:
    """Print the table, its notes, and the commands that fill the missing cells."""
    print_grid(grid_of(table), console)


def grid_of(table: Pivot) -> Grid:
    """Three lines per row, or one where none of its cells has a published value."""
    lines: list[list[str]] = []
    styles: dict[tuple[int, int], str] = {}
    starts = []
    for entries in table.lines:
        starts.append(len(lines))
        lines.append([entries[0].row, *map(_mean, entries)])
        for place, entry in enumerate(entries, 1):
            if not entry.values and entry.expected:
                styles[len(lines) - 1, place] = "not-run"
        if any(entry.published for entry in entries):
            told = [describe_comparison(entry.published, entry.comparison) for entry in entries]
            lines.append([_PUBLISHED, *(published for published, _, _ in told)])
            lines.append([_DIFFERENCE, *(_difference(difference, verdict) for _, difference, verdict in told)])
            for place, (_, _, verdict) in enumerate(told, 1):
                styles[len(lines) - 1, place] = verdict
    return Grid(
        heads=[("", "left"), *((name, "right") for name in table.columns)],
        lines=lines,
        title=table.layout.title,
        styles={place: style for place, style in styles.items() if style != EMPTY},
        groups=frozenset(starts[1:]),
        notes=_notes(table),
        commands=list(dict.fromkeys(command for entry in table.entries for command in entry.missing)),
    )


def _mean(entry: Entry) -> str:
    if not entry.values:
        return ("damaged" if entry.damaged else "not run") if entry.expected else EMPTY
    text = score_text(entry.values, entry.score)
    text = text if len(entry.values) == entry.expected else f"{text}, {len(entry.values)} of {entry.expected}"
    return f"{text}, {len(entry.damaged)} damaged" if entry.damaged else text


def _difference(difference: str, verdict: str) -> str:
    return EMPTY if verdict == EMPTY else f"{difference} {verdict}"


def _notes(table: Pivot) -> list[str]:
    entries = table.entries
    notes = [_READING, *notes_on([entry.published for entry in entries if entry.published])]
    commits = [commit for entry in entries for commit in entry.commits]
    notes.append(origin(commits, [device for entry in entries for device in entry.devices]))
    notes += damage_notes(message for entry in entries for message in entry.damaged)
    if table.left_out:
        notes.append(f"In no cell: {'; '.join(dict.fromkeys(table.left_out))}.")
    return notes


def _csv(table: Pivot) -> str:
    lines: list[Sequence[object]] = [_CSV_COLUMNS]
    for entry in table.entries:
        mean = fmean(entry.values) if entry.values else None
        published = entry.published
        sources, assumed = (published.sources, published.assumed) if published else ((), ())
        joined = map("; ".join, (sources, assumed, entry.commits, entry.devices, entry.missing))
        lines.append(
            [
                *(entry.row, entry.column, entry.score, mean, std(entry.values), len(entry.values), entry.expected),
                *(scale_of(entry.score), *numbers_of(published, entry.comparison)[:-1], entry.status, *joined),
            ]
        )
    return write_csv(lines)

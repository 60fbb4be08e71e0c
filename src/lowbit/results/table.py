"""Tables with a row per method: of one score with sizes and costs, or with a column per language."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lowbit.config.xglue_tasks import XGLUE_TASKS
from lowbit.results.collect import TEACHER, Cell, Row, collect
from lowbit.results.render import FORMATS, Align, Format, Grid, print_grid, print_notes, write_csv, write_grid
from lowbit.results.scores import (
    EMPTY,
    damage_notes,
    decimals,
    describe_comparison,
    notes_on,
    numbers_of,
    origin,
    score_text,
)
from lowbit.settings.data import XglueTask

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


_PUBLISHED: tuple[tuple[str, Align], ...] = (("published", "right"), ("difference", "right"), ("vs paper", "left"))


def columns(rows: Sequence[Row]) -> list[tuple[str, Align]]:
    """Header and alignment of each column; rows of several metrics get a `metric` column."""
    names = _metrics(rows)
    value: list[tuple[str, Align]]
    if len(names) > 1:
        value = [("metric", "left"), ("score", "right")]
    else:
        value = [(_heading(names[0]) if names else "score", "right")]
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
            *([_heading(row.metric) if row.metric else EMPTY] if mixed else []),
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


def provenance(rows: Sequence[Row]) -> str:
    """One line: the commits and devices of the runs, and which checkpoint was evaluated."""
    return origin(
        [commit for row in rows for commit in row.commits], [device for row in rows for device in row.devices]
    )


def _metrics(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.metric for row in rows if row.metric is not None))


def _heading(metric: str) -> str:
    return metric.replace("/", " ")


def score(row: Row) -> str:
    """The mean and, of several seeds, the standard deviation of a row's metric; times 100 where papers print it so."""
    return score_text(row.values, row.metric)


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return EMPTY
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


def _significant(value: float | None) -> str:
    """Three significant digits, never an exponent, never fewer digits than the integer part has."""
    return EMPTY if value is None else f"{value:.{decimals(value, 3)}f}"


_STYLE = {"done": "green", "not run": "red", "damaged": "red"}
_MIN_WIDTH = 80
_ROOMY_WIDTH = 100
_CSV_COLUMNS = (
    *("method", "metric", "mean", "std", "n", "expected"),
    *("bits", "size_mb", "compression", "steps", "seconds", "status"),
    *("teacher_id", "commit", "device"),
)
_CSV_PUBLISHED = ("published", "published_high", "published_std", "difference", "tolerance", "vs_paper")


def to_text(rows: Sequence[Row]) -> list[list[str]]:
    """Return the header and the rows as text."""
    return [[name for name, _ in columns(rows)], *cells(rows)]


def render(rows: Sequence[Row], fmt: Format, title: str = "") -> str:
    """The table as text: `md` for GitHub, `latex` with booktabs rules, a page of `html`, `csv` with unrounded numbers.

    Raises:
        ValueError: `fmt` is none of these.
    """
    if fmt not in FORMATS:
        raise ValueError(f"unknown table format {fmt!r}, choose one of {', '.join(FORMATS)}")
    return _csv(rows) if fmt == "csv" else write_grid(grid_of(rows, fmt, title), fmt)


def grid_of(rows: Sequence[Row], fmt: Format, title: str) -> Grid:
    """The rows as text cells; all that goes with them stands on a page of `html` only."""
    heads, body = columns(rows), cells(rows)
    if fmt != "html":  # the others are pasted into texts, which say the rest themselves
        notes = [note for note in _notes(rows) if any(row.published for row in rows) or note != provenance(rows)]
        return Grid(heads, body, notes=notes)
    styles = {(number, len(heads) - 1): row.status.replace(" ", "-") for number, row in enumerate(rows)}
    return Grid(heads, body, title, styles, notes=_notes(rows), commands=_missing(rows))


def print_table(rows: Sequence[Row], title: str, console: Console | None = None) -> None:
    """Print the table, its provenance, and the commands that fill the missing cells."""
    from rich.console import Console

    console = console or Console()
    # Not cropped: a terminal narrower than the table wraps its lines, which is ugly, but keeps every digit.
    console.print(_rich(rows, title, console.width), crop=False)
    print_notes(_notes(rows), _missing(rows), console)


def _notes(rows: Sequence[Row]) -> list[str]:
    published = notes_on([row.published for row in rows if row.published])
    return [*published, provenance(rows), *damage_notes(message for row in rows for message in row.damaged)]


def _missing(rows: Sequence[Row]) -> list[str]:
    """Return the commands that fill the missing cells."""
    return list(dict.fromkeys(command for row in rows for command in row.missing))


def _rich(rows: Sequence[Row], title: str, width: int) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    roomy = width > _ROOMY_WIDTH
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        # Where space is short, the names of the methods need it more than the gaps and the status do.
        padding=(0, int(roomy), 0, 0),
        width=_MIN_WIDTH if width < _MIN_WIDTH else None,
    )
    for name, align in columns(rows):
        # Only words may wrap: number columns keep their width and give it up in the header instead.
        header = "compr." if name == "compression" else name.replace(" ", "\n", 1)
        table.add_column(Text(header), justify=align, no_wrap=align == "right", overflow="fold")
    for row, texts in zip(rows, cells(rows), strict=True):
        status = texts[-1] if roomy else texts[-1].replace(" seeds", "\nseeds")
        table.add_row(*map(Text, texts[:-1]), Text(status, style=_STYLE.get(row.status, "yellow")))
    return table


def _csv(rows: Sequence[Row]) -> str:
    published = any(row.published for row in rows)
    lines: list[list[object]] = [[*_CSV_COLUMNS, *(_CSV_PUBLISHED if published else ())]]
    for row in rows:
        sizes = [row.bits, row.simulated_mb, row.compression, row.steps, row.seconds]
        origin = [row.teacher_id, "; ".join(row.commits), "; ".join(row.devices)]
        line = [row.label, row.metric, row.mean, row.std, row.n, row.expected, *sizes, row.status, *origin]
        lines.append([*line, *(numbers_of(row.published, row.comparison) if published else ())])
    return write_csv(lines)


MEAN = "mean"
_MEAN_SPLIT = "val_mean"


class LanguageTable:
    """Rows of the runs with their scores by language.

    Attributes:
        rows: One per group of seeds and one per teacher, with the mean over the languages.
        by_language: The same rows with the score in each language; no value where a run has none.

    Raises:
        ValueError: no finished run was scored in several languages, or runs are not comparable.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        cells = list(cells)
        runs = [cell.run for cell in cells if cell.run is not None]
        found = list(dict.fromkeys(language for run in runs for language in _metrics_of(run)))
        if not found:
            damaged = [f"\n{note}" for note in damage_notes(cell.damage for cell in cells if cell.damage)]
            raise ValueError(
                "no finished run was scored in several languages: that takes data=xnli or another of XGLUE"
                + "".join(damaged)
            )
        self.rows = collect(cells)
        self.by_language = {language: collect(cells, partial(_metric_in, language)) for language in found}

    def grid(self) -> Grid:
        """Return the table; a mean over fewer languages than the table has says over how many."""
        lines = []
        for row, *parts in zip(self.rows, *self.by_language.values(), strict=True):
            scores = list(map(score, parts))
            there = sum(text != EMPTY for text in scores)
            mean = score(row) if there in (0, len(parts)) else f"{score(row)} of {there}"
            lines.append([row.label, *scores, mean, row.status])
        heads = ["method", *self.by_language, MEAN, "status"]
        aligned: list[tuple[str, Align]] = [
            (name, "left" if place in (0, len(heads) - 1) else "right") for place, name in enumerate(heads)
        ]
        notes = damage_notes(message for row in self.rows for message in row.damaged)
        return Grid(aligned, lines, title="Scores by language", notes=notes)

    def render(self, fmt: Format) -> str:
        """Return the table as text: `md`, `latex`, `html`, or raw numbers as `csv`, a line per row and language."""
        return self._csv() if fmt == "csv" else write_grid(self.grid(), fmt)

    def print(self, title: str) -> None:
        """Print the table, where its numbers come from, and the commands that fill the missing cells."""
        print_grid(replace(self.grid(), title=title, notes=_notes(self.rows), commands=_missing(self.rows)))

    def _csv(self) -> str:
        lines: list[Sequence[object]] = [("method", "language", "metric", "mean", "std", "n", "expected")]
        columns: dict[str, Sequence[Row]] = {**self.by_language, MEAN: self.rows}
        for place, row in enumerate(self.rows):
            for language, rows in columns.items():
                part = rows[place]
                lines.append([row.label, language, part.metric, part.mean, part.std, len(part.values), row.expected])
        return write_csv(lines)


def _metrics_of(run: dict[str, Any]) -> dict[str, str]:
    """Return the name of the metric in each language, that of the training rows first; nothing for other data sets."""
    data, (split, _, name) = run["config"]["data"], run["primary_metric"].partition("/")
    if split != _MEAN_SPLIT or not data.get("xglue_task"):
        return {}
    others = {language: f"val_{language}/{name}" for language in XGLUE_TASKS[XglueTask[data["xglue_task"]]].languages}
    return {data["language"]: f"val/{name}"} | {key: split for key, split in others.items() if split in run["metrics"]}


def _metric_in(language: str, run: dict[str, Any]) -> str:
    """Return the run's metric in a language; a name that no run has where it was not scored in it."""
    return _metrics_of(run).get(language, f"not scored in {language}")

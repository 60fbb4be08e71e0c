"""The tables: a row per method, a column per language, or the layout of a paper. Each is a `Grid`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lowbit.config.xglue_tasks import XGLUE_TASKS
from lowbit.results.collect import TEACHER, Cell, Row, check_comparable, collect, distinct
from lowbit.results.layout import Layout, Part, parts_of
from lowbit.results.published import Record, as_teacher, find, matches
from lowbit.results.render import Align, Grid
from lowbit.results.run_file import RUN_FILE
from lowbit.results.scores import EMPTY, Scores, damage_notes, decimals, describe_sources, scale_of, score_of
from lowbit.settings.data import XglueTask

_STYLES = {"done": "done", "not run": "not-run", "damaged": "not-run"}
_CSV_ROWS = (
    *("method", "metric", "mean", "std", "n", "expected"),
    *("bits", "size_mb", "compression", "steps", "seconds", "status"),
    *("teacher_id", "commit", "device"),
)
_CSV_PUBLISHED = ("published", "published_high", "published_std", "difference", "tolerance", "vs_paper")


def tabulate_rows(rows: Sequence[Row], title: str = "") -> Grid:
    """Return the table with a row per method: its score, published values if there are any, sizes and costs."""
    columns = _columns(rows)
    published = any(row.published for row in rows)
    numbers: list[Sequence[object]] = [[*_CSV_ROWS, *(_CSV_PUBLISHED if published else ())]]
    for row in rows:
        sizes = [row.bits, row.simulated_mb, row.compression, row.steps, row.seconds]
        origin = [row.teacher_id, "; ".join(row.commits), "; ".join(row.devices)]
        line = [row.label, row.metric, row.mean, row.std, row.n, row.expected, *sizes, row.status, *origin]
        numbers.append([*line, *(row.numbers if published else ())])
    return Grid(
        heads=[(name, align) for name, align, _ in columns],
        lines=[[text(row) for _, _, text in columns] for row in rows],
        title=title,
        styles={(number, len(columns) - 1): _STYLES.get(row.status, "partial") for number, row in enumerate(rows)},
        notes=describe_sources(rows),
        commands=_missing(rows),
        numbers=numbers,
    )


def _columns(rows: Sequence[Row]) -> list[tuple[str, Align, Callable[[Row], str]]]:
    """Return header, alignment and text of each column; rows of several metrics get a `metric` column."""
    metrics = list(dict.fromkeys(row.metric for row in rows if row.metric is not None))
    # One teacher needs no name; several (a sweep over data sets) would be indistinguishable without it.
    several = sum(row.label == TEACHER for row in rows) > 1
    columns: list[tuple[str, Align, Callable[[Row], str]]] = [
        ("method", "left", lambda row: f"{TEACHER} {row.teacher_id}" if several and row.label == TEACHER else row.label)
    ]
    if len(metrics) > 1:
        columns.append(("metric", "left", lambda row: _heading(row.metric)))
    heading = _heading(metrics[0]) if len(metrics) == 1 else "score"
    columns.append((heading, "right", lambda row: row.text))
    if any(row.published for row in rows):
        columns += [
            ("published", "right", lambda row: row.compared[0]),
            ("difference", "right", lambda row: row.compared[1]),
            ("vs paper", "left", lambda row: row.compared[2]),
        ]
    return [
        *columns,
        ("bits (W-E-A)", "right", lambda row: row.bits or EMPTY),
        ("size (MB)", "right", lambda row: _format(row.simulated_mb, decimals(row.simulated_mb or 0, 3))),
        ("compression", "right", lambda row: _format(row.compression, 1, "x")),
        ("steps", "right", lambda row: _format(row.steps, 0)),
        ("seconds", "right", lambda row: _format(row.seconds, int((row.seconds or 0) < 100))),
        ("status", "left", lambda row: row.status),
    ]


def _heading(metric: str | None) -> str:
    return (metric or EMPTY).replace("/", " ")


def _format(value: float | None, places: int, unit: str = "") -> str:
    return EMPTY if value is None else f"{value:.{places}f}{unit}"


def _missing(scores: Iterable[Scores]) -> list[str]:
    return list(dict.fromkeys(command for one in scores for command in one.missing))


MEAN = "mean"
_MEAN_SPLIT = "val_mean"


def tabulate_languages(cells: Iterable[Cell], title: str = "Scores by language") -> Grid:
    """Return the table with a column per language and the mean, which says over how many where some are missing.

    Raises:
        ValueError: no finished run was scored in several languages, or runs are not comparable.
    """
    cells = list(cells)
    runs = [cell.run for cell in cells if cell.run is not None]
    languages = list(dict.fromkeys(language for run in runs for language in _metrics_of(run)))
    if not languages:
        damaged = [f"\n{note}" for note in damage_notes(cell.damage for cell in cells if cell.damage)]
        raise ValueError(
            "no finished run was scored in several languages: that takes data=xnli or another of XGLUE"
            + "".join(damaged)
        )
    rows = collect(cells)
    columns = {language: collect(cells, partial(_metric_in, language)) for language in languages}
    lines = []
    numbers: list[Sequence[object]] = [("method", "language", "metric", "mean", "std", "n", "expected")]
    for row, *parts in zip(rows, *columns.values(), strict=True):
        scored = sum(bool(part.values) for part in parts)
        mean = row.text if scored in (0, len(parts)) else f"{row.text} of {scored}"
        lines.append([row.label, *(part.text for part in parts), mean, row.status])
        for language, part in zip((*languages, MEAN), (*parts, row), strict=True):
            numbers.append([row.label, language, part.metric, part.mean, part.std, len(part.values), row.expected])
    scores: list[tuple[str, Align]] = [(name, "right") for name in (*languages, MEAN)]
    return Grid(
        heads=[("method", "left"), *scores, ("status", "left")],
        lines=lines,
        title=title,
        notes=describe_sources(rows),
        commands=_missing(rows),
        numbers=numbers,
    )


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


_Member = tuple[Cell, dict[str, Any] | None]
_CSV_ENTRIES = (
    *("row", "column", "metric", "mean", "std", "n", "expected", "scale"),
    *("published", "published_high", "published_std", "difference", "tolerance", "status"),
    *("source", "assumed", "commit", "device", "command"),
)
_READING = "Mean ± sample standard deviation (number of seeds), in per cent where papers are."


@dataclass(frozen=True, kw_only=True)
class _Entry(Scores):
    """One cell of a paper's table; `expected` counts the jobs of the sweep that belong to it, or teachers."""

    row: str
    column: str

    @property
    def absence(self) -> str:
        """Why there is no value."""
        return ("damaged" if self.damaged else "not run") if self.expected else "not in the sweep"

    @property
    def status(self) -> str:
        """`match`, `below`, `above`, `not run`, `damaged`; `not published`, `not in the sweep`: nothing to judge."""
        if not self.values:
            return self.absence
        return "not published" if self.comparison is None else self.comparison.verdict

    @property
    def shown(self) -> str:
        """The score, and how many jobs it lacks."""
        if not self.values:
            return self.absence if self.expected else EMPTY
        count = len(self.values)
        text = self.text if count == self.expected else f"{self.text}, {count} of {self.expected}"
        return f"{text}, {len(self.damaged)} damaged" if self.damaged else text

    @property
    def line(self) -> list[object]:
        """The line of CSV."""
        measured = [self.metric, self.mean, self.std, len(self.values), self.expected, scale_of(self.metric)]
        sources, assumed = (self.published.sources, self.published.assumed) if self.published else ((), ())
        joined = map("; ".join, (sources, assumed, self.commits, self.devices, self.missing))
        return [self.row, self.column, *measured, *self.numbers[:-1], self.status, *joined]


def tabulate_layout(cells: Iterable[Cell], layout: Layout, records: Sequence[Record]) -> Grid:
    """Return the table of a layout: three lines per row, or one where none of its cells has a published value.

    Every cell needs its `config`. In CSV a cell is a line: mean times scale is in the unit of the paper.

    Raises:
        ValueError: a `run.json` lacks the score, or runs of one entry are not comparable.
    """
    members = [(cell, cell.run) for cell in {cell.run_dir: cell for cell in cells}.values()]
    jobs = [cell for cell, _ in members]
    if layout.papers is not None:
        records = [record for record in records if record.paper in layout.papers]
    rows = parts_of(layout.rows, jobs)
    columns = [_with_metric(column, members) for column in parts_of(layout.columns, jobs)]
    lines: list[list[str]] = []
    styles: dict[tuple[int, int], str] = {}
    starts, entries = [], []
    for row in rows:
        found = [_entry(row, column, members, records) for column in columns]
        entries += found
        starts.append(len(lines))
        styles |= {
            (len(lines), place): "not-run" for place, one in enumerate(found, 1) if one.expected and not one.values
        }
        lines.append([row.label, *(one.shown for one in found)])
        if any(one.published for one in found):
            compared = [one.compared for one in found]
            lines.append(["published", *(published for published, _, _ in compared)])
            lines.append(
                ["difference", *(EMPTY if v == EMPTY else f"{difference} {v}" for _, difference, v in compared)]
            )
            styles |= {(len(lines) - 1, place): v for place, (_, _, v) in enumerate(compared, 1) if v != EMPTY}
    shown = [(row, column) for row in rows for column in columns if not (row.teacher or column.teacher)]
    left_out = [_name(cell) for cell in jobs if not any(_belongs(cell, *parts) for parts in shown)]
    notes = [_READING, *describe_sources(entries)]
    return Grid(
        heads=[("", "left"), *((column.label, "right") for column in columns)],
        lines=lines,
        title=layout.title,
        styles=styles,
        groups=frozenset(starts[1:]),
        notes=[*notes, f"In no cell: {'; '.join(dict.fromkeys(left_out))}."] if left_out else notes,
        commands=_missing(entries),
        numbers=[_CSV_ENTRIES, *(one.line for one in entries)],
    )


def _belongs(cell: Cell, *parts: Part) -> bool:
    return all(matches(cell.config, part.match) for part in parts)


def _with_metric(column: Part, members: Iterable[_Member]) -> Part:
    """Give a column without a score the primary metric of its runs, so that cells that have not run know it too."""
    metrics = (run["primary_metric"] for cell, run in members if run is not None and _belongs(cell, column))
    return column if column.score else replace(column, score=next(metrics, None))


def _entry(row: Part, column: Part, members: Sequence[_Member], records: Sequence[Record]) -> _Entry:
    members = [member for member in members if _belongs(member[0], row, column)]
    if row.teacher or column.teacher:
        return _teacher_entry(row, column, members, records)
    score = row.score or column.score
    runs = [(cell, run) for cell, run in members if run is not None]
    name = f"{row.label} / {column.label}"
    kinds = {_name(cell): None for cell, _ in members}
    if len(kinds) > 1:
        raise ValueError(
            f"cell {name!r} of the table would average jobs that differ in more than their seed: {'; '.join(kinds)}. "
            "Add what differs to the rows or the columns of its layout, or to the overrides of the command."
        )
    check_comparable(name, [(cell.run_dir, run) for cell, run in runs])
    return _Entry(
        row=row.label,
        column=column.label,
        metric=score,
        values=[_value(cell, run, score) for cell, run in runs],
        expected=len(members),
        missing=[cell.command for cell, run in members if run is None],
        damaged=[cell.damage for cell, _ in members if cell.damage],
        published=find(records, members[0][0].config, score) if members and score else None,
        commits=distinct(run.get("commit") for _, run in runs),
        devices=distinct(run.get("device") for _, run in runs),
    )


def _teacher_entry(row: Part, column: Part, members: Sequence[_Member], records: Sequence[Record]) -> _Entry:
    """Return the entry of the teachers of these runs, each once; whichever run comes first trains its teacher."""
    score = row.score or column.score
    teachers = {run["teacher"]["id"]: run["teacher"] for _, run in members if run is not None and run["teacher"]}
    # Without the simulated size: a teacher has full precision.
    facts = [{**teacher, "size": {"float_bytes": teacher["size"]["float_bytes"]}} for teacher in teachers.values()]
    values = [] if score is None else [value for fact in facts if (value := score_of(fact, score)) is not None]
    return _Entry(
        row=row.label,
        column=column.label,
        metric=score,
        values=values,
        expected=len(values) or min(len(members), 1),
        missing=[] if values else [cell.command for cell, run in members if run is None][:1],
        damaged=[] if values else [cell.damage for cell, _ in members if cell.damage],
        published=find(records, as_teacher(members[0][0].config), score) if members and score else None,
    )


def _value(cell: Cell, run: dict[str, Any], score: str | None) -> float:
    value = score_of(run, score or run["primary_metric"])
    if value is None:
        raise ValueError(
            f"{cell.run_dir / RUN_FILE} has no metric {score!r}, which the layout of the table asks for. "
            f"Metrics: {', '.join(run['metrics'])}"
        )
    return value


def _name(cell: Cell) -> str:
    """Return what the sweep set for this job, but for the seed."""
    return " ".join(f"{key}={value}" for key, value in sorted(cell.labels.items()) if key != "seed")

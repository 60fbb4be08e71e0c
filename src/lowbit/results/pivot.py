"""A paper's table, from the layout in a sweep's file: each cell is the mean over the seeds of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import yaml

from lowbit.results.collect import Cell, check_comparable
from lowbit.results.published import Record, as_teacher, find, matches
from lowbit.results.render import Format, Grid, print_grid, write_csv, write_grid
from lowbit.results.run_file import RUN_FILE, get
from lowbit.results.scores import (
    EMPTY,
    Comparison,
    Published,
    compare,
    damage_notes,
    describe_comparison,
    notes_on,
    numbers_of,
    origin,
    scale_of,
    score_of,
    score_text,
    std,
)

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Part:
    """A row or a column.

    Attributes:
        label: What it is called.
        match: What the config of its runs holds, by dotted key, as in the records of conf/paper.
        score: Metric that is shown; None: that of the other axis or, if it names none either, each run's primary one.
        teacher: Whether it shows the teachers of the runs instead of the runs.
    """

    label: str
    match: Mapping[str, Any] = field(default_factory=dict)
    score: str | None = None
    teacher: bool = False


# Rows or columns: spelled out, or one for each combination of values that the sweep gives to these keys.
Axis = Sequence[Part] | Sequence[str]


@dataclass(frozen=True)
class Layout:
    """Rows and columns; `papers` names the files of conf/paper whose values are shown, None all of them."""

    title: str
    rows: Axis
    columns: Axis
    papers: tuple[str, ...] | None = None


def read_layout(files: Iterable[Path]) -> Layout | None:
    """Return the layout in the last of these files of a sweep that has one, or None.

    Raises:
        ValueError: it has unknown or missing keys.
    """
    found = [(path, content) for path in files if (content := _table_of(path)) is not None]
    if not found:
        return None
    path, content = found[-1]
    _check(path, "", content, required={"rows", "columns"}, known={"title", "rows", "columns", "papers"})
    papers = content.get("papers")
    return Layout(
        title=str(content.get("title", path.stem)),
        rows=_axis(path, "rows", content["rows"]),
        columns=_axis(path, "columns", content["columns"]),
        papers=None if papers is None else tuple(papers),
    )


def _table_of(path: Path) -> Any:
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    return sweep.get("table") if isinstance(sweep, Mapping) else None


def parts_of(axis: Axis, cells: Iterable[Cell]) -> list[Part]:
    """Return the rows or columns of an axis; those of keys in the order of the sweep."""
    parts = [part for part in axis if isinstance(part, Part)]
    keys = [key for key in axis if isinstance(key, str)]
    if parts or not keys:
        return parts
    found: dict[str, Part] = {}
    for cell in cells:
        values = {key: get(cell.config, key) for key in keys}
        # A list in a `match` stands for alternatives, so that a list as value is wrapped into one.
        match = {key: [value] if isinstance(value, list) else value for key, value in values.items()}
        label = ", ".join(str(value) for value in values.values())
        found.setdefault(label, Part(label, match))
    return list(found.values())


def _axis(path: Path, name: str, entries: Any) -> Axis:
    if isinstance(entries, list) and entries and all(isinstance(entry, str) for entry in entries):
        return [str(entry) for entry in entries]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: table: {name}: a list of config keys, or of rows with `label` and `match`")
    for number, entry in enumerate(entries, 1):
        where = f"{name}.{number}: "
        _check(path, where, entry, required={"label"}, known={"label", "match", "score", "teacher"})
    return [
        Part(str(entry["label"]), entry.get("match", {}), entry.get("score"), bool(entry.get("teacher", False)))
        for entry in entries
    ]


def _check(path: Path, where: str, content: Any, required: set[str], known: set[str]) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: table: {where}{content!r}: expected keys {', '.join(sorted(known))}")  # noqa: TRY004
    missing, unknown = sorted(required - content.keys()), sorted(content.keys() - known)
    if missing or unknown:
        raise ValueError(
            f"{path}: table: {where}missing keys {missing or 'none'}, unknown keys {unknown or 'none'}; "
            f"allowed: {', '.join(sorted(known))}"
        )


_Member = tuple[Cell, dict[str, Any] | None]


@dataclass(frozen=True)
class Entry:
    """One cell of the table; `expected` counts the jobs of the sweep that belong to it, or teachers."""

    row: str
    column: str
    score: str | None
    values: tuple[float, ...]
    expected: int
    missing: tuple[str, ...]
    damaged: tuple[str, ...]
    published: Published | None
    commits: tuple[str, ...]
    devices: tuple[str, ...]

    @property
    def comparison(self) -> Comparison | None:
        """The mean against the published value, where both are there."""
        if self.published is None or not self.values or self.score is None:
            return None
        return compare(self.values, self.score, self.published)

    @property
    def status(self) -> str:
        """`match`, `below`, `above`, `not run`, `damaged`; `not published`, `not in the sweep`: nothing to judge."""
        if not self.values:
            return ("damaged" if self.damaged else "not run") if self.expected else "not in the sweep"
        return "not published" if self.comparison is None else self.comparison.verdict


@dataclass(frozen=True)
class Pivot:
    """The table: an entry for each column of each row, and the labels of the jobs that are in none of them."""

    layout: Layout
    columns: tuple[str, ...]
    lines: tuple[tuple[Entry, ...], ...]
    left_out: tuple[str, ...]

    @property
    def entries(self) -> list[Entry]:
        """All entries, row by row."""
        return [entry for line in self.lines for entry in line]


def build_pivot(cells: Iterable[Cell], layout: Layout, records: Sequence[Record]) -> Pivot:
    """Read the runs of `cells` into the rows and columns of a layout; every cell needs its `config`.

    Raises:
        ValueError: a `run.json` lacks the score, or runs of one entry are not comparable.
    """
    members = [(cell, cell.run) for cell in {cell.run_dir: cell for cell in cells}.values()]
    jobs = [cell for cell, _ in members]
    if layout.papers is not None:
        records = [record for record in records if record.paper in layout.papers]
    columns = [_with_metric(column, members) for column in parts_of(layout.columns, jobs)]
    placed: set[str] = set()
    lines = []
    for row in parts_of(layout.rows, jobs):
        line = []
        for column in columns:
            found = [member for member in members if _belongs(member[0], row, column)]
            if row.teacher or column.teacher:
                line.append(_teacher_entry(row, column, found, records))
            else:
                placed.update(str(cell.run_dir) for cell, _ in found)
                line.append(_entry(row, column, found, records))
        lines.append(tuple(line))
    left_out = tuple(_name(cell) for cell in jobs if str(cell.run_dir) not in placed)
    return Pivot(layout, tuple(column.label for column in columns), tuple(lines), left_out)


def _belongs(cell: Cell, *parts: Part) -> bool:
    return all(matches(cell.config, part.match) for part in parts)


def _with_metric(column: Part, members: Iterable[_Member]) -> Part:
    """Give a column without a score the primary metric of its runs, so that cells that have not run know it too."""
    metrics = (run["primary_metric"] for cell, run in members if run is not None and _belongs(cell, column))
    return column if column.score else replace(column, score=next(metrics, None))


def _entry(row: Part, column: Part, members: Sequence[_Member], records: Sequence[Record]) -> Entry:
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
    return Entry(
        row=row.label,
        column=column.label,
        score=score,
        values=tuple(_value(cell, run, score) for cell, run in runs),
        expected=len(members),
        missing=tuple(cell.command for cell, run in members if run is None),
        damaged=tuple(cell.damage for cell, _ in members if cell.damage),
        published=find(records, members[0][0].config, score) if members and score else None,
        commits=_distinct(run.get("commit") for _, run in runs),
        devices=_distinct(run.get("device") for _, run in runs),
    )


def _teacher_entry(row: Part, column: Part, members: Sequence[_Member], records: Sequence[Record]) -> Entry:
    """Return the entry of the teachers of these runs, each once; whichever run comes first trains its teacher."""
    score = row.score or column.score
    teachers = {run["teacher"]["id"]: run["teacher"] for _, run in members if run is not None and run["teacher"]}
    # Without the simulated size: a teacher has full precision.
    facts = [{**teacher, "size": {"float_bytes": teacher["size"]["float_bytes"]}} for teacher in teachers.values()]
    values = [None if score is None else score_of(teacher, score) for teacher in facts]
    found = tuple(value for value in values if value is not None)
    return Entry(
        row=row.label,
        column=column.label,
        score=score,
        values=found,
        expected=len(found) or min(len(members), 1),
        missing=() if found else tuple(cell.command for cell, run in members if run is None)[:1],
        damaged=() if found else tuple(cell.damage for cell, _ in members if cell.damage),
        published=find(records, as_teacher(members[0][0].config), score) if members and score else None,
        commits=(),
        devices=(),
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


def _distinct(texts: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text or "unknown" for text in texts))


_CSV_COLUMNS = (
    *("row", "column", "metric", "mean", "std", "n", "expected", "scale"),
    *("published", "published_high", "published_std", "difference", "tolerance", "status"),
    *("source", "assumed", "commit", "device", "command"),
)
_READING = "Mean ± sample standard deviation (number of seeds), in per cent where papers are."


def render_pivot(table: Pivot, fmt: Format) -> str:
    """The table as text; `csv` has a line per cell, with raw numbers: mean times scale is in the unit of the paper.

    Raises:
        ValueError: `fmt` is none of the formats.
    """
    return _csv(table) if fmt == "csv" else write_grid(pivot_grid(table), fmt)


def print_pivot(table: Pivot, console: Console | None = None) -> None:
    """Print the table, its notes, and the commands that fill the missing cells."""
    print_grid(pivot_grid(table), console)


def pivot_grid(table: Pivot) -> Grid:
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
            compared = [describe_comparison(entry.published, entry.comparison) for entry in entries]
            lines.append(["published", *(published for published, _, _ in compared)])
            lines.append(["difference", *(_difference(difference, verdict) for _, difference, verdict in compared)])
            for place, (_, _, verdict) in enumerate(compared, 1):
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

"""A paper's table: rows x columns of cells, each the mean over the seeds of the runs that its layout names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lowbit.results.collect import check_comparable
from lowbit.results.layout import Layout, Part, parts_of
from lowbit.results.published import Record, as_teacher, find, matches
from lowbit.results.rows import Cell
from lowbit.results.run_file import RUN_FILE
from lowbit.results.scores import Comparison, Published, compare, score_of

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

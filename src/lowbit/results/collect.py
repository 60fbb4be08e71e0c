"""From the jobs of a sweep to the rows of a table: group the runs over seeds, add their teachers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from lowbit.results.published import Record, as_teacher, find
from lowbit.results.run_file import RUN_FILE, finished_run, get
from lowbit.results.scores import Published, Scores

TEACHER = "teacher"


@dataclass(frozen=True)
class Cell:
    """One job of a sweep: where its run lives, what the sweep set, the command that fills it, its resolved config."""

    run_dir: Path
    labels: dict[str, str]
    command: str
    config: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _outcome(self) -> tuple[dict[str, Any] | None, str]:
        return finished_run(self.run_dir)

    @property
    def run(self) -> dict[str, Any] | None:
        """The content of its run.json, read once; None where it has not finished or the file is damaged."""
        return self._outcome[0]

    @property
    def damage(self) -> str:
        """What is wrong with its run.json, and the remedy; nothing where nothing is."""
        return self._outcome[1]


@dataclass(frozen=True, kw_only=True)
class Row(Scores):
    """One line of a table: the runs that differ only in their seed, `n` of them; `None` where nothing has run."""

    label: str
    bits: str | None = None
    simulated_mb: float | None = None
    compression: float | None = None
    steps: int | None = None
    seconds: float | None = None
    n: int = 0
    teacher_id: str | None = None

    @property
    def status(self) -> str:
        """`done`, `2 of 3 seeds` or `not run`; `damaged` or `2 of 3 seeds, 1 damaged` where files cannot be read."""
        if self.n == 0:
            return "damaged" if self.damaged else "not run"
        if self.n == self.expected:
            return "done"
        return f"{self.n} of {self.expected} seeds" + (f", {len(self.damaged)} damaged" if self.damaged else "")


_MB = 1e6
# Runs of one row are averaged, so none of these may differ between them.
_SAME_IN_A_ROW = ("data.name", "model.name", "method.name", "quantizer.name")

# What a row is called by its value alone.
_SPEAKING = ("experiment", "method")

_MetricOf = Callable[[dict[str, Any]], str]
_Found = tuple[Path, dict[str, Any]]
_Member = tuple[Cell, dict[str, Any] | None]


def collect(
    cells: Iterable[Cell],
    metric_of: _MetricOf = lambda run: str(run["primary_metric"]),
    records: Sequence[Record] = (),
) -> list[Row]:
    """Read the runs of `cells` into rows, in order of first appearance, each teacher before its first student.

    Args:
        cells: the jobs.
        metric_of: from the content of a run file to the metric that its row shows; a run without it has no value.
        records: published values, shown in the rows that they belong to.

    Raises:
        ValueError: runs that one row would average are not comparable.
    """
    rows: list[Row] = []
    teachers: set[str] = set()
    for label, members in group_cells(cells):
        found = [(cell.run_dir, run) for cell, run in members if run is not None]
        check_comparable(label, found)
        for _, run in found:
            teacher = run["teacher"]
            if teacher is not None and teacher["id"] not in teachers:
                teachers.add(teacher["id"])
                published = find(records, as_teacher(run["config"]), metric_of(run))
                rows.append(_teacher_row(teacher, metric_of(run), published))
        rows.append(_student_row(label, members, metric_of, records))
    return rows


def group_cells(cells: Iterable[Cell]) -> list[tuple[str, list[_Member]]]:
    """Group the cells that differ only in their seed; a run directory that is listed twice counts once."""
    members: list[_Member] = [(cell, cell.run) for cell in cells]
    # Unlabelled cells that have not run belong to the row of those that have: only they know the method.
    methods = (get(run["config"], "method.name") for cell, run in members if run is not None and not _swept(cell))
    unlabelled = next(methods, None)
    groups: dict[tuple[tuple[str, str], ...], tuple[str, dict[Path, _Member]]] = {}
    for cell, run in members:
        method = get(run["config"], "method.name") if run is not None else unlabelled
        labels = _swept(cell) or {"method": str(method or cell.run_dir.parent.name)}
        # Sorted, so that the order of the keys does not split a row.
        _, group = groups.setdefault(tuple(sorted(labels.items())), (_label(labels), {}))
        group.setdefault(cell.run_dir, (cell, run))
    return [(label, list(group.values())) for label, group in groups.values()]


def _swept(cell: Cell) -> dict[str, str]:
    return {key: value for key, value in cell.labels.items() if key != "seed"}


def _label(labels: dict[str, str]) -> str:
    speaking = [labels[key] for key in _SPEAKING if key in labels]
    return ", ".join(speaking + [f"{key}={value}" for key, value in labels.items() if key not in _SPEAKING])


def check_comparable(label: str, found: Sequence[_Found]) -> None:
    """Raise ValueError if runs that are to be averaged differ in more than their seed."""

    def identity(run: dict[str, Any]) -> dict[str, Any]:
        facts = {key: get(run["config"], key) for key in _SAME_IN_A_ROW}
        return {"primary_metric": run["primary_metric"], **facts, "size.bits": run["size"]["bits"]}

    for run_dir, run in found[1:]:
        first_dir, first = found[0]
        for (key, expected), actual in zip(identity(first).items(), identity(run).values(), strict=True):
            if actual != expected:
                raise ValueError(
                    f"row {label!r} would average runs that are not comparable: {first_dir / RUN_FILE} has "
                    f"{key}={expected!r}, {run_dir / RUN_FILE} has {key}={actual!r}. Runs of one row may differ "
                    "only in their seed: give the cells a label for what differs, or use two tables."
                )


def _teacher_row(teacher: dict[str, Any], metric: str, published: Published | None) -> Row:
    value = teacher["metrics"].get(metric)
    return Row(
        label=TEACHER,
        metric=metric,
        values=[] if value is None else [float(value)],
        bits=teacher["size"].get("bits", "32"),
        simulated_mb=teacher["size"]["float_bytes"] / _MB,
        compression=1.0,
        steps=teacher["steps"],
        seconds=teacher["seconds"],
        n=1,
        teacher_id=teacher["id"],
        published=published,
    )


def _student_row(label: str, members: Sequence[_Member], metric_of: _MetricOf, records: Sequence[Record]) -> Row:
    runs = [run for _, run in members if run is not None]
    row = Row(
        label=label,
        expected=len(members),
        missing=[cell.command for cell, run in members if run is None],
        damaged=[cell.damage for cell, _ in members if cell.damage],
    )
    if not runs:
        return row
    first, metric = runs[0], metric_of(runs[0])
    found = [run["metrics"].get(metric_of(run)) for run in runs]
    return replace(
        row,
        metric=metric,
        values=[float(value) for value in found if value is not None],
        bits=first["size"]["bits"],
        simulated_mb=fmean(run["size"]["simulated_bytes"] for run in runs) / _MB,
        compression=fmean(run["size"]["compression"] for run in runs),
        steps=round(fmean(run["steps"] for run in runs)),
        seconds=fmean(run["seconds"] for run in runs),
        n=len(runs),
        teacher_id=", ".join(dict.fromkeys(run["teacher"]["id"] for run in runs if run["teacher"])) or None,
        commits=distinct(run.get("commit") for run in runs),
        devices=distinct(run.get("device") for run in runs),
        published=find(records, first["config"], metric),
    )


def distinct(texts: Iterable[str | None]) -> tuple[str, ...]:
    """Return each commit or device once."""
    return tuple(dict.fromkeys(text or "unknown" for text in texts))

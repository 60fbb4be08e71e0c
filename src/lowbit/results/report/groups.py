"""The jobs of a sweep as a report shows them: in groups that differ in the seed only, with the curves of their runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lowbit.files import DamagedFileError, sha256_of
from lowbit.results.collect import group_cells
from lowbit.results.rows import Cell
from lowbit.results.run_file import RUN_FILE, remedy
from lowbit.results.run_folder import METRICS_FILE, read_rows
from lowbit.results.scores import scale_of

_NOT_TERMS = ("lr", "lr_scales", "loss")

Point = tuple[float, float]


@dataclass(frozen=True)
class Group:
    """Jobs that differ in their seed only; `runs` holds the run.json of each, None where it has not finished."""

    label: str
    cells: tuple[Cell, ...]
    runs: tuple[dict[str, Any] | None, ...]

    @property
    def finished(self) -> list[tuple[Cell, dict[str, Any]]]:
        """The jobs that have finished."""
        return [(cell, run) for cell, run in zip(self.cells, self.runs, strict=True) if run is not None]

    @property
    def score(self) -> float | None:
        """Mean of the primary metric, in the unit of papers."""
        values = [float(run["metrics"][run["primary_metric"]]) for _, run in self.finished]
        return fmean(values) * scale_of(self.metric) if values else None

    @property
    def metric(self) -> str | None:
        """Primary metric of its runs."""
        return next((str(run["primary_metric"]) for _, run in self.finished), None)


def groups_of(cells: Iterable[Cell]) -> list[Group]:
    """Group the jobs as the rows of a table are."""
    return [
        Group(label, tuple(cell for cell, _ in members), tuple(run for _, run in members))
        for label, members in group_cells(cells)
    ]


@dataclass(frozen=True)
class Curves:
    """What metrics.csv holds of one run.

    Attributes:
        terms: Each loss term over the steps of the recipe, as logged: without its weight.
        parts: Where a stage or a phase begins, and its name.
        validation: Every evaluation of `metric`, in the unit of papers.
        damage: What is wrong with the file, and the remedy; there is nothing of it then.
    """

    terms: dict[str, list[Point]]
    parts: list[tuple[float, str]]
    validation: list[Point]
    damage: str = ""


def read_curves(folder: Path, run: dict[str, Any]) -> Curves:
    """Return the curves of a finished run; empty ones where its metrics.csv is gone or damaged."""
    try:
        rows = _whole_rows(folder / METRICS_FILE, run.get("files", {}).get(METRICS_FILE))
    except DamagedFileError as error:
        return Curves({}, [], [], damage=f"{error.fault}; the curves are left out. {remedy(folder)}")
    except OSError as error:
        return Curves({}, [], [], damage=f"{error}; the curves are left out.")
    trained = [row for row in rows if "train/loss" in row]
    names = dict.fromkeys(key.removeprefix("train/") for row in trained for key in row if key.startswith("train/"))
    terms = {name: _points(trained, f"train/{name}") for name in names if _is_term(name)}
    metric = validation_metric(run)
    scale = scale_of(metric)
    return Curves(terms, _parts(trained), [(step, scale * value) for step, value in _points(rows, metric)])


def _whole_rows(path: Path, recorded: str | None) -> list[dict[str, str]]:
    if recorded is not None and not path.exists():
        raise DamagedFileError(path, f"{path} is missing")
    if recorded is not None and sha256_of(path) != recorded:
        raise DamagedFileError(path, f"{path} is damaged: its SHA-256 is not the one in {RUN_FILE}")
    return read_rows(path)


def validation_metric(run: dict[str, Any]) -> str:
    """Return the primary metric as the evaluations during training have it: on the validation split."""
    split, _, name = str(run["primary_metric"]).partition("/")
    return f"val/{name}" if split == "test" else f"{split}/{name}"


def _is_term(name: str) -> bool:
    return name not in _NOT_TERMS and not name.endswith(("_percent", "_ratio"))


def _points(rows: Sequence[dict[str, str]], key: str) -> list[Point]:
    return [(float(row["step"]), float(row[key])) for row in rows if key in row]


def _parts(rows: Sequence[dict[str, str]]) -> list[tuple[float, str]]:
    """Return the first logged step of each stage, and of each phase in which the teacher stands in elsewhere."""
    parts: list[tuple[float, str]] = []
    before = None
    for row in rows:
        phase = {key.removeprefix("phase/"): float(value) for key, value in row.items() if key.startswith("phase/")}
        sites = " + ".join(site for site, share in phase.items() if share > 0)
        name = f"{row['stage']}: {sites}" if sites else row["stage"]
        if name != before:
            parts.append((0.0 if before is None else float(row["step"]), name))
        before = name
    return parts

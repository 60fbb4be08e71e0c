"""The layout of a paper's table in the file of a sweep: what its rows and its columns show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lowbit.results.collect import Cell
from lowbit.results.run_file import get


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

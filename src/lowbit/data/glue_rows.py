"""Read the rows of a GLUE split from TSV files, Parquet files, `save_to_disk` folders or the hub; name bad rows."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.config.glue_files import SplitFiles, description, find_split
from lowbit.config.glue_tasks import LARGEST_SCORE, REPOSITORY, REVISION, SplitName, TaskDescription
from lowbit.data.bad_rows import check_rows, text_problem
from lowbit.data.label_names import by_name
from lowbit.hub import hub_split
from lowbit.settings.data import DataConfig

# Where a row stands, and its cells in the order of the wanted columns, or what keeps it from having them.
Record = tuple[str, Sequence[Any] | str]


@dataclass
class Rows:
    """The usable rows of a split, column by column, and one line for each of the others."""

    texts: list[list[str]]
    labels: list[float] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of usable rows."""
        return len(self.labels)


def read_rows(config: DataConfig, split: SplitName) -> Rows:
    """Return the rows of a split, checked one by one.

    Raises:
        ValueError: bad rows that are not to be skipped, or none that is good; a file without the task's columns.
    """
    task = description(config)
    rows = Rows(texts=[[] for _ in task.texts])
    for where, cells in _records(config, task, split):
        problem = cells if isinstance(cells, str) else _take(rows, task, cells)
        if problem is not None:
            rows.bad.append(f"{where}: {problem}")
    check_rows(config, rows.bad, len(rows), f"the split {split.split} has no usable row")
    return rows


def _take(rows: Rows, task: TaskDescription, cells: Sequence[Any]) -> str | None:
    """Append a row and return None, or return what is wrong with it."""
    *texts, label = cells
    for name, text in zip(task.texts, texts, strict=True):
        problem = text_problem(name, text)
        if problem is not None:
            return problem
    value = _label(task, label)
    if value is None:
        allowed = f"one of {', '.join(task.labels)}" if task.labels else f"a number from 0 to {LARGEST_SCORE:g}"
        return f"label {label!r}, expected {allowed}"
    for column, text in zip(rows.texts, texts, strict=True):
        column.append(text)
    rows.labels.append(value)
    return None


def _label(task: TaskDescription, label: Any) -> float | None:
    if task.labels and isinstance(label, str):
        return next((known.index(label) for known in (task.labels, task.names) if label in known), None)
    try:
        value = float(label)
    except (TypeError, ValueError):
        return None
    if task.labels:
        return int(value) if value in range(len(task.labels)) else None
    return value if math.isfinite(value) and 0 <= value <= LARGEST_SCORE else None


def _records(config: DataConfig, task: TaskDescription, split: SplitName) -> Iterator[Record]:
    found = find_split(config, split)
    if found is None:
        return _hub(config, task, split)
    if found.format == "tsv":
        return _tsv(found.files[0], task)
    return table_rows(found, [*task.features, "label"])


def _tsv(path: Path, task: TaskDescription) -> Iterator[Record]:
    # No quoting: an odd quotation mark would swallow the lines after it. The published code reads alike.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = _readable(path, csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        columns = list(task.columns or next(lines, (0, []))[1])
        wanted = (*task.texts, task.label)
        missing = [name for name in wanted if name not in columns]
        if missing:
            raise ValueError(
                f"{path}:1: the header lacks {' and '.join(missing)}; it has {', '.join(columns) or 'nothing'}"
            )
        places = [columns.index(name) for name in wanted]
        for number, row in lines:
            if not row:
                continue
            where = f"{path}:{number}"
            if len(row) != len(columns):
                yield where, f"{len(row)} columns, expected {len(columns)}"
            else:
                yield where, [row[place] for place in places]


def _readable(path: Path, lines: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line; what csv gives up on is no table, and an error of the user's."""
    try:
        for row in lines:
            yield lines.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}:{lines.line_num} cannot be read as tab-separated text: {error}") from error


def table_rows(found: SplitFiles, wanted: Sequence[str]) -> Iterator[Record]:
    """Yield where each row of Parquet or Arrow files stands, and its cells in the wanted columns.

    Raises:
        ValueError: a file that is none, or without one of the columns.
    """
    import pyarrow as pa
    from pyarrow import parquet

    for path in found.files:
        try:
            if found.format == "parquet":
                table = parquet.read_table(path)
            else:
                with pa.memory_map(str(path)) as source:
                    table = pa.ipc.open_stream(source).read_all()
        except pa.ArrowException as error:
            raise ValueError(f"{path} cannot be read as {found.format}: {error}") from error
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(table.column_names)}")
        features = _features(path, table.schema)
        columns = (_cells(f"{path}: {name}", table[name]) for name in wanted)
        rows = zip(*(by_name(cells, features[name]) for name, cells in zip(wanted, columns, strict=True)), strict=True)
        yield from ((f"{path} row {number}", row) for number, row in enumerate(rows, start=1))


def _cells(where: str, column: Any) -> list[Any]:
    """Return the values of a column; bytes that are not UTF-8 stand in a text as lone surrogates, as in TSV files."""
    import pyarrow as pa

    try:
        return list(column.to_pylist())
    except UnicodeDecodeError as error:
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise ValueError(f"{where} is not UTF-8 ({error})") from error
    values = column.cast(pa.large_binary()).to_pylist()
    return [value if value is None else value.decode(errors="surrogateescape") for value in values]


def _features(path: Path, schema: Any) -> Any:
    from datasets import Features

    try:
        return Features.from_arrow_schema(schema)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: the description of its columns by `datasets` cannot be read ({error})") from error


def _hub(config: DataConfig, task: TaskDescription, split: SplitName) -> Iterator[Record]:
    assert config.task is not None
    files = [f"{task.folder}/{name.file}.tsv" for name in task.splits]
    revision = config.revision or REVISION
    data = hub_split(
        REPOSITORY,
        config.task.name,
        split=split.split,
        revision=revision,
        root="GLUE_DIR",
        files=files,
        choice=config.name,
    )
    return hub_rows(data, [*task.features, "label"], f"{REPOSITORY}, {config.task.name}, {split.split}")


def hub_rows(data: Any, wanted: Sequence[str], where: str) -> Iterator[Record]:
    """Yield where each row of a split of `datasets` stands, and its cells in the wanted columns."""
    columns = data.select_columns(list(wanted))[:]
    rows = zip(*(by_name(columns[name], data.features[name]) for name in wanted), strict=True)
    return ((f"{where} row {number}", row) for number, row in enumerate(rows, start=1))

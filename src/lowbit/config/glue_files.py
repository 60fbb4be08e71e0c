"""Where the files of a GLUE task lie, how many rows they hold, and a hash of what is in them (imports no torch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from lowbit.config.data_files import file_digest, joined_digest, length_problem, limit_rows, stamp
from lowbit.config.enums import DataSource, OnBadRow
from lowbit.config.glue_tasks import TASKS, TRAIN, SplitName, TaskDescription
from lowbit.config.schema import DataConfig

SAVED = "dataset_dict.json"  # what `DatasetDict.save_to_disk` leaves at the top


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split, and how to read them."""

    format: Literal["tsv", "parquet", "arrow"]
    files: tuple[Path, ...]


def description(config: DataConfig) -> TaskDescription:
    """Return the description of the config's task.

    Raises:
        ValueError: no task.
    """
    if config.task is None:
        raise ValueError(f"data.task: no value; choose one of {', '.join(task.name for task in TASKS)}")
    return TASKS[config.task]


def find_split(config: DataConfig, split: SplitName) -> SplitFiles | None:
    """Return the files of a split; None if the split comes from the hub.

    Raises:
        ValueError: saying which files to put where.
    """
    if split is TRAIN and config.train_file is not None:
        return SplitFiles("tsv", (_train_file(config),))
    if config.source is DataSource.hub:
        return None
    folder = _task_folder(config)
    found = _in_folder(folder, split)
    if found is None:
        raise ValueError(
            f"data.dir={config.dir}: {folder} has no {split.file}.tsv, no {split.split}.parquet (or "
            f"{split.split}-*.parquet) and no save_to_disk folder with the split {split.split}; {_remedy(config)}"
        )
    return found


def glue_problems(config: DataConfig) -> Iterator[str]:
    """Yield what is missing of the task and its files."""
    try:
        # A token of each sentence beside RoBERTa's 2 or 4 special ones.
        yield from length_problem(config, 3 * len(description(config).texts))
        for split in description(config).splits:
            find_split(config, split)
        if not train_rows(config):
            yield f"data={config.name}: the training file holds no row"
        elif config.train_size is not None and config.on_bad_row is OnBadRow.error:
            limit_rows("train_size", config.train_size, train_rows(config), config)
    except (ValueError, OSError) as error:
        yield str(error)


def train_rows(config: DataConfig) -> int:
    """Return the training rows that the files hold, bad ones included; on the hub, the official number."""
    found = find_split(config, TRAIN)
    task = description(config)
    if found is None:
        return task.train_rows
    headers = len(found.files) if found.format == "tsv" and task.columns is None else 0
    return max(count_rows(found) - headers, 0)


def count_rows(found: SplitFiles) -> int:
    """Return the rows of a split, the header lines of TSV files included."""
    return sum(_count(found.format, *stamp(file)) for file in found.files)


def column_files(folder: Path, split: str) -> SplitFiles | None:
    """Return the Parquet files of a split, or those of a `save_to_disk` folder; None if there are neither."""
    columns = (*folder.glob(f"{split}.parquet"), *sorted(folder.glob(f"{split}-*.parquet")))
    if columns:
        return SplitFiles("parquet", columns)
    saved = sorted((folder / split).glob("*.arrow"))
    return SplitFiles("arrow", tuple(saved)) if saved and (folder / SAVED).is_file() else None


def digest(found: SplitFiles) -> str:
    """Return a hash of the bytes of a split's files."""
    return joined_digest(map(file_digest, found.files))


def fingerprint(config: DataConfig) -> str | None:
    """Return a hash of everything that the config reads from files; None if it reads none.

    Raises:
        ValueError: files are missing.
    """
    found = [find_split(config, split) for split in description(config).splits]
    parts = [digest(files) for files in found if files is not None]
    return joined_digest(parts) if parts else None


def _task_folder(config: DataConfig) -> Path:
    task = description(config)
    if config.dir is None:
        raise ValueError(f"data.dir: no value; {_remedy(config, 'GLUE_DIR')}, with data.dir=GLUE_DIR")
    assert config.task is not None
    root = Path(config.dir).expanduser()
    names = dict.fromkeys((task.folder, config.task.name, task.folder.lower()))
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        missing = f"no folder {' or '.join(names)} in it" if root.is_dir() else "no such folder"
        raise ValueError(f"data.dir={config.dir}: {missing}; {_remedy(config)}")
    return folder


def _in_folder(folder: Path, split: SplitName) -> SplitFiles | None:
    table = folder / f"{split.file}.tsv"
    if table.is_file():
        return SplitFiles("tsv", (table,))
    return column_files(folder, split.split)


def _train_file(config: DataConfig) -> Path:
    assert config.train_file is not None
    path = Path(config.train_file).expanduser()
    if config.source is DataSource.folder and not path.is_absolute():
        beside = _task_folder(config) / path
        path = beside if beside.is_file() else path
    if not path.is_file():
        raise ValueError(
            f"data.train_file={config.train_file}: no such file, here or beside the task's train.tsv; "
            "give a TSV file with the columns of train.tsv"
        )
    return path


def _remedy(config: DataConfig, root: str | None = None) -> str:
    task = description(config)
    where = Path(config.dir or "") if root is None else Path(root)
    files = " and ".join(str(where / task.folder / f"{split.file}.tsv") for split in task.splits)
    return f"put the official GLUE files at {files}, or set data.source=hub on a machine with network access"


@lru_cache
def _count(file_format: str, path: Path, modified: int, size: int) -> int:
    if file_format == "tsv":
        with path.open(encoding="utf-8", errors="replace") as lines:
            return sum(1 for line in lines if line != "\n")
    import pyarrow as pa
    from pyarrow import parquet

    if file_format == "parquet":
        return int(parquet.read_metadata(path).num_rows)
    with pa.memory_map(str(path)) as source:
        return sum(batch.num_rows for batch in pa.ipc.open_stream(source))

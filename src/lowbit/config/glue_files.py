"""Where the files of a GLUE task lie, how many rows they hold, and a hash of what is in them (imports no torch)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from lowbit.config.data_files import file_digest, joined_digest, length_problem, limit_rows, stamp
from lowbit.config.glue_tasks import TASKS, TRAIN, SplitName, TaskDescription
from lowbit.settings.data import DataConfig, DataSource, OnBadRow

SAVED = "dataset_dict.json"  # what `DatasetDict.save_to_disk` leaves at the top
MANIFEST = "state.json"  # and for each split
_SHARD = re.compile(r"-(?P<number>\d+)(?:-of-(?P<total>\d+)(?:-[0-9a-f]+)?)?\.parquet")


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
    found = split_files(folder / f"{split.file}.tsv", folder, split.split)
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


def split_files(table: Path, folder: Path | None, split: str) -> SplitFiles | None:
    """Return the files of a split: the TSV file, Parquet files, or those of a `save_to_disk` folder; None without any.

    Args:
        table: The TSV file.
        folder: Where Parquet files and saved splits would be; None: they cannot hold this split.
        split: Its name in these.

    Raises:
        ValueError: several sets of files, which may hold the same rows or others, or one that is not whole.
    """
    found = [SplitFiles("tsv", (table,))] if table.is_file() else []
    if folder is not None:
        found += [*_parquet(folder, split), *_saved(folder, split)]
    if len(found) > 1:
        sets = " or ".join(_listed(files.files) for files in found)
        raise ValueError(
            f"{found[0].files[0].parent}: the split {split} may be {sets}: keep one of them, and move the others away"
        )
    return found[0] if found else None


def _parquet(folder: Path, split: str) -> list[SplitFiles]:
    """Return each set of Parquet files that may be a split: one file, or numbered ones that belong together."""
    sets: dict[str, list[Path]] = {}
    for file in sorted((*folder.glob(f"{split}.parquet"), *folder.glob(f"{split}-*.parquet"))):
        part = _SHARD.fullmatch(file.name[len(split) :])
        sets.setdefault(file.name if part is None else f"shards of {part['total']}", []).append(file)
    for files in sets.values():
        _check_shards(files, split)
    return [SplitFiles("parquet", tuple(files)) for files in sets.values()]


def _check_shards(files: list[Path], split: str) -> None:
    """Refuse shards that are not all there: `train-00001-of-00003` says how many were written."""
    parts = [part for file in files if (part := _SHARD.fullmatch(file.name[len(split) :]))]
    total = next((int(part["total"]) for part in parts if part["total"]), None)
    if total is not None and sorted(int(part["number"]) for part in parts) != list(range(total)):
        raise ValueError(
            f"{files[0].parent}: the split {split} was written as {total} files, and these are here: "
            f"{_listed(files)}; bring the missing ones, or write it again"
        )


def _saved(folder: Path, split: str) -> list[SplitFiles]:
    """Return the files that `save_to_disk` wrote, as its own manifest lists them: `.map` leaves others beside them."""
    manifest = folder / split / MANIFEST
    if not (folder / SAVED).is_file() or not manifest.parent.is_dir():
        return []
    try:
        state = json.loads(manifest.read_text(encoding="utf-8"))
        files = [manifest.parent / str(entry["filename"]) for entry in state["_data_files"]]
        indices = state.get("_indices_data_files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{manifest} does not list the files of the split ({type(error).__name__}: {error}); "
            "write the folder again with save_to_disk"
        ) from error
    missing = [file for file in files if file.parent != manifest.parent or not file.is_file()]
    if missing or not files:
        raise ValueError(
            f"{manifest} lists {_listed(missing) or 'no file'}, which is not there; "
            "write the folder again with save_to_disk"
        )
    if indices:
        raise ValueError(
            f"{manifest} lists indices into its rows, as old versions of datasets wrote them; load the folder with "
            "load_from_disk, and write it again with flatten_indices().save_to_disk"
        )
    return [SplitFiles("arrow", tuple(files))]


def _listed(files: Sequence[Path]) -> str:
    names = [file.name if file.suffix != ".arrow" else f"{file.parent.name}/{file.name}" for file in files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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

"""Copies of a soft-label store's shards that can be mapped into memory, verified whenever a process opens them."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from lowbit.config.data_files import file_digest
from lowbit.config.label_store import damage, shard_names
from lowbit.files import read_json, replacing, write_json


def mapped_rows(folder: Path, manifest: Mapping[str, Any], cache: Path) -> Any:
    """Return the rows of every shard as one data set of `datasets` that gives Arrow tables.

    Args:
        folder: The store.
        manifest: Of a complete store.
        cache: Folder of the copies; a copy that is missing, damaged or of an older shard is made from its shard.

    Raises:
        ValueError: a copy must be made, and its shard is damaged.
    """
    from datasets import Dataset, concatenate_datasets

    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):
        shutil.rmtree(cache / "parquet", ignore_errors=True)  # copies of earlier versions, which nothing verifies
        files = [_copy(folder, manifest, name, cache) for name in shard_names(manifest)]
    return concatenate_datasets([Dataset.from_file(str(file)) for file in files]).with_format("arrow")


def _copy(folder: Path, manifest: Mapping[str, Any], name: str, cache: Path) -> Path:
    """Return the copy of a shard, made if there is none with the checksum that was noted."""
    file, record = cache / Path(name).with_suffix(".arrow"), cache / Path(name).with_suffix(".json")
    shard: str = manifest["shards"][name]["sha256"]
    known = _noted(record)
    if known.get("shard") == shard and file.is_file():
        if file_digest(file) == known.get("copy"):
            return file
        warnings.warn(f"{file} is damaged and is made anew from {folder / name}", stacklevel=2)
    problem = damage(folder, manifest, name)
    if problem is not None:
        raise ValueError(f"{folder / name} {problem}; run `{manifest['command']}`, which rewrites only what is missing")
    _convert(folder / name, file)
    write_json(record, {"shard": shard, "copy": file_digest(file)})
    return file


def _noted(record: Path) -> dict[str, Any]:
    try:
        return dict(read_json(record) or {})
    except (ValueError, TypeError):
        return {}  # the copy is made anew, and the note with it


def _convert(shard: Path, file: Path) -> None:
    """Write the rows of a Parquet file as a stream of Arrow, which is mapped without being read."""
    from pyarrow import ipc
    from pyarrow.parquet import ParquetFile

    with replacing(file) as temporary, ParquetFile(shard) as rows:
        schema = rows.schema_arrow.remove_metadata()  # the types as they lie in the file
        with ipc.new_stream(str(temporary), schema) as stream:
            for batch in rows.iter_batches():
                stream.write_batch(batch.replace_schema_metadata(None))

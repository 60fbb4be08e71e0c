"""What every data set of files needs: hashes of files, read once per version, and limits on rows (imports no torch)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from lowbit.files import sha256_of
from lowbit.settings.data import DataConfig


def limit_rows(key: str, value: int | None, rows: int, config: DataConfig) -> int:
    """Return how many of the rows are used.

    Raises:
        ValueError: more are asked for than there are.
    """
    if value is None:
        return rows
    if not 1 <= value <= rows:
        raise ValueError(f"data.{key}={value}: {config.name} has {rows} such rows; set data.{key} to 1..{rows} or null")
    return value


def length_problem(config: DataConfig, least: int) -> Iterator[str]:
    """Yield that `data.max_length` leaves no token for the text, if it is below `least`."""
    if config.max_length is not None and config.max_length < least:
        yield f"data.max_length={config.max_length}: leaves no token for the text; set {least} or more"


def stamp(path: Path) -> tuple[Path, int, int]:
    """Return what tells a file from its later versions, so that it is read once per process."""
    status = path.stat()
    return path.resolve(), status.st_mtime_ns, status.st_size


def file_digest(file: Path) -> str:
    """Return a hash of the bytes of a file, computed once per process for each of its versions."""
    return _digest(*stamp(file))


def joined_digest(parts: Iterable[str]) -> str:
    """Return one hash of several."""
    return hashlib.sha256("".join(parts).encode()).hexdigest()


@cache
def _digest(path: Path, modified: int, size: int) -> str:
    return sha256_of(path)

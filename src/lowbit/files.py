"""Files that are whole or absent: atomic writes, JSON and digests (imports nothing of ours)."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends it takes the name of `path`.

    A reader sees the old file or the whole new one. The new file is on disk before it gets its name (unless `sync` is
    false), and has the permissions of any new file, whoever wrote it. If the block raises, the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same folder, because os.replace is atomic only within one file system; a name of its own for each writer.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # that of any new file; safetensors would make it 0600
        yield temporary
        temporary.chmod(mode)
        if sync:
            _sync(temporary)
        temporary.replace(path)
        if sync:
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write a text file atomically, making its folder."""
    with replacing(path, sync=sync) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, payload: Any, *, sync: bool = True) -> None:
    """Write `payload` as JSON so that a reader sees the old file or the whole new one, never a part.

    Raises:
        TypeError: `payload` holds something that JSON cannot express; the old file stays.
    """
    # Serialized before any file is touched, so a bad payload leaves nothing behind.
    write_text(path, json.dumps(payload, indent=2, ensure_ascii=False) + "\n", sync=sync)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if there is no such file.

    Raises:
        ValueError: the file is not valid JSON.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return json.loads(text)
    except ValueError as error:  # also covers bytes that are not UTF-8
        raise ValueError(
            f"{path} is not valid JSON ({error}). Delete that file and run the same command again to rewrite it."
        ) from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Files that are whole or absent: atomic writes, and JSON with its own digest (imports nothing of ours)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SEAL = "sha256"  # key of the digest in a JSON file of ours
_REWRITE = "Delete that file and run the same command again to rewrite it."
_TEMPORARY = ".tmp"
_STALE_SECONDS = 3600  # a temporary file of another machine is a leftover after this time without a write


class DamagedFileError(ValueError):
    """The content of a file is not what was written.

    Attributes:
        path: The file.
        fault: What is wrong with it. The remedy is separate, because it depends on what the file is needed for.
    """

    def __init__(self, path: Path, fault: str, remedy: str = "") -> None:
        self.path, self.fault = path, fault
        super().__init__(f"{fault}. {remedy}" if remedy else fault)


@contextmanager
def atomic_write(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path for the new content; when the block ends, the temporary file replaces `path`.

    A reader sees the previous file or the whole new one. The new file is on disk before it gets its name (unless `sync`
    is false), and has the permissions of any new file. If the block raises, the previous file stays.

    Raises:
        OSError: If the file cannot be written, for example because the disk is full; names `path`.
    """
    # In the same folder, because a rename is atomic only within one file system. The name contains the process, so that
    # `remove_leftovers` knows whether the writer is alive.
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{path} is a folder; name a file in it")
    writer = f"{socket.gethostname()}-{os.getpid()}"
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{writer}{_TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # that of any new file, which the block may change
        yield temporary
        temporary.chmod(mode)
        if sync:
            _sync(temporary)
        temporary.replace(path)
        if sync:
            _sync(path.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        with suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> OSError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "Make room there" if full else "Make it writable"
    text = f"{path} cannot be written ({error.strerror or error}). {advice}, and the same command goes on"
    return OSError(error.errno, text) if error.errno is not None else OSError(text)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed.

    If it is unknown whether the writer is alive (another machine, an id that another process has now), the file is
    removed after an hour without a write. Files of another user stay. Call this under the folder's lock, if it has one.
    """
    for path in [*folder.rglob(f".*{_TEMPORARY}"), *folder.rglob(".tmp??????")]:  # the latter are of safetensors itself
        with suppress(FileNotFoundError, PermissionError):  # the former if its writer has just finished
            if _is_leftover(path):
                path.unlink()


def _is_leftover(path: Path) -> bool:
    writer = path.name.removesuffix(_TEMPORARY).rpartition(".")[2] if path.suffix == _TEMPORARY else ""
    host, _, pid = writer.rpartition("-")
    if host == socket.gethostname() and pid.isdecimal() and not is_alive(int(pid)):
        return True
    return time.time() - path.stat().st_mtime > _STALE_SECONDS


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # the latter for an id that no process can have
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder, so that it can be examined; return its new path."""
    return path.rename(_name_aside(path))


def keep_copy(path: Path) -> Path:
    """Copy a damaged file before it is replaced; return the path of the copy."""
    return Path(shutil.copyfile(path, _name_aside(path)))


def _name_aside(path: Path) -> Path:
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged{number}")
    return aside


def move_folder(folder: Path, to: Path) -> None:
    """Rename a folder after its content is on disk, so that a reader sees no part of it."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file() or path.is_dir():
            _sync(path)
    folder.replace(to)
    _sync(to.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write a text file atomically; create its folder."""
    with atomic_write(path, sync=sync) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, payload: object, *, sync: bool = True) -> None:
    """Write JSON atomically. An object gets one more key, `sha256`: the digest of the rest, which `read_json` compares.

    Raises:
        TypeError: If `payload` holds something that JSON cannot express.
        ValueError: If it holds NaN or an infinity.
    """
    # Serialized before any file is opened, so that the previous file stays if the payload is bad.
    plain = json.loads(json.dumps(payload, allow_nan=False))
    if isinstance(plain, dict):
        plain[SEAL] = _digest(plain)
    write_text(path, json.dumps(plain, indent=2, ensure_ascii=False) + "\n", sync=sync)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file without its digest, or None if there is no such file.

    Files of earlier versions may lack a digest, and may hold NaN and infinities, which strict readers refuse.

    Raises:
        DamagedFileError: If the file is not valid JSON, or not what was written.
        ValueError: If the path is a folder, or its parent is a file.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise ValueError(f"{path.parent} is a file where a folder is expected. Move it away.") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder where a file is expected. Move it away.") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # the first also covers bytes that are not UTF-8
        raise DamagedFileError(path, f"{path} is not valid JSON ({error})", _REWRITE) from error
    if isinstance(content, dict) and _is_changed(content):
        fault = f"{path} is damaged: its content does not have the SHA-256 that was written"
        raise DamagedFileError(path, fault, _REWRITE)
    return content


def _is_changed(content: dict[str, object]) -> bool:
    """Take the digest out of an object, and return whether it differs from that of the rest."""
    sealed = content.pop(SEAL, None)
    if sealed is not None:
        return bool(sealed != _digest(content))
    # No other key holds a digest, so this is one whose key is damaged.
    return any(isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) for value in content.values())


def _digest(content: dict[str, object]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode())


def sha256(content: bytes | memoryview) -> str:
    """Return the SHA-256 of bytes, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Tensors that take long to compute, kept on disk under a hash of what they were computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowbit.files import atomic_write

Tensors = dict[str, Tensor]
_CHECKSUM = "sha256"


def content_key(*parts: str | int | None) -> str:
    """Return a short hash of the parts, each in its place."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(repr(part).encode()).digest())
    return digest.hexdigest()[:24]


def cached(file: Path | None, build: Callable[[], Tensors]) -> Tensors:
    """Return the tensors of a file, built and written if it does not exist; without a file they are only built.

    The file is read through a memory map; it appears whole or not at all.

    Raises:
        ValueError: the file is not what was written.
    """
    if file is None:
        return build()
    if file.exists():
        return _read(file)
    tensors = build()
    with atomic_write(file) as temporary:  # a name of its own: two processes may build the same file at once
        save_file(tensors, temporary, metadata={_CHECKSUM: _checksum(tensors)})
    return tensors


def _read(file: Path) -> Tensors:
    try:
        with safe_open(file, "pt") as content:
            written = (content.metadata() or {}).get(_CHECKSUM)
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(_damaged(file, str(error))) from error
    if written != _checksum(tensors):
        raise ValueError(_damaged(file, "its checksum differs"))
    return tensors


def _damaged(file: Path, why: str) -> str:
    return f"the cache file {file} is damaged ({why}): delete it, and the same command makes it anew"


def _checksum(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()

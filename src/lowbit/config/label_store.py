"""What a soft-label store on disk says of itself: its manifest and whether its shards are whole (imports no torch)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.files import sha256_of

FORMAT = 1
MANIFEST = "manifest.json"
AGAIN = "write it anew with `lowbit softlabels`"
_PARTS = ("data", "teacher", "labels", "crops", "transform", "images_per_shard", "command", "shards")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder, None if it has none; raise ValueError if it is damaged."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = dict(json.loads(path.read_bytes()))
        found = manifest["format"]
        if found == FORMAT:
            manifest = {"format": found, **{part: manifest[part] for part in _PARTS}}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no soft-label manifest ({error}): delete {folder} and {AGAIN}") from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}, this version reads {FORMAT}: delete {folder} and {AGAIN}")
    return manifest


def shard_names(manifest: Mapping[str, Any]) -> list[str]:
    """Return the file names of every shard, in order."""
    count = math.ceil(manifest["data"]["size"] / manifest["images_per_shard"])
    return [f"part-{number:05d}.parquet" for number in range(count)]


def damage(folder: Path, manifest: Mapping[str, Any], name: str, checksum: bool = True) -> str | None:
    """Say what is wrong with a shard, or None."""
    facts, path = manifest["shards"].get(name), folder / name
    if facts is None:
        return "has not been written yet: the store is unfinished"
    if not path.exists():
        return "is missing"
    size = path.stat().st_size
    if size != facts["bytes"]:
        return f"is {'truncated' if size < facts['bytes'] else 'damaged'}: {size} of {facts['bytes']} bytes"
    if checksum and sha256_of(path) != facts["sha256"]:
        return "is damaged: its SHA-256 is not that of the manifest"
    return None


def whole_manifest(folder: Path, checksums: bool) -> dict[str, Any]:
    """Return the manifest of a complete store.

    Args:
        folder: The store.
        checksums: Whether to read every shard and compare its SHA-256, not only its size.

    Raises:
        ValueError: no store, an unfinished, damaged or empty one; with the command that mends it.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"{folder}: no soft-label store (no {MANIFEST}); write one with `lowbit softlabels {folder}`")
    again = f"run `{manifest['command']}`"
    for name in shard_names(manifest):
        problem = damage(folder, manifest, name, checksums)
        if problem is not None:
            raise ValueError(f"{folder / name} {problem}; {again}, which rewrites only what is missing")
    if not labelled_images(manifest):
        raise ValueError(f"{folder} holds no labels: every image was skipped at the import; {again}")
    return manifest


def labelled_images(manifest: Mapping[str, Any]) -> int:
    """Return the number of images with labels; an import may have skipped some."""
    return sum(shard["rows"] for shard in manifest["shards"].values())


def store_digest(folder: Path) -> str | None:
    """Return a hash of a store's content, None where there is no store.

    The manifest holds the SHA-256 of every shard, so it stands for them. The command that wrote it does not count: it
    names the folder.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    content = {part: value for part, value in manifest.items() if part != "command"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

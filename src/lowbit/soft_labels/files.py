"""The manifest of a soft-label store, whether its files are whole, and what a run needs of it (imports no torch)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

from lowbit.files import DamagedFileError, read_json, sha256, sha256_of
from lowbit.settings.data import TEXT, DataConfig
from lowbit.settings.losses import LossKind
from lowbit.settings.run import Config

Manifest: TypeAlias = dict[str, Any]
MANIFEST = "manifest.json"
FORMAT = 2
AGAIN = "write it again with `lowbit softlabels`"
_SUFFIXES = {1: "parquet", FORMAT: "safetensors"}  # of shards; stores of format 1 are read, but not written
_PARTS = ("data", "teacher", "labels", "crops", "transform", "images_per_shard", "command", "shards")


class LabelKind(StrEnum):
    """The part of a teacher's probabilities that is stored, by the names of FKD (whose `ori` is `full`)."""

    full = "full"
    hard = "hard"
    smoothing = "smoothing"
    marginal_smoothing = "marginal_smoothing"
    marginal_renorm = "marginal_renorm"


@dataclass(frozen=True)
class LabelType:
    """A kind and the number of stored classes; 0 means all."""

    kind: LabelKind
    k: int

    @classmethod
    def parse(cls, text: str) -> LabelType:
        """Return the type of a name such as `marginal_smoothing_k5`.

        Raises:
            ValueError: there is no such type.
        """
        if text in ("full", "ori"):
            return cls(LabelKind.full, 0)
        if text in ("hard", "smoothing"):
            return cls(LabelKind(text), 1)
        match = re.fullmatch(r"(marginal_smoothing|marginal_renorm)_k([1-9]\d*)", text)
        if match is None:
            allowed = "full, hard, smoothing, marginal_smoothing_kK or marginal_renorm_kK"
            raise ValueError(f"label type {text!r}: choose {allowed} with K classes, e.g. marginal_smoothing_k5")
        return cls(LabelKind(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.kind}_k{self.k}" if self.kind.startswith("marginal") else str(self.kind)


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder, None if it has none; raise ValueError if it is damaged or of another format."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = read_json(path)
        found = manifest["format"]
        if found in _SUFFIXES:
            return {"format": found, **{part: manifest[part] for part in _PARTS}}
    except (ValueError, KeyError, TypeError) as error:
        fault = error.fault if isinstance(error, DamagedFileError) else error
        raise ValueError(f"{path} is no soft-label manifest ({fault}): delete {folder} and {AGAIN}") from error
    readable = " and ".join(map(str, _SUFFIXES))
    raise ValueError(f"{path} has format {found}, this version reads {readable}: delete {folder} and {AGAIN}")


def shard_names(manifest: Manifest) -> list[str]:
    """Return the file names of all shards, in order."""
    count = math.ceil(manifest["data"]["size"] / manifest["images_per_shard"])
    return [f"part-{number:05d}.{_SUFFIXES[manifest['format']]}" for number in range(count)]


def find_damage(folder: Path, manifest: Manifest, name: str, checksum: bool = True) -> str | None:
    """Return what is wrong with a shard, or None."""
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


def complete_manifest(folder: Path, checksums: bool) -> Manifest:
    """Return the manifest of a complete store.

    Args:
        folder: The store.
        checksums: Whether to read every shard and compare its SHA-256, not only its size.

    Raises:
        ValueError: there is no store, or it is unfinished, damaged or empty; names the command that repairs it.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"{folder}: no soft-label store (no {MANIFEST}); write one with `lowbit softlabels {folder}`")
    again = f"run `{manifest['command']}`"
    for name in shard_names(manifest):
        fault = find_damage(folder, manifest, name, checksums)
        if fault is not None and manifest["format"] != FORMAT:
            raise ValueError(f"{folder / name} {fault}; delete {folder} and {again}")
        if fault is not None:
            raise ValueError(f"{folder / name} {fault}; {again}, which rewrites only what is missing")
    if not count_images(manifest):
        raise ValueError(f"{folder} holds no labels: every image was skipped at the import; {again}")
    return manifest


def count_images(manifest: Manifest) -> int:
    """Return the number of images with labels; an import may have skipped some."""
    return sum(shard["rows"] for shard in manifest["shards"].values())


def describe_store(manifest: Manifest) -> str:
    """Return one line on what a store holds."""
    crops = f"{count_images(manifest)} images x {manifest['crops']['per_image']} crops"
    return f"{crops}, {manifest['labels']['type']}, by teacher {manifest['teacher']['id']}"


def describe_written(folder: Path, manifest: Manifest) -> str:
    """Return what was written, its size, and how to train on it."""
    size = sum(shard["bytes"] for shard in manifest["shards"].values()) / 1e6
    train = f"train with data.soft_labels={folder} data.augment=false"
    return f"{folder}: {describe_store(manifest)}, {size:.1f} MB\n{train}"


def store_digest(folder: Path) -> str | None:
    """Return a hash of a store's content, None where there is no store."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    # The manifest holds the SHA-256 of every shard. The command does not count: it names the folder.
    content = {part: value for part, value in manifest.items() if part != "command"}
    return sha256(json.dumps(content, sort_keys=True).encode())


def store_folder(data: DataConfig) -> Path | None:
    """Return the folder of the store that the run trains on, None for whole images."""
    return None if data.soft_labels is None else Path(data.soft_labels).expanduser()


def soft_label_problems(config: Config) -> Iterator[str]:
    """Yield every problem of the store and of the loss that reads it."""
    data = config.data
    folder = store_folder(data)
    losses = [
        f"method.stages.{stage_name}.losses.{key}" if stage.losses else f"method.losses.{key}"
        for stage_name, stage in config.method.stages.items()
        for key, loss in config.method.losses_of(stage).items()
        if loss.kind == LossKind.soft_labels
    ]
    if folder is None:
        if losses:
            yield (
                f"{losses[0]} has a weight, but data.soft_labels=null: write a store with `lowbit softlabels FOLDER` "
                f"and set data.soft_labels=FOLDER, or set {losses[0]}.weight=0"
            )
        return
    where = f"data.soft_labels={data.soft_labels}"
    if not losses:
        yield (
            f"{where}, but no loss reads its labels: set method.losses.soft_labels.weight=1, or data.soft_labels=null"
        )
    if data.augment:
        yield f"data.augment=true and {where}: the labels belong to the crops as stored; set data.augment=false"
    if data.kind in TEXT:
        yield f"{where}: crops are of images, data={data.name} is text; set data.soft_labels=null"
        return
    try:
        stored = complete_manifest(folder, checksums=False)["crops"]["per_image"]
    except (ValueError, OSError) as error:
        yield f"{where}: {error}"
        return
    most = min(stored, data.batch_size)
    if data.num_crops > most:
        yield (
            f"data.num_crops={data.num_crops}: the store holds {stored} crops per image and "
            f"data.batch_size={data.batch_size}; set data.num_crops to 1..{most}"
        )

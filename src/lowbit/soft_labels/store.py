"""Reading a soft-label store: a teacher's answers to N crops of every image, from memory-mapped shards."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from lowbit.data.cache import Tensors, cached
from lowbit.data.image_source import FileImages
from lowbit.settings.data import DataInfo
from lowbit.soft_labels.crops import CropTransform
from lowbit.soft_labels.files import AGAIN, LabelKind, LabelType, Manifest, complete_manifest, shard_names

# The manifest has one digest of so many images; to read all images of a large data set at every start takes hours.
_PROBES = 1024
_COMPONENTS = 4


class Images(Protocol):
    """A tensor (N, C, H, W), or anything that gives (C, H, W) tensors by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


class StoredLabels(NamedTuple):
    """(N, k) classes, of width 0 for `full`, and (N, k) float32 probabilities, 1 for `hard`."""

    classes: Tensor
    probabilities: Tensor


class LabelledCrops(NamedTuple):
    """Crops of one image with their (N, C) probabilities."""

    coords: Tensor
    flip: Tensor
    probs: Tensor


def compress(probs_NC: Tensor, label_type: LabelType) -> StoredLabels:
    """Return the part of a teacher's probabilities that is stored."""
    if label_type.kind is LabelKind.full:
        return StoredLabels(torch.empty(len(probs_NC), 0, dtype=torch.int64), probs_NC)
    values, classes = probs_NC.topk(label_type.k, dim=1)
    return StoredLabels(classes, torch.ones_like(values) if label_type.kind is LabelKind.hard else values)


def expand(labels: StoredLabels, label_type: LabelType, num_classes: int) -> Tensor:
    """Return (N, C) float32 probabilities that sum to 1.

    Smoothing gives each class that is not stored (1 - sum of the stored ones) / (C - k); renormalisation gives it 0.

    Args:
        labels: From `compress`.
        label_type: The type that `compress` was called with.
        num_classes: C.

    Source: `Recover_soft_label` of FKD (arXiv 2112.01528), published code.
    """
    probs = labels.probabilities.double()
    if label_type.kind is not LabelKind.full:
        # Half-precision files may sum to a little more than 1: then nothing is left over.
        rest = (1 - probs.sum(1, keepdim=True)).clamp_min(0) / (num_classes - label_type.k)
        if label_type.kind is LabelKind.marginal_renorm:
            rest = torch.zeros_like(rest)
        probs = rest.repeat(1, num_classes).scatter(1, labels.classes.long(), probs)
    return (probs / probs.sum(1, keepdim=True)).float()


def fkd_name(image_path: str | Path) -> str:
    """Return the last four path components of an image, by which FKD's labels know it.

    Raises:
        ValueError: the path is shorter.
    """
    path = Path(image_path)
    parts = [part for part in path.parts if part != path.anchor]
    if len(parts) < _COMPONENTS:
        raise ValueError(f"{path}: needs {_COMPONENTS} path components as in imagenet/train/n01440764/n01440764_1.JPEG")
    return "/".join(parts[-_COMPONENTS:])


def image_digest(image: Tensor) -> str:
    """Return 16 hexadecimal digits that depend on pixels, shape and dtype."""
    head = f"{image.dtype} {tuple(image.shape)} ".encode()
    data = image.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(head + data).hexdigest()[:16]


def name_digest(name: str) -> str:
    """Return 16 hexadecimal digits that depend on a file name."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def probe_pixels(images: Images) -> str:
    """Return one digest of the pixels of up to 1,024 evenly spaced images."""
    return _probe(lambda index: image_digest(images[index]), len(images))


def probe_names(name_of: Callable[[int], str], size: int) -> str:
    """Return one digest of the names of up to 1,024 evenly spaced images."""
    return _probe(lambda index: name_digest(name_of(index)), size)


def _probe(digest: Callable[[int], str], size: int) -> str:
    count = min(size, _PROBES)
    digests = [digest(place * size // count) for place in range(count)]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def matching_manifest(folder: Path, images: Images, info: DataInfo, checksums: bool) -> Manifest:
    """Return the manifest of a store that was written for these training images.

    Args:
        folder: The store.
        images: The training images, in the order of training.
        info: Facts of the data set.
        checksums: Whether to read every shard and compare its SHA-256, not only its size.

    Raises:
        ValueError: the store is missing, unfinished or damaged, or has other images, classes or crop sizes.
    """
    manifest = complete_manifest(folder, checksums)
    labels, size = manifest["labels"], manifest["transform"]["size"]
    if labels["classes"] != info.num_labels:
        said = f"{folder} holds labels of {labels['classes']} classes, the data set has {info.num_labels}"
        raise ValueError(f"{said}: name its own store, or write one with `lowbit softlabels`")
    for place, (stored, own) in enumerate(zip(labels.get("names", []), info.labels, strict=False)):
        if stored != own:
            raise ValueError(
                f"{folder} holds labels of other classes than the data set, or in another order: class {place} is "
                f"{stored} there, {own} here; write another store with `lowbit softlabels`"
            )
    _check_images(folder, manifest["data"], images)
    if info.image is None and size != info.image_size:
        raise ValueError(
            f"{folder} holds labels of crops of {size} pixels, data={info.name} has images of {info.image_size}: "
            "write another with `lowbit softlabels`"
        )
    return manifest


def _check_images(folder: Path, data: Manifest, images: Images) -> None:
    said = f"{folder} holds labels for the {data['size']} training images of {data['name']}"
    if len(images) != data["size"]:
        raise ValueError(f"{said}, not for {len(images)} images: name its folder or {AGAIN}")
    if data["identity"] == "pixels":
        if probe_pixels(images) != data["probe"]:
            raise ValueError(
                f"{said}, which are other images than these (another data set, order, split or normalisation): "
                f"name its folder or {AGAIN}"
            )
    elif not isinstance(images, FileImages):
        raise ValueError(f"{said} and knows them by file name: this data set has no file names; {AGAIN}")
    elif probe_names(lambda index: fkd_name(images.path(index)), len(images)) != data["probe"]:
        raise ValueError(
            f"{said} and knows them by file name, the last components of the path: these have others, such as "
            f"{fkd_name(images.path(0))}; give the folder the name it had at the import, or import the labels again"
        )


class SoftLabelStore:
    """A complete store, memory-mapped.

    Attributes:
        folder: Its folder.
        manifest: What it says of itself.
        label_type: The part of the teacher's probabilities that is stored.
        num_classes: C.
        num_crops: Stored crops per image.
        transform: From a crop to the input of the teacher.
        indices: The images that have labels, int64.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Map the shards of a manifest from `matching_manifest`."""
        self.folder, self.manifest = folder, manifest
        self.label_type = LabelType.parse(manifest["labels"]["type"])
        self.num_classes: int = manifest["labels"]["classes"]
        self.num_crops: int = manifest["crops"]["per_image"]
        self.transform = CropTransform.from_json(manifest["transform"])
        size, self._step = manifest["data"]["size"], manifest["images_per_shard"]
        self._rows = torch.full((size,), -1, dtype=torch.int64)  # of each image in its shard
        names = shard_names(manifest)
        for name, start in zip(names, range(0, size, self._step), strict=True):
            skipped = set(manifest["shards"][name]["skipped"])
            labelled = [index for index in range(start, min(start + self._step, size)) if index not in skipped]
            self._rows[labelled] = torch.arange(len(labelled))
        self.indices = (self._rows >= 0).nonzero()[:, 0]
        self._shards = [_map_shard(folder, manifest, name) for name in names]

    def __reduce__(self) -> tuple[type["SoftLabelStore"], tuple[Path, Manifest]]:
        # A worker that starts afresh maps the files itself: pickled tensors would be copied into shared memory.
        return SoftLabelStore, (self.folder, self.manifest)

    def crops(self, index: int, chosen: Tensor, image: Tensor | None = None) -> LabelledCrops:
        """Return some crops of one image.

        Args:
            index: The image, as in `images`.
            chosen: Numbers of its crops, int64.
            image: Its pixels, to be compared with those that were labelled.

        Raises:
            IndexError: the image has no labels.
            ValueError: the pixels are others.
        """
        row = int(self._rows[index])
        if row < 0:
            raise IndexError(f"{self.folder}: image {index} has no labels, it was skipped at the import")
        shard = self._shards[index // self._step]
        known = self.manifest["data"]["identity"] == "pixels"
        if image is not None and known and image_digest(image) != bytes(shard["digest"][row].tolist()).hex():
            raise ValueError(f"{self.folder}: image {index} is not the one that was labelled; {AGAIN}")
        labels = StoredLabels(shard["classes"][row, chosen], shard["probabilities"][row, chosen])
        probs = expand(labels, self.label_type, self.num_classes)
        return LabelledCrops(shard["coords"][row, chosen], shard["flip"][row, chosen], probs)


def _map_shard(folder: Path, manifest: Manifest, name: str) -> Tensors:
    """Map a shard into memory; Parquet cannot be mapped, so that a shard of format 1 gets a copy which can."""
    shard = folder / name
    if shard.suffix == ".parquet":
        digest: str = manifest["shards"][name]["sha256"]
        copy = folder / ".safetensors" / f"{shard.stem}-{digest[:16]}.safetensors"
        cached(copy, lambda: _read_parquet(shard, manifest["crops"]["per_image"]))
        shard = copy
    return load_file(shard)


def _read_parquet(shard: Path, num_crops: int) -> Tensors:
    """Return the columns of a shard of format 1."""
    from pyarrow.parquet import read_table

    table = read_table(shard)
    digests = [list(bytes.fromhex(digest)) for digest in table["digest"].to_pylist()]
    tensors = {
        "digest": torch.tensor(digests, dtype=torch.uint8),
        "classes": torch.empty(len(table), num_crops, 0, dtype=torch.int16),  # which `full` does not store
    }
    for name in {"coords", "flip", "classes", "probabilities"}.intersection(table.column_names):
        array = table[name].combine_chunks()
        array = getattr(array, "storage", array)
        while hasattr(array, "flatten"):
            array = array.flatten()
        values = torch.tensor(array.to_numpy(zero_copy_only=False))
        tensors[name] = values.reshape(len(table), num_crops, -1)
    return {**tensors, "flip": tensors["flip"][..., 0].contiguous()}

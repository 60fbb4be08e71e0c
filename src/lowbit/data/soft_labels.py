"""The soft-label store: a teacher's answers to N crops of every image, read from memory-mapped shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowbit.config.label_store import AGAIN, whole_manifest
from lowbit.data.crops import CropTransform
from lowbit.data.label_manifest import Images, check_images, image_digest
from lowbit.data.label_maps import mapped_rows
from lowbit.data.label_types import LabelType, StoredLabels, expand


class Answers(NamedTuple):
    """Crops of one image with their (N, C) probabilities."""

    coords: Tensor
    flip: Tensor
    probs: Tensor


class SoftLabelStore:
    """A complete store, memory-mapped.

    Attributes:
        folder: Where it lies.
        manifest: What it says of itself.
        label_type: What is stored of the teacher's probabilities.
        num_classes: C.
        num_crops: Stored crops per image.
        transform: From a crop to the input of the teacher.
        indices: The images that have labels, int64.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], cache_dir: Path | None = None) -> None:
        """Map the shards of a verified manifest; `open` is the way in.

        Raises:
            ValueError: a shard that is damaged.
        """
        self.folder, self.manifest = folder, manifest
        self.label_type = LabelType.parse(manifest["labels"]["type"])
        self.num_classes: int = manifest["labels"]["classes"]
        self.num_crops: int = manifest["crops"]["per_image"]
        self.transform = CropTransform.from_json(manifest["transform"])
        skipped = {index for shard in manifest["shards"].values() for index in shard["skipped"]}
        size: int = manifest["data"]["size"]
        self.indices = torch.tensor([index for index in range(size) if index not in skipped], dtype=torch.int64)
        self._place = torch.full((size,), -1, dtype=torch.int64)
        self._place[self.indices] = torch.arange(len(self.indices))
        self._rows = mapped_rows(folder, manifest, cache_dir or folder / ".arrow")

    @classmethod
    def open(
        cls,
        folder: Path,
        images: Images,
        *,
        names: Sequence[str] | None = None,
        label_type: str | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] = (),
        verify: bool = True,
        cache_dir: Path | None = None,
    ) -> "SoftLabelStore":
        """Verify and open a store.

        Args:
            folder: The store.
            images: The images to train on.
            names: Their names, for a store that knows images by name, as an imported one does.
            label_type: The type that the run asks for, if it does.
            num_classes: The classes of the run.
            class_names: Their names in the order of their labels; compared with those of the store, if both have any.
            verify: Whether to read every shard and compare checksums, not only sizes.
            cache_dir: Where copies of the shards go that can be mapped into memory; default: `.arrow` in the store.

        Raises:
            ValueError: no store, an unfinished or damaged one, or one of other images, labels or classes.
        """
        manifest = matching_manifest(
            folder,
            images,
            names=names,
            label_type=label_type,
            num_classes=num_classes,
            class_names=class_names,
            verify=verify,
        )
        return cls(folder, manifest, cache_dir)

    def row(self, index: int) -> Answers:
        """Return every crop of one image."""
        return self.crops(index, torch.arange(self.num_crops))

    def crops(self, index: int, chosen: Tensor, image: Tensor | None = None) -> Answers:
        """Return some crops of one image.

        Args:
            index: The image, as in `images`.
            chosen: Numbers of its crops, int64.
            image: Its pixels, to be compared with those that were labelled.

        Raises:
            IndexError: an image without labels.
            ValueError: the pixels are others.
        """
        place = int(self._place[index])
        if place < 0:
            raise IndexError(f"{self.folder}: image {index} has no labels, it was skipped at the import")
        row = self._rows[place]
        known = self.manifest["data"]["identity"]
        if image is not None and known == "pixels" and image_digest(image) != row["digest"][0].as_py():
            raise ValueError(f"{self.folder}: image {index} is not the one that was labelled; {AGAIN}")
        names = [name for name in ("coords", "flip", "classes", "probabilities") if name in row.column_names]
        kept = {name: _values(row[name]).reshape(self.num_crops, -1)[chosen] for name in names}
        classes = kept.get("classes", torch.empty(len(chosen), 0))
        probs = expand(StoredLabels(classes, kept["probabilities"]), self.label_type, self.num_classes)
        return Answers(kept["coords"], kept["flip"][:, 0], probs)


def matching_manifest(
    folder: Path,
    images: Images,
    *,
    names: Sequence[str] | None = None,
    label_type: str | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    verify: bool = True,
) -> dict[str, Any]:
    """Return the manifest of a store that fits; arguments and errors of `SoftLabelStore.open`, which maps it too."""
    manifest = whole_manifest(folder, checksums=verify)
    labels, again = manifest["labels"], f"run `{manifest['command']}` anew"
    if label_type is not None and labels["type"] != str(LabelType.parse(label_type)):
        raise ValueError(f"{folder} holds labels of type {labels['type']}, not {label_type}; ask for that or {again}")
    if num_classes is not None and labels["classes"] != num_classes:
        said = f"{folder} holds labels of {labels['classes']} classes, the data set has {num_classes}"
        raise ValueError(f"{said}: name its own store, or write one with `lowbit softlabels`")
    stored = labels.get("names", [])
    if stored and class_names and stored != list(class_names):
        place = next(index for index, pair in enumerate(zip(stored, class_names, strict=True)) if len(set(pair)) > 1)
        raise ValueError(
            f"{folder} holds labels of other classes than the data set, or in another order: class {place} is "
            f"{stored[place]} there, {class_names[place]} here; write another store with `lowbit softlabels`"
        )
    check_images(folder, manifest["data"], images, names)
    return manifest


def _values(column: Any) -> Tensor:
    """Return the flat values of an Arrow column; the numpy format of `datasets` takes 15 times as long."""
    array = column.combine_chunks()
    array = getattr(array, "storage", array)
    while hasattr(array, "flatten"):
        array = array.flatten()
    return torch.tensor(array.to_numpy(zero_copy_only=False))

"""The settings of a soft-label store, and the images that it belongs to."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lowbit.config.label_store import AGAIN, FORMAT, labelled_images
from lowbit.data.crops import CropRule, CropTransform
from lowbit.data.label_types import LabelType

# Images whose digests the manifest sums up; reading all of a large data set at every start would take hours.
PROBES = 1024


class Images(Protocol):
    """A tensor (N, C, H, W), or anything that gives (C, H, W) tensors by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


@dataclass(frozen=True)
class StoreSettings:
    """What a store is made of; everything but `images_per_shard`, `batch_size` and `command` decides its content.

    Attributes:
        data: Name of the data set.
        teacher: Id of the teacher, such as that of the teacher cache or a timm name with its revision.
        num_classes: Width of the teacher's head.
        transform: From a crop to the teacher's input.
        crops: Crops per image.
        label_type: `full`, `hard`, `smoothing`, `marginal_smoothing_kK` or `marginal_renorm_kK`.
        rule: How crops are drawn.
        seed: Seed of the crops; None for imported ones.
        description: The teacher in words.
        images_per_shard: Rows of a shard, the unit of resuming.
        batch_size: Crops per forward of the teacher.
        command: Shown where a store must be written again.
        names: Of the classes, in the order of the probabilities; none where they are numbers.
    """

    data: str
    teacher: str
    num_classes: int
    transform: CropTransform
    crops: int = 500
    label_type: str = "marginal_smoothing_k5"
    rule: CropRule = field(default_factory=CropRule)
    seed: int | None = 0
    description: str = ""
    images_per_shard: int = 1000
    batch_size: int = 250
    command: str = "lowbit softlabels"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("crops", "images_per_shard", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.num_classes < 2 or LabelType.parse(self.label_type).k >= self.num_classes:
            raise ValueError(f"label_type={self.label_type} keeps every one of {self.num_classes} classes: use full")

    def plan(self, size: int, probe: str, identity: str) -> dict[str, Any]:
        """Return the manifest of a store without shards."""
        labels = {"type": str(LabelType.parse(self.label_type)), "classes": self.num_classes}
        plan = {
            "format": FORMAT,
            "data": {"name": self.data, "size": size, "identity": identity, "probe": probe},
            "teacher": {"id": self.teacher, "description": self.description},
            "labels": labels | ({"names": self.names} if self.names else {}),
            "crops": {"per_image": self.crops, **asdict(self.rule), "seed": self.seed},
            "transform": asdict(self.transform),
            "images_per_shard": self.images_per_shard,
            "command": self.command,
            "shards": {},
        }
        parsed: dict[str, Any] = json.loads(json.dumps(plan))  # tuples to lists, as they will be read
        return parsed


def described(manifest: Mapping[str, Any]) -> str:
    """Return what a store holds, in words."""
    crops = f"{labelled_images(manifest)} images x {manifest['crops']['per_image']} crops"
    return f"{crops}, {manifest['labels']['type']}, by teacher {manifest['teacher']['id']}"


def image_digest(image: Tensor) -> str:
    """Return 16 hexadecimal digits that tell pixels, shape and type."""
    head = f"{image.dtype} {tuple(image.shape)} ".encode()
    data = image.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(head + data).hexdigest()[:16]


def pixel_digest(images: Images) -> Callable[[int], str]:
    """Return the function from an index to the digest of that image."""
    return lambda index: image_digest(images[index])


def name_digest(names: Sequence[str]) -> Callable[[int], str]:
    """Return the function from an index to the digest of that file name."""
    return lambda index: hashlib.sha256(names[index].encode()).hexdigest()[:16]


def probe(digest: Callable[[int], str], size: int) -> str:
    """Return one digest of up to `PROBES` evenly spaced images."""
    count = min(size, PROBES)
    digests = [digest(place * size // count) for place in range(count)]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def check_images(folder: Path, data: Mapping[str, Any], images: Images, names: Sequence[str] | None) -> None:
    """Raise ValueError unless the images are those that were labelled."""
    said = f"{folder} holds labels for the {data['size']} training images of {data['name']}"
    if len(images) != data["size"]:
        raise ValueError(f"{said}, not for {len(images)} images: name its folder or {AGAIN}")
    if data["identity"] == "names" and names is None:
        raise ValueError(f"{said} and knows them by file name: this data set has no file names; {AGAIN}")
    known = pixel_digest(images) if data["identity"] == "pixels" or names is None else name_digest(names)
    if probe(known, data["size"]) == data["probe"]:
        return
    if data["identity"] == "names" and names is not None:
        raise ValueError(
            f"{said} and knows them by file name, the last components of the path: these have others, such as "
            f"{names[0]}; give the folder the name that it had at the import, or import the labels again"
        )
    raise ValueError(
        f"{said}, which are other images than these (another data set, order, split or normalisation): "
        f"name its folder or {AGAIN}"
    )

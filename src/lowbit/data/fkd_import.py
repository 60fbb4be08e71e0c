"""Import of the soft labels that FKD published: one torch file per image, `[coords, flip, output]`.

Source: FKD (arXiv 2112.01528) and variation-aware quantization (arXiv 2307.00331), published code and label files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.data.crops import Crops, CropTransform
from lowbit.data.label_manifest import Images, StoreSettings, name_digest, pixel_digest, probe
from lowbit.data.label_types import LabelKind, LabelType, StoredLabels
from lowbit.data.label_writing import Advance, LabelledImage, write_shards

# The published labels of ImageNet-1K: 500 crops, marginal smoothing with 5 classes; the seed is not known.
PUBLISHED = StoreSettings(
    data="imagenet",
    teacher="tf_efficientnet_l2_ns_475",
    num_classes=1000,
    transform=CropTransform(475, "bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    seed=None,
    description="Noisy Student EfficientNet-L2 of timm; labels published by FKD",
)
# Path components of an image that name its label file, e.g. imagenet/train/n01440764/n01440764_10026.
COMPONENTS = 4
NAMED = 10
# The largest whole number up to which float16 holds them all.
LARGEST_HALF = 2048
# What half precision may add to a sum of probabilities or to a coordinate.
SLACK = 1e-2


@dataclass(frozen=True)
class FkdImport:
    """What an import did: the manifest, and the problem of every image that it left out."""

    manifest: dict[str, Any]
    problems: dict[str, str]


def fkd_name(image_path: str | Path) -> str:
    """Return the last four path components of an image, by which its label file is found.

    Raises:
        ValueError: the path is shorter.
    """
    path = Path(image_path)
    parts = [part for part in path.parts if part != path.anchor]
    if len(parts) < COMPONENTS:
        raise ValueError(f"{path}: needs {COMPONENTS} path components as in imagenet/train/n01440764/n01440764_1.JPEG")
    return "/".join(parts[-COMPONENTS:])


def fkd_path(folder: Path, name: str) -> Path:
    """Return where the label file of an image lies."""
    return (folder / name).with_suffix(".tar")


def read_fkd(path: Path, label_type: LabelType, num_classes: int, count: int) -> tuple[Crops, StoredLabels]:
    """Read and check one file; half-precision files become float32.

    Args:
        path: The file.
        label_type: What it should hold.
        num_classes: Classes of the teacher.
        count: Crops that it should hold.

    Raises:
        ValueError: missing, or not such a file.
    """
    if not path.exists():
        raise ValueError("is missing")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a truncated or foreign file fails in many ways
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot be read ({first[:120]})") from error
    if not (isinstance(content, list | tuple) and len(content) == 3 and all(map(torch.is_tensor, content))):
        raise ValueError("holds no list of three tensors [coords, flip, output]")
    coords, flip, output = content
    if coords.shape != (count, 4) or flip.shape != (count,):
        shapes = f"coords {tuple(coords.shape)} and flip {tuple(flip.shape)}"
        raise ValueError(f"has {shapes}, expected {count} crops: ({count}, 4) and ({count},)")
    crops = Crops(coords.float(), flip.bool())
    inside = (crops.coords >= 0) & (crops.coords <= 1 + SLACK)
    if not bool(inside.all()) or not bool((crops.coords[:, 2:] > 0).all()):
        raise ValueError("has coords that are not shares of an image in 0..1")
    return crops, _labels(output, count, label_type, num_classes)


def _labels(output: Tensor, count: int, label_type: LabelType, num_classes: int) -> StoredLabels:
    shapes: dict[LabelKind, list[tuple[int, ...]]] = {
        LabelKind.full: [(count, num_classes)],
        LabelKind.hard: [(count,), (count, 1)],
        LabelKind.smoothing: [(count, 2)],
    }
    wanted = shapes.get(label_type.kind, [(count, 2, label_type.k)])
    if tuple(output.shape) not in wanted:
        raise ValueError(f"has an output of shape {tuple(output.shape)}, labels of type {label_type} have {wanted[0]}")
    if label_type.kind is LabelKind.full:
        labels = StoredLabels(torch.empty(count, 0, dtype=torch.int64), output.float())
    elif label_type.kind is LabelKind.hard:
        labels = StoredLabels(_classes(output.reshape(count, 1), num_classes), torch.ones(count, 1))
    else:
        pairs = output.reshape(count, 2, label_type.k)
        labels = StoredLabels(_classes(pairs[:, 0], num_classes), pairs[:, 1].float())
    probabilities = labels.probabilities
    total = probabilities.sum(1)
    if not bool((probabilities >= 0).all() & (total > 0).all() & (total <= 1 + SLACK).all()):
        raise ValueError("has probabilities that are not in 0..1 or sum to more than 1")
    return labels


def _classes(values: Tensor, num_classes: int) -> Tensor:
    if values.dtype == torch.float16 and num_classes > LARGEST_HALF + 1:
        raise ValueError(f"is of float16, which cannot hold the indices of {num_classes} classes")
    classes = values.long()
    if not torch.equal(classes.to(values.dtype), values) or not bool(((classes >= 0) & (classes < num_classes)).all()):
        raise ValueError(f"has class indices that are not whole numbers in 0..{num_classes - 1}")
    ordered = classes.sort(1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise ValueError("names one class twice for one crop")
    return classes


def import_fkd(
    folder: Path,
    image_paths: Sequence[str | Path],
    out: Path,
    settings: StoreSettings = PUBLISHED,
    *,
    images: Images | None = None,
    skip: bool = False,
    progress: bool = False,
) -> FkdImport:
    """Write a store from FKD files `<folder>/<last 4 path components of the image>.tar`; the same call resumes.

    Args:
        folder: The published files.
        image_paths: Every training image, in the order of training.
        out: The store.
        settings: What the files hold; `replace(PUBLISHED, label_type=...)` for the other published types.
        images: The pixels; with them the store knows images by content, otherwise by their last 4 path components.
        skip: Whether images with a missing or damaged file are left out instead of ending in an error.
        progress: Whether to show a bar.

    Raises:
        ValueError: files are missing or damaged and `skip` is off; shards without such files stay for the next call.
    """
    label_type, names = LabelType.parse(settings.label_type), [fkd_name(path) for path in image_paths]
    if images is not None and len(images) != len(names):
        raise ValueError(f"{len(names)} image paths for {len(images)} images")
    digest = name_digest(names) if images is None else pixel_digest(images)
    problems: dict[str, str] = {}

    def rows(indices: range, advance: Advance) -> list[LabelledImage] | None:
        found = []
        for index in indices:
            path = fkd_path(folder, names[index])
            try:
                crops, labels = read_fkd(path, label_type, settings.num_classes, settings.crops)
            except ValueError as error:
                problems[str(path)] = str(error)
            else:
                found.append(LabelledImage(index, digest(index), crops, labels))
            advance(1)
        return found if skip or len(found) == len(indices) else None

    plan = settings.plan(len(names), probe(digest, len(names)), "names" if images is None else "pixels")
    manifest = write_shards(out, plan, rows, progress)
    if problems and not (skip and len(problems) < len(names)):
        shown = "\n".join(f"  - {path} {problem}" for path, problem in list(problems.items())[:NAMED])
        more = f"\n  - and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise ValueError(
            f"{len(problems)} of {len(names)} label files are missing or damaged; fetch them and import again, "
            f"or skip these images (--skip):\n{shown}{more}"
        )
    return FkdImport(manifest, problems)

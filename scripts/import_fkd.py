"""Import the soft labels that FKD published, one torch file `[coords, flip, output]` per image, as a store of lowbit.

    python scripts/import_fkd.py labels/fkd --fkd FKD_mk5 --images imagenet/train [--skip]

The label file of an image is `<last 4 path components of the image>.tar` below the folder of `--fkd`. The same command
resumes.

Source: FKD (arXiv 2112.01528) and variation-aware quantization (arXiv 2307.00331), published code and label files.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from lowbit.soft_labels.crops import Crops, CropTransform
from lowbit.soft_labels.files import LabelKind, LabelType, Manifest, describe_written
from lowbit.soft_labels.store import StoredLabels, fkd_name, name_digest, probe_names
from lowbit.soft_labels.writer import Advance, LabelledImage, StoreSettings, write_shards

# The published labels of ImageNet-1K: 500 crops, marginal smoothing with 5 classes; the seed is not known.
PUBLISHED = StoreSettings(
    data="imagenet",
    teacher="tf_efficientnet_l2_ns_475",
    num_classes=1000,
    transform=CropTransform(475, "bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    seed=None,
    description="Noisy Student EfficientNet-L2 of timm; labels published by FKD",
)
SHOWN = 10
LARGEST_HALF = 2048  # the largest whole number up to which float16 holds them all
SLACK = 1e-2  # what half precision may add to a sum of probabilities or to a coordinate


def fkd_path(folder: Path, name: str) -> Path:
    """Return the path of an image's label file."""
    return (folder / name).with_suffix(".tar")


def read_fkd(path: Path, label_type: LabelType, num_classes: int, count: int) -> tuple[Crops, StoredLabels]:
    """Read and check one file; half-precision files become float32.

    Args:
        path: The file.
        label_type: The type of its labels.
        num_classes: Classes of the teacher.
        count: Number of its crops.

    Raises:
        ValueError: the file is missing, or has other content.
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
    skip: bool = False,
    progress: bool = False,
) -> tuple[Manifest, list[str]]:
    """Write a store that knows images by the last 4 components of their paths; the same call resumes.

    Args:
        folder: The published files.
        image_paths: Every training image, in the order of training.
        out: The store.
        settings: The content of the files; `replace(PUBLISHED, label_type=...)` for the other published types.
        skip: Whether to leave out images with a missing or damaged file instead of raising an error.
        progress: Whether to show a bar.

    Returns:
        The manifest, and one line on every image that was left out.

    Raises:
        ValueError: files are missing or damaged and `skip` is off; shards without such files stay for the next call.
    """
    label_type, names = LabelType.parse(settings.label_type), [fkd_name(path) for path in image_paths]
    problems: list[str] = []

    def read(indices: range, advance: Advance) -> list[LabelledImage] | None:
        found = []
        for index in indices:
            path = fkd_path(folder, names[index])
            try:
                crops, labels = read_fkd(path, label_type, settings.num_classes, settings.crops)
            except ValueError as error:
                problems.append(f"{path} {error}")
            else:
                found.append(LabelledImage(index, name_digest(names[index]), crops, labels))
            advance(1)
        return found if skip or len(found) == len(indices) else None

    plan = settings.plan(len(names), probe_names(names.__getitem__, len(names)), "names")
    manifest = write_shards(out, plan, read, progress)
    if problems and not (skip and len(problems) < len(names)):
        raise ValueError(
            f"{len(problems)} of {len(names)} label files are missing or damaged; fetch them and import again, "
            f"or skip these images (--skip):\n{_list(problems)}"
        )
    return manifest, problems


def _list(problems: Sequence[str]) -> str:
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "\n".join(f"  - {line}" for line in [*problems[:SHOWN], *more])


def main(argv: Sequence[str] | None = None) -> int:
    """Import the labels and print what the store holds; return the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description="Import the soft labels that FKD published.")
    parser.add_argument("out", type=Path, help="folder of the store; one of the same settings is resumed")
    parser.add_argument("--fkd", type=Path, required=True, help="folder of the published label files")
    parser.add_argument("--images", type=Path, required=True, help="the training images, by class folder")
    parser.add_argument("--skip", action="store_true", help="leave out images without an intact file")
    parser.add_argument(
        "--label-type", default=PUBLISHED.label_type, help=f"type of the files ({PUBLISHED.label_type})"
    )
    parser.add_argument("--crops", type=int, default=PUBLISHED.crops, help=f"crops per image ({PUBLISHED.crops})")
    parser.add_argument("--images-per-shard", type=int, default=1000, help="rows of a file (1000)")
    args = parser.parse_args(words)
    for key, folder in (("--fkd", args.fkd), ("--images", args.images)):
        if not folder.is_dir():
            parser.error(f"{key} {folder}: no such folder")
    try:
        settings = replace(
            PUBLISHED,
            crops=args.crops,
            label_type=args.label_type,
            images_per_shard=args.images_per_shard,
            command=shlex.join(["python", "scripts/import_fkd.py", *words]),
        )
        # The order of torchvision, which training has too.
        paths = [path for path, _ in make_dataset(str(args.images.absolute()), extensions=IMG_EXTENSIONS)]
        manifest, skipped = import_fkd(args.fkd, paths, args.out, settings, skip=args.skip, progress=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if skipped:
        print(f"skipped {len(skipped)} images:\n{_list(skipped)}")
    print(describe_written(args.out, manifest))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Data sets of image files: ImageNet and other folders of classes, CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lowbit.config.cifar_files import read_batch
from lowbit.config.data_files import limit_rows
from lowbit.config.image_files import (
    IMAGE_FILES,
    Batches,
    Folders,
    empty_classes,
    find_images,
    image_classes,
    own_size,
    train_images,
)
from lowbit.config.image_folders import Listing
from lowbit.data.bad_rows import bad_rows_problem, check_rows, list_bad_rows
from lowbit.data.cache import Tensors, cached, content_key
from lowbit.data.image_source import DECODER, FileImages, ImageSource, PixelImages, UnreadableImageError
from lowbit.data.image_split import DecodedSplit
from lowbit.data.image_transforms import evaluation_transform, training_transform, with_settings
from lowbit.data.sampling import Stream, generator_for
from lowbit.data.splits import Splits
from lowbit.hub import OutOfReachError
from lowbit.settings.data import DataConfig, DataInfo, DataKind, ImageInput, OnBadRow

Split = Literal["train", "val"]

# Mean and deviation of the pixels: of ImageNet as in timm and torchvision; of CIFAR as usual, from its training images.
_PIXELS = {
    DataKind.image_folder: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    DataKind.cifar10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    DataKind.cifar100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_SIZE, _CROP_PCT = 224, 0.875
# Sets up to this size are decoded once, which takes up to some twenty seconds; ImageNet has five hundred times as much.
CHECKED_BYTES = 2**28
CHECK_SECONDS = 30  # for `lowbit check`


def image_info(config: DataConfig, image: ImageInput | None = None) -> DataInfo:
    """Describe a data set; no image is read.

    Args:
        config: The data group.
        image: What a pretrained model wants of its input; None: the size and the statistics are those of the data.

    Raises:
        ValueError: files are missing.
    """
    wanted = with_settings(image or _own_input(config), config.image)
    classes = image_classes(config)
    return DataInfo(
        name=config.name,
        modality="image",
        task="classification",
        num_labels=len(classes),
        metric="accuracy",
        train_size=limit_rows("train_size", config.train_size, train_images(config), config),
        image_size=wanted.size,
        channels=3,
        has_test=False,
        image=wanted,
        labels=classes,
    )


def image_splits(config: DataConfig, info: DataInfo, seed: int, cache: Path | None) -> Splits:
    """List or read the images and set up their transforms.

    A smaller `train_size` or `eval_size` takes evenly spaced images: the files lie class by class.

    Args:
        config: The data group.
        info: Of the same config.
        seed: Of the augmentation.
        cache: Folder that remembers which sets were found readable; None checks anew.

    Raises:
        ValueError: files are missing; images of a small set cannot be read.
    """
    assert info.image is not None
    whole = evaluation_transform(info.image)
    native = own_size(config) == info.image.size
    augment = training_transform(info.image, config.image, own_size=native) if config.augment else None
    found = find_images(config)
    bad: Set[int] = frozenset()
    if isinstance(found, Folders):
        limit_rows("eval_size", config.eval_size, len(found.val.files), config)  # before images are decoded
        bad = _check_readable(config, found, cache)
    skip = config.on_bad_row is OnBadRow.skip
    # Known bad images of the training stay in their place: steps and soft labels count them.
    train, val = _images(config, found, "train"), _images(config, found, "val", bad)
    return Splits(
        train=DecodedSplit(*train, whole, augment, seed, skip=skip),
        validation=DecodedSplit(*val, whole, skip=skip),
        test=None,
    )


def _own_input(config: DataConfig) -> ImageInput:
    mean, std = _PIXELS[config.kind]
    own = own_size(config)
    size = config.image.size or own or _SIZE
    return ImageInput(size, mean, std, crop_pct=1.0 if size == own else _CROP_PCT)


def unusable_images(config: DataConfig) -> Iterator[str]:
    """Yield what keeps image files from being used; look at as many as some seconds allow, picked at random.

    Raises:
        OutOfReachError: time ran out before all were looked at.
        ValueError: settings of the augmentation or of the rows that do not work.
    """
    if config.kind not in IMAGE_FILES:
        return
    training_transform(_own_input(config), config.image, own_size=False)
    found = find_images(config)
    if isinstance(found, Batches):
        rows = sum(len(read_batch(file, config.kind)[1]) for file in found.val)
        limit_rows("eval_size", config.eval_size, rows, config)
        return
    limit_rows("eval_size", config.eval_size, len(found.val.files), config)
    if config.on_bad_row is OnBadRow.skip:
        return
    train, val = (FileImages(listing.folder, listing.files) for listing in (found.train, found.val))
    count = len(train) + len(val)
    bad, seen, end = [], 0, time.monotonic() + CHECK_SECONDS
    for place in torch.randperm(count, generator=generator_for(0, Stream.split)).tolist():
        if time.monotonic() > end:
            break
        problem = _problem(train, place) if place < len(train) else _problem(val, place - len(train))
        bad += [] if problem is None else [problem]
        seen += 1
    if bad:
        yield bad_rows_problem(sorted(bad))
    if seen < count:
        raise OutOfReachError(f"{seen} of {count} images were looked at in {CHECK_SECONDS} s")


def _images(
    config: DataConfig, found: Folders | Batches, split: Split, left_out: Set[int] = frozenset()
) -> tuple[ImageSource, Tensor]:
    """Return the images of a split and their labels, without some rows of its files.

    Raises:
        ValueError: no row is left.
    """
    key, limit = ("train_size", config.train_size) if split == "train" else ("eval_size", config.eval_size)
    if isinstance(found, Folders):
        listing: Listing = getattr(found, split)
        classes = torch.tensor([found.train.classes.index(name) for name in listing.classes])
        labels = classes.repeat_interleave(torch.tensor(listing.counts))
        rows = [row for row in _spaced(limit_rows(key, limit, len(labels), config), len(labels)) if row not in left_out]
        if not rows:
            raise ValueError(f"{listing.folder}: none of the images that {key} takes can be read")
        return FileImages(listing.folder, [listing.files[row] for row in rows]), labels[rows]
    batches = [read_batch(file, config.kind) for file in getattr(found, split)]
    pixels = torch.cat([torch.from_numpy(images) for images, _ in batches])
    labels = torch.tensor([label for _, batch in batches for label in batch])
    rows = _spaced(limit_rows(key, limit, len(labels), config), len(labels))
    return PixelImages(pixels if len(rows) == len(pixels) else pixels[rows]), labels[rows]


def _spaced(count: int, size: int) -> list[int]:
    return [place * size // count for place in range(count)]


def _check_readable(config: DataConfig, found: Folders, cache: Path | None) -> Set[int]:
    """Decode every image of a small set, once; tell the bad ones, or stop for them; return the bad rows of `val`.

    Raises:
        ValueError: there are bad ones, and `on_bad_row` is `error`; or there is no good one to train on.
    """
    sources = {split: FileImages(listing.folder, listing.files) for split, listing in vars(found).items()}

    def still_bad(suspects: Tensors) -> tuple[list[str], Set[int]]:
        """Return what is bad, in words, and the bad rows of `val`: some of the suspects may be mended by now."""
        train, val = (_problems(images, suspects[split].tolist()) for split, images in sources.items())
        bad = [*empty_classes(config, found), *train.values(), *val.values()]
        check_rows(config, bad, len(sources["train"]) - len(train), "no training image can be used")
        return bad, val.keys()

    def look() -> Tensors:
        rows = {
            split: torch.tensor([*_problems(images, range(len(images)))], dtype=torch.int64)
            for split, images in sources.items()
        }
        still_bad(rows)  # stops before anything is written
        return rows

    if found.train.size + found.val.size <= CHECKED_BYTES:
        name = content_key(found.train.digest, found.val.digest, *DECODER)
        suspects = cached(None if cache is None else cache / "images" / f"{name}.safetensors", look)
    else:
        suspects = dict.fromkeys(sources, torch.empty(0, dtype=torch.int64))
    bad, val = still_bad(suspects)
    if bad:
        warnings.warn(f"data={config.name}: {list_bad_rows(bad)}", stacklevel=2)
    return val


def _problems(images: FileImages, rows: Iterable[int]) -> dict[int, str]:
    """Return which of the rows cannot be decoded, and why."""
    found = {row: _problem(images, row) for row in rows}
    return {row: problem for row, problem in found.items() if problem is not None}


def _problem(images: FileImages, row: int) -> str | None:
    try:
        images.pil(row)
    except UnreadableImageError as error:
        return str(error)
    return None

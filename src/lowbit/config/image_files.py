"""Data sets of image files: where they lie, how many images and classes, a hash of them (imports no torch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lowbit.config.cifar_files import CIFAR, SIDE, batch_files, count_rows
from lowbit.config.data_files import file_digest, joined_digest, limit_rows
from lowbit.config.image_folders import Listing, first_folder, list_images
from lowbit.settings.data import DataConfig, DataKind, DataSource, ImageConfig, OnBadRow

IMAGE_FILES = (DataKind.image_folder, DataKind.cifar10, DataKind.cifar100)
_EVALUATION = ("val", "validation", "test")
_NAMED = 5


@dataclass(frozen=True)
class Folders:
    """Both splits as folders of class folders; labels count by the classes of `train`."""

    train: Listing
    val: Listing


@dataclass(frozen=True)
class Batches:
    """Both splits as the official files of CIFAR; images are scored on the test files, as published."""

    train: list[Path]
    val: list[Path]


def find_images(config: DataConfig) -> Folders | Batches:
    """Return the files of a data set.

    Raises:
        ValueError: saying which files to put where.
    """
    if config.dir is None:
        raise ValueError(f"data.dir: no value; {_remedy(config, 'IMAGE_DIR')}, with data.dir=IMAGE_DIR")
    root = Path(config.dir).expanduser()
    if config.kind in CIFAR:
        files = batch_files(root, config.kind)
        if files is not None:
            return Batches(files["train"], files["test"])
    train, val = first_folder(root, ("train",)), first_folder(root, _EVALUATION)
    if train is None or val is None:
        missing = "no such folder" if not root.is_dir() else f"no folder {'train' if train is None else 'val'} in it"
        raise ValueError(f"data.dir={config.dir}: {missing}; {_remedy(config, config.dir)}")
    return Folders(list_images(train), list_images(val))


def own_size(config: DataConfig) -> int | None:
    """Return the height and width of every image of the data set, None if they differ."""
    return SIDE if config.kind in CIFAR else None


def train_images(config: DataConfig) -> int:
    """Return how many training images the files hold; raise ValueError where they are missing."""
    found = find_images(config)
    return len(found.train.files) if isinstance(found, Folders) else count_rows(found.train, config.kind)


def image_classes(config: DataConfig) -> tuple[str, ...]:
    """Return the names of the classes in the order of their labels; raise ValueError where files are missing."""
    found = find_images(config)
    return found.train.classes if isinstance(found, Folders) else CIFAR[config.kind].names


def image_fingerprint(config: DataConfig) -> str:
    """Return a hash of the official files, or of the names and sizes of files in folders.

    Raises:
        ValueError: files are missing.
    """
    found = find_images(config)
    if isinstance(found, Folders):
        return joined_digest([found.train.digest, found.val.digest])
    return joined_digest(map(file_digest, (*found.train, *found.val)))


def empty_classes(config: DataConfig, found: Folders) -> list[str]:
    """Return the class folders without an image, and the classes that the evaluation lacks."""
    empty = [
        f"{listing.folder / name}: holds no image" for listing in (found.train, found.val) for name in listing.empty
    ]
    lacking = sorted(set(found.train.classes) - set(found.val.classes))
    return [*empty, *(f"{found.val.folder / name}: no such folder" for name in lacking)]


def image_problems(config: DataConfig) -> Iterator[str]:
    """Yield what is wrong with the settings of the images, and what is missing of the files."""
    yield from _setting_problems(config.image)
    if config.source is DataSource.hub:
        yield f"data.source=hub: data={config.name} is read from files only; {_remedy(config, 'IMAGE_DIR')}"
        return
    try:
        found = find_images(config)
        rows = train_images(config)
    except (ValueError, OSError) as error:
        yield str(error)
        return
    if isinstance(found, Folders):
        yield from _folder_problems(config, found)
    try:
        if rows:
            limit_rows("train_size", config.train_size, rows, config)
    except ValueError as error:
        yield str(error)


def _folder_problems(config: DataConfig, found: Folders) -> Iterator[str]:
    classes = len(found.train.classes)
    if not found.train.files or not found.val.files:
        none = found.val if found.train.files else found.train
        yield f"{none.folder}: no images in folders of classes; {_remedy(config, config.dir or 'IMAGE_DIR')}"
        return
    if config.kind in CIFAR and classes != CIFAR[config.kind].classes:
        yield f"{found.train.folder}: {classes} class folders, data={config.name} has {CIFAR[config.kind].classes}"
    elif classes < 2:
        yield f"{found.train.folder}: {classes} class folder; a classifier needs at least 2"
    unknown = sorted(set(found.val.classes) - set(found.train.classes))
    if unknown:
        yield f"{found.val.folder}: {_first(unknown)} not among the classes of {found.train.folder}"
    empty = empty_classes(config, found)
    if empty and config.on_bad_row is OnBadRow.error:
        yield (
            f"{_first(empty)} ({len(empty)} in all). Put images there, delete the class in both splits, or set "
            "data.on_bad_row=skip"
        )


def _setting_problems(image: ImageConfig) -> Iterator[str]:
    if len(image.scale) != 2 or image.scale[0] > image.scale[1]:
        yield f"data.image.scale={image.scale}: needs the lowest and the highest share, for example [0.08,1.0]"
    if image.randaugment is not None and not image.randaugment.startswith("rand-"):
        yield f"data.image.randaugment={image.randaugment}: needs a policy of timm, for example rand-m9-mstd0.5-inc1"


def _first(names: list[str]) -> str:
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*names[:_NAMED], *more])


def _remedy(config: DataConfig, root: str) -> str:
    below = partial(Path, root)
    folders = f"put the images at {below('train', 'CLASS', 'NAME.JPEG')} and {below('val', 'CLASS', 'NAME.JPEG')}"
    if config.kind in CIFAR:
        about = CIFAR[config.kind]
        return f"put {', '.join((*about.train, *about.test))} into {below(about.folder)}, or {folders}"
    return folders

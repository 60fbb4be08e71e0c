"""From `data.soft_labels` to a training split: stored crops in place of whole images, if the store fits the data."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lowbit.config.label_store import labelled_images, whole_manifest
from lowbit.config.soft_labels import store_folder
from lowbit.data.crops import CropTransform
from lowbit.data.image_split import DecodedSplit
from lowbit.data.info import DataInfo
from lowbit.data.label_manifest import Images
from lowbit.data.multicrop import MultiCropSplit
from lowbit.data.soft_labels import SoftLabelStore, matching_manifest
from lowbit.data.splits import ImageSplit, Splits
from lowbit.settings.data import DataConfig


def labelled_info(config: DataConfig, info: DataInfo) -> DataInfo:
    """Return the facts of a data set whose training rows are the images of its store, if it names one."""
    folder = store_folder(config)
    if folder is None:
        return info
    return replace(info, train_size=labelled_images(whole_manifest(folder, checksums=False)))


def training_images(config: DataConfig, splits: Splits) -> Images:
    """Return the training images, in the order of training; those of files are decoded when they are asked for.

    Raises:
        ValueError: the data set is no set of images.
    """
    train = splits.train
    if isinstance(train, ImageSplit | DecodedSplit):
        return train.images
    raise ValueError(f"data={config.name} holds no images: soft labels are of crops; choose data=digits or imagenet")


def crop_transform(info: DataInfo, interpolation: str = "bilinear") -> CropTransform:
    """Return the transform from a crop to the input of the run's model; published: bilinear."""
    assert info.image_size is not None
    if info.image is None:  # tensors that are normalised already
        return CropTransform(info.image_size, interpolation)
    return CropTransform(info.image.size, interpolation, info.image.mean, info.image.std)


def fitting_manifest(config: DataConfig, info: DataInfo, splits: Splits, checksums: bool) -> dict[str, Any]:
    """Return the manifest of the config's store if it was written for these training images.

    Args:
        config: The data group, with `soft_labels`.
        info: Its description.
        splits: Its rows, whole images.
        checksums: Whether to read every shard and compare its SHA-256, not only its size.

    Raises:
        ValueError: a store that is missing, damaged, or of other images, classes or crop sizes.
    """
    folder = store_folder(config)
    assert folder is not None
    images = training_images(config, splits)
    manifest = matching_manifest(
        folder,
        images,
        names=_names(splits),
        num_classes=info.num_labels,
        class_names=info.labels,
        verify=checksums,
    )
    size = manifest["transform"]["size"]
    if info.image is None and size != info.image_size:
        raise ValueError(
            f"{folder} holds labels of crops of {size} pixels, data={config.name} has images of {info.image_size}: "
            "write another with `lowbit softlabels`"
        )
    return manifest


def with_stored_crops(config: DataConfig, info: DataInfo, seed: int, load: Callable[[], Splits]) -> Splits:
    """Load the rows; with a store the training split is its crops.

    The checksums of the shards are left to `fitting_manifest`, which a run calls once before it writes anything. Those
    of the copies that are trained on are compared here, once per process.
    """
    folder, splits = store_folder(config), load()
    if folder is None:
        return splits
    images = training_images(config, splits)
    store = SoftLabelStore.open(
        folder, images, names=_names(splits), num_classes=info.num_labels, class_names=info.labels, verify=False
    )
    # A teacher of the student's size saw these very pixels; one of another size labelled the same part of the image.
    same = store.transform.size == info.image_size
    crops = MultiCropSplit(
        images,
        splits.train.labels,
        store,
        batch_size=config.batch_size,
        num_crops=config.num_crops,
        seed=seed,
        transform=crop_transform(info, store.transform.interpolation if same else "bilinear"),
    )
    return replace(splits, train=crops)


def _names(splits: Splits) -> Sequence[str] | None:
    return splits.train.images.names if isinstance(splits.train, DecodedSplit) else None

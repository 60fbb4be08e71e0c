"""From `data.soft_labels` to a training split: stored crops in place of whole images, if the store fits the data."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from lowbit.config.label_store import labelled_images, whole_manifest
from lowbit.config.schema import DataConfig
from lowbit.config.soft_labels import store_folder
from lowbit.data.info import DataInfo
from lowbit.data.multicrop import MultiCropSplit
from lowbit.data.soft_labels import SoftLabelStore, matching_manifest
from lowbit.data.splits import ImageSplit, Splits


def labelled_info(config: DataConfig, info: DataInfo) -> DataInfo:
    """Return the facts of a data set whose training rows are the images of its store, if it names one."""
    folder = store_folder(config)
    if folder is None:
        return info
    return replace(info, train_size=labelled_images(whole_manifest(folder, checksums=False)))


def training_images(config: DataConfig, splits: Splits) -> Tensor:
    """Return the training images, in the order of training.

    Raises:
        ValueError: the data set is no set of images.
    """
    train = splits.train
    if isinstance(train, ImageSplit):
        return train.images
    raise ValueError(f"data={config.name} holds no images: soft labels are of crops; choose data=digits")


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
    manifest = matching_manifest(folder, images, num_classes=info.num_labels, verify=checksums)
    size = manifest["transform"]["size"]
    if size != info.image_size:
        raise ValueError(
            f"{folder} holds labels of crops of {size} pixels, data={config.name} has images of {info.image_size}: "
            "write another with `lowbit softlabels`"
        )
    return manifest


def with_stored_crops(config: DataConfig, info: DataInfo, seed: int, load: Callable[[], Splits]) -> Splits:
    """Load the rows; with a store the training split is its crops.

    Checksums are left to `fitting_manifest`, which a run calls once before it writes anything: hashing a large store
    takes minutes, and every resumed process and every stage would repeat it here.
    """
    folder, splits = store_folder(config), load()
    if folder is None:
        return splits
    images = training_images(config, splits)
    store = SoftLabelStore.open(folder, images, num_classes=info.num_labels, verify=False)
    crops = MultiCropSplit(
        images, splits.train.labels, store, batch_size=config.batch_size, num_crops=config.num_crops, seed=seed
    )
    return replace(splits, train=crops)

"""Training on a soft-label store: several stored crops of each image per step, with the teacher's probabilities."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lowbit.data.datamodule import StepDataModule
from lowbit.data.image_split import DecodedSplit
from lowbit.data.sampling import generator_for
from lowbit.data.shares import Share
from lowbit.data.splits import Batch, ImageSplit, Split, Splits
from lowbit.settings.data import DataConfig, DataInfo
from lowbit.soft_labels.crops import CHOSEN, CropTransform
from lowbit.soft_labels.files import complete_manifest, count_images, store_folder
from lowbit.soft_labels.store import Images, SoftLabelStore, matching_manifest

_WHOLE = torch.tensor([0.0, 0.0, 1.0, 1.0]), False  # the crop that is the image


class MultiCropSplit(Split):
    """Several stored crops of each image per step, and the teacher's probabilities for them as `soft_labels`.

    A batch of ceil(b / m) images becomes b crops: m of each image, and the remainder of the last one. Which crops is a
    pure function of (seed, step). The last batch of an epoch may have fewer images and then fewer crops. Rows without a
    step are whole images without soft labels.

    Source: `ImageFolder_FKD` of FKD (arXiv 2112.01528), published code.
    """

    def __init__(
        self,
        images: Images,
        labels: Tensor,
        store: SoftLabelStore,
        transform: CropTransform,
        *,
        batch_size: int,
        num_crops: int,
        seed: int,
    ) -> None:
        """Keep the settings.

        Raises:
            ValueError: more crops per image than the store or a batch holds.
        """
        most = min(store.num_crops, batch_size)
        if not 1 <= num_crops <= most:
            raise ValueError(
                f"num_crops={num_crops}: {store.folder} holds {store.num_crops} crops per image and a batch "
                f"{batch_size}; choose 1..{most}"
            )
        super().__init__(labels[store.indices])
        self.images, self.store, self.transform = images, store, transform
        self.batch_size, self.num_crops, self.seed = batch_size, num_crops, seed
        self.slow = not isinstance(images, Tensor)

    def _share(self, rows: Tensor, step: int, share: Share) -> Batch:
        """Decode the images of the share alone; their crops are those of the whole batch."""
        part = share.rows(len(rows))
        own = self._build(rows, step, range(*part.indices(len(rows))))
        crops = sum(self._crops_at(place) for place in range(len(rows)))
        return share.weighted(own, len(own["pixel_values"]), crops, len(rows))

    def _crops_at(self, place: int) -> int:
        return min(self.num_crops, self.batch_size - place * self.num_crops)

    def _batch(self, rows: Tensor, step: int | None) -> Batch:
        return self._build(rows, step, range(len(rows)))

    def _build(self, rows: Tensor, step: int | None, wanted: range) -> Batch:
        """Build the batch of the rows at the places `wanted`; crops are drawn for all of them."""
        own = rows[wanted.start : wanted.stop]
        if step is None:
            pixels = [self.transform(self.images[index], *_WHOLE) for index in self.store.indices[own].tolist()]
            return {"pixel_values": torch.stack(pixels), "labels": self.labels[own]}
        if self._crops_at(len(rows) - 1) < 1:
            most = math.ceil(self.batch_size / self.num_crops)
            raise ValueError(f"{len(rows)} images for {self.batch_size} crops: sample {most} images per step")
        generator = generator_for(self.seed, CHOSEN, step)
        chosen = [
            torch.randperm(self.store.num_crops, generator=generator)[: self._crops_at(place)]
            for place in range(len(rows))
        ]
        pixels, probs, counts = [], [], []
        for place, index in zip(wanted, self.store.indices[own].tolist(), strict=True):
            image = self.images[index]
            crops = self.store.crops(index, chosen[place], image)
            pixels += [self.transform(image, *crop) for crop in zip(crops.coords, crops.flip.tolist(), strict=True)]
            probs.append(crops.probs)
            counts.append(len(crops.probs))
        return {
            "pixel_values": torch.stack(pixels),
            "labels": self.labels[own].repeat_interleave(torch.tensor(counts)),
            "soft_labels": torch.cat(probs),
        }


def train_on_crops(data: StepDataModule, config: DataConfig) -> StepDataModule:
    """Return a data module that trains on the crops of the config's store; `data` itself if the config names none."""
    folder = store_folder(config)
    if folder is None:
        return data
    info = count_labelled(config, data.info)
    return StepDataModule(info, config, data.seed, partial(_crop_splits, folder, config, data))


def count_labelled(config: DataConfig, info: DataInfo) -> DataInfo:
    """Return the facts of a data set; its training rows are the images of its store, if the config names one."""
    folder = store_folder(config)
    if folder is None:
        return info
    return replace(info, train_size=count_images(complete_manifest(folder, checksums=False)))


def _crop_splits(folder: Path, config: DataConfig, data: StepDataModule) -> Splits:
    """Load the rows, and replace the training images by their crops; every process verifies the shards that it maps."""
    splits, images = data.splits, training_images(data)
    store = SoftLabelStore(folder, matching_manifest(folder, images, data.info, checksums=True))
    # A teacher of the student's size saw these very pixels; one of another size labelled the same part of the image.
    same = store.transform.size == data.info.image_size
    crops = MultiCropSplit(
        images,
        splits.train.labels,
        store,
        crop_transform(data.info, store.transform.interpolation if same else "bilinear"),
        batch_size=config.batch_size,
        num_crops=config.num_crops,
        seed=data.seed,
    )
    return replace(splits, train=crops)


def training_images(data: StepDataModule) -> Images:
    """Return the training images, in the order of training; image files are decoded one by one.

    Raises:
        ValueError: the data set has no images.
    """
    train = data.splits.train
    if isinstance(train, ImageSplit | DecodedSplit):
        return train.images
    raise ValueError(f"data={data.info.name} holds no images: soft labels are of crops; choose data=digits or imagenet")


def crop_transform(info: DataInfo, interpolation: str = "bilinear") -> CropTransform:
    """Return the transform from a crop to the input of the run's model; published: bilinear."""
    assert info.image_size is not None
    if info.image is None:  # tensors that are normalised already
        return CropTransform(info.image_size, interpolation)
    return CropTransform(info.image.size, interpolation, info.image.mean, info.image.std)

"""`data.soft_labels` in the data module: rows, steps and batches where an import left images out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowbit.data import StepDataModule, build_datamodule, data_info
from lowbit.settings.data import DataConfig, DataKind
from lowbit.soft_labels.crops import Crops, CropTransform
from lowbit.soft_labels.dataset import count_labelled, train_on_crops, training_images
from lowbit.soft_labels.store import StoredLabels, image_digest, matching_manifest, probe_pixels
from lowbit.soft_labels.writer import LabelledImage, StoreSettings, write_shards

LOST = (0, 11)
CONFIG = DataConfig(name="digits", kind=DataKind.digits, train_size=12, eval_size=10, batch_size=6, num_crops=2)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Twelve images, two of them without labels."""
    images = training_images(build_datamodule(CONFIG, seed=0))
    whole = Crops(torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(3, 1), torch.zeros(3, dtype=torch.bool))
    rows = [
        LabelledImage(
            index,
            image_digest(images[index]),
            whole,
            StoredLabels(torch.full((3, 1), index % 10), torch.full((3, 1), 0.9)),
        )
        for index in range(12)
        if index not in LOST
    ]
    settings = StoreSettings("digits", "t", 10, CropTransform(8), crops=3, label_type="smoothing")
    write_shards(tmp_path / "store", settings.plan(12, probe_pixels(images), "pixels"), lambda *_: rows)
    return replace(CONFIG, soft_labels=str(tmp_path / "store"))


def crops_of(config: DataConfig) -> StepDataModule:
    return train_on_crops(build_datamodule(config, seed=0), config)


def test_rows_are_the_labelled_images_and_a_batch_counts_crops(config: DataConfig):
    module, plain = crops_of(config), build_datamodule(CONFIG, seed=0)
    assert (
        count_labelled(config, data_info(config)).train_size == module.info.train_size == len(module.splits.train) == 10
    )
    assert (plain.info.train_size, plain.steps_per_epoch, module.steps_per_epoch) == (12, 2, 2)
    images, labels = training_images(plain), plain.splits.train.labels
    known = {image.numpy().tobytes(): index for index, image in enumerate(images)}
    seen = []
    for batch in module.training_batches(0, 4):  # a pass: 3, 3, 3 and 1 images, two whole "crops" of each
        indices = [known[pixels.numpy().tobytes()] for pixels in batch["pixel_values"]]
        assert batch["labels"].tolist() == labels[indices].tolist()
        assert batch["soft_labels"].argmax(1).tolist() == [index % 10 for index in indices]
        seen += indices
    assert sorted(seen) == sorted(2 * [index for index in range(12) if index not in LOST])


def test_evaluation_rows_stay_whole_images(config: DataConfig):
    batch = next(iter(crops_of(config).val_dataloader()))
    plain = next(iter(build_datamodule(CONFIG, seed=0).val_dataloader()))
    assert batch.keys() == plain.keys()
    assert all(torch.equal(batch[key], plain[key]) for key in plain)


def test_a_manifest_fits_its_images_and_no_others(config: DataConfig, tmp_path: Path):
    folder, info = tmp_path / "store", data_info(CONFIG)
    images = training_images(build_datamodule(CONFIG, seed=0))
    assert matching_manifest(folder, images, info, checksums=True)["data"]["size"] == 12
    with pytest.raises(ValueError, match="crops of 8 pixels, data=digits has images of 9"):
        matching_manifest(folder, images, replace(info, image_size=9), checksums=False)
    other = training_images(build_datamodule(replace(CONFIG, split_seed=4), seed=0))
    with pytest.raises(ValueError, match="other images than these"):
        matching_manifest(folder, other, info, checksums=False)

"""`data.soft_labels` in the data module: rows, steps and batches where an import left images out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowbit.data import build_datamodule, data_info
from lowbit.data.crops import CropTransform
from lowbit.data.fkd_import import PUBLISHED, fkd_name, fkd_path, import_fkd
from lowbit.data.stored_crops import fitting_manifest, training_images
from lowbit.settings.data import DataConfig, DataKind

LOST = (0, 11)
CONFIG = DataConfig(name="digits", kind=DataKind.digits, train_size=12, eval_size=10, batch_size=6, num_crops=2)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Twelve images, two of them without labels."""
    images = training_images(CONFIG, build_datamodule(CONFIG, seed=0).splits)
    names = [f"/digits/train/all/{index}.png" for index in range(12)]
    for index in set(range(12)) - set(LOST):
        file = fkd_path(tmp_path / "fkd", fkd_name(names[index]))
        file.parent.mkdir(parents=True, exist_ok=True)
        coords = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(3, 1)
        torch.save([coords, torch.zeros(3, dtype=torch.bool), torch.tensor([[index % 10, 0.9]] * 3)], file)
    settings = replace(PUBLISHED, num_classes=10, crops=3, label_type="smoothing", transform=CropTransform(8))
    done = import_fkd(tmp_path / "fkd", names, tmp_path / "store", settings, images=images, skip=True)
    assert len(done.problems) == len(LOST)
    return replace(CONFIG, soft_labels=str(tmp_path / "store"))


def test_rows_are_the_labelled_images_and_a_batch_counts_crops(config: DataConfig):
    module, plain = build_datamodule(config, seed=0), build_datamodule(CONFIG, seed=0)
    assert data_info(config).train_size == module.info.train_size == len(module.splits.train) == 10
    assert (plain.info.train_size, plain.steps_per_epoch, module.steps_per_epoch) == (12, 2, 2)
    images, labels = training_images(CONFIG, plain.splits), plain.splits.train.labels
    known = {image.numpy().tobytes(): index for index, image in enumerate(images)}
    seen = []
    for batch in module.training_batches(0, 4):  # a pass: 3, 3, 3 and 1 images, two whole "crops" of each
        indices = [known[pixels.numpy().tobytes()] for pixels in batch["pixel_values"]]
        assert batch["labels"].tolist() == labels[indices].tolist()
        assert batch["soft_labels"].argmax(1).tolist() == [index % 10 for index in indices]
        seen += indices
    assert sorted(seen) == sorted(2 * [index for index in range(12) if index not in LOST])


def test_evaluation_rows_stay_whole_images(config: DataConfig):
    batch = next(iter(build_datamodule(config, seed=0).val_dataloader()))
    plain = next(iter(build_datamodule(CONFIG, seed=0).val_dataloader()))
    assert batch.keys() == plain.keys()
    assert all(torch.equal(batch[key], plain[key]) for key in plain)


def test_a_manifest_fits_its_images_and_no_others(config: DataConfig):
    splits, info = build_datamodule(CONFIG, seed=0).splits, data_info(CONFIG)
    assert fitting_manifest(config, info, splits, checksums=True)["data"]["size"] == 12
    with pytest.raises(ValueError, match="crops of 8 pixels, data=digits has images of 9"):
        fitting_manifest(config, replace(info, image_size=9), splits, checksums=False)
    other = build_datamodule(replace(CONFIG, split_seed=4), seed=0).splits
    with pytest.raises(ValueError, match="other images than these"):
        fitting_manifest(config, info, other, checksums=False)

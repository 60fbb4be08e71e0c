"""Stored soft labels of image files: written from the decoded images, imported by file name, read by the bit."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from import_fkd import PUBLISHED, fkd_path, import_fkd
from torch import Tensor

from lowbit.data import ImageInput, StepDataModule, build_datamodule
from lowbit.settings.data import DataConfig, DataKind, ImageConfig
from lowbit.soft_labels.crops import CropTransform, crop
from lowbit.soft_labels.dataset import crop_transform, train_on_crops, training_images
from lowbit.soft_labels.store import fkd_name, matching_manifest
from lowbit.soft_labels.writer import StoreSettings, write_store

CLASSES = 3
# 0 marks the whole image, 1 its right half, mirrored.
COORDS = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 1.0, 0.5]])


def config(folder: Path, **changes: Any) -> DataConfig:
    settings = {"batch_size": 4, "num_crops": 2, "num_workers": 0, "image": ImageConfig(size=8)}
    return DataConfig(name="images", kind=DataKind.image_folder, dir=str(folder), **(settings | changes))


def crops_of(data: DataConfig, seed: int, image: ImageInput | None = None) -> StepDataModule:
    return train_on_crops(build_datamodule(data, seed, image=image), data)


@pytest.fixture
def imported(images: Path, tmp_path: Path) -> Path:
    """A store as FKD publishes them, known by file name: two crops, top-1 smoothing with the true class."""
    train = build_datamodule(config(images), 0).splits.train
    paths = [train.images.path(row) for row in range(len(train))]
    for path, label in zip(paths, train.labels.tolist(), strict=True):
        file = fkd_path(tmp_path / "fkd", fkd_name(path))
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save([COORDS, torch.tensor([False, True]), torch.tensor([[label, 0.8], [label, 0.7]])], file)
    settings = replace(PUBLISHED, num_classes=CLASSES, crops=2, label_type="smoothing")
    assert not import_fkd(tmp_path / "fkd", paths, tmp_path / "store", settings)[1]
    return tmp_path / "store"


def test_imported_labels_train_on_crops_of_the_original_image(images: Path, imported: Path):
    """Cut out of the image of the file, resized with bilinear interpolation, normalised as the student's model says."""
    own = ImageInput(10, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    data = crops_of(config(images, soft_labels=str(imported)), 0, own)
    module = build_datamodule(config(images), 0, image=own)
    plain = module.splits
    assert (data.info.train_size, data.info.image_size) == (12, 10)
    assert matching_manifest(imported, training_images(module), module.info, checksums=True)["data"]["size"] == 12
    mean, std = (torch.tensor(values)[:, None, None] for values in (own.mean, own.std))
    known: dict[bytes, tuple[int, float]] = {}
    for row, label in enumerate(plain.train.labels.tolist()):
        for coords, flip, top in zip(COORDS, (False, True), (0.8, 0.7), strict=True):
            pixels = (crop(plain.train.images[row], coords, flip, 10, "bilinear") - mean) / std
            known[pixels.numpy().tobytes()] = label, top
    seen = 0
    for batch in data.training_batches(0, 6):
        for pixels, label, probs in zip(batch["pixel_values"], batch["labels"], batch["soft_labels"], strict=True):
            expected, top = known[pixels.numpy().tobytes()]
            assert label == expected == probs.argmax()
            torch.testing.assert_close(probs.max(), torch.tensor(top))
            seen += 1
    assert seen == 24
    assert next(iter(data.val_dataloader()))["pixel_values"].shape == (6, 3, 10, 10)


def test_imported_labels_of_other_files_are_refused(images: Path, imported: Path, tmp_path: Path):
    """FKD knows images by the last four components of their path, so the folder's own name counts."""
    shutil.copytree(images, tmp_path / "renamed")
    with pytest.raises(ValueError, match=r"by file name.*renamed/train/n01440764/n01440764_0.JPEG"):
        crops_of(config(tmp_path / "renamed", soft_labels=str(imported)), 0).setup("fit")


def test_workers_change_no_crop(images: Path, imported: Path):
    one, two = (
        list(crops_of(config(images, soft_labels=str(imported), num_workers=count), 3).training_batches(1, 4))
        for count in (0, 2)
    )
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_written_labels_are_of_the_pixels_that_are_trained_on(images: Path, tmp_path: Path):
    """Images are decoded one after the other; the student of the teacher's size sees its crops to the bit."""
    data = build_datamodule(config(images), 0)
    source = training_images(data)
    seen: list[Tensor] = []

    def teacher(pixels: Tensor) -> Tensor:
        seen.append(pixels.clone())
        return pixels.flatten(1)[:, :CLASSES]

    transform = crop_transform(data.info, "bicubic")
    assert transform == CropTransform(8, "bicubic", data.info.image.mean, data.info.image.std)
    settings = StoreSettings("images", "t", CLASSES, transform, crops=3, label_type="full")
    write_store(source, lambda: teacher, tmp_path / "store", settings)
    trained = crops_of(config(images, soft_labels=str(tmp_path / "store")), 0)
    crops = {pixels.numpy().tobytes() for pixels in torch.cat(seen)}
    batches = list(trained.training_batches(0, 6))
    assert all(pixels.numpy().tobytes() in crops for batch in batches for pixels in batch["pixel_values"])
    larger = config(images, soft_labels=str(tmp_path / "store"), image=ImageConfig(size=12))
    (batch,) = crops_of(larger, 0).training_batches(0, 1)
    assert batch["pixel_values"].shape == (4, 3, 12, 12)
    assert batch["soft_labels"].shape == (4, CLASSES)

"""Digits: sizes, stratification, scaling, and shifts that depend on (seed, step) alone."""

import pytest
import torch
from sklearn.datasets import load_digits

from lowbit.data import StepRows
from lowbit.data.digits import digits_info, digits_splits, stratified_order
from lowbit.data.splits import ImageSplit, RandomShift, Splits
from lowbit.settings.data import DataConfig, DataKind


def config(**changes: object) -> DataConfig:
    return DataConfig(name="digits", kind=DataKind.digits, **changes)  # type: ignore[arg-type]


def parts(splits: Splits) -> list[ImageSplit]:
    found = [splits.train, splits.validation, splits.test]
    assert all(isinstance(part, ImageSplit) for part in found)
    return found  # type: ignore[return-value]


def row_set(split: ImageSplit) -> set[tuple[float, ...]]:
    return {tuple(image) for image in split.images.flatten(1).tolist()}


def test_sizes_and_types():
    train, validation, test = parts(digits_splits(config(), seed=0))
    assert (len(train), len(validation), len(test)) == (1297, 200, 300)
    batch = train[3]
    assert batch["pixel_values"].shape == (1, 1, 8, 8)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].dtype == torch.int64


def test_the_splits_are_the_whole_data_set_without_overlap():
    sets = [row_set(part) for part in parts(digits_splits(config(), seed=0))]
    assert [len(part) for part in sets] == [1297, 200, 300]
    assert len(set.union(*sets)) == 1797


@pytest.mark.parametrize("split_seed", [0, 3])
def test_every_split_has_the_class_shares_of_the_whole(split_seed: int):
    shares = torch.bincount(torch.from_numpy(load_digits().target)) / 1797
    for part in parts(digits_splits(config(split_seed=split_seed), seed=0)):
        assert ((torch.bincount(part.labels) - shares * len(part)).abs() < 2).all()


def test_a_small_training_set_is_stratified_and_a_prefix():
    small = digits_splits(config(train_size=100), seed=0).train
    full = digits_splits(config(), seed=0).train
    assert torch.equal(small.labels, full.labels[:100])
    assert torch.bincount(small.labels, minlength=10).min() >= 8


def test_order_depends_on_the_seed_and_is_a_permutation():
    labels = torch.tensor([0] * 6 + [1] * 3)
    first = stratified_order(labels, 0)
    assert sorted(first.tolist()) == list(range(9))
    assert any(not torch.equal(first, stratified_order(labels, seed)) for seed in range(1, 5))
    # One of three rows is of class 1, in every third of the order.
    assert labels[first].view(3, 3).sum(1).tolist() == [1, 1, 1]


def test_images_keep_their_labels_and_training_pixels_are_standardised():
    train = parts(digits_splits(config(), seed=0))[0]
    assert train.images.mean().abs() < 1e-5
    assert (train.images.std() - 1).abs() < 1e-5
    digits = load_digits()
    known = {tuple(image.ravel()): int(label) for image, label in zip(digits.images, digits.target, strict=True)}
    low, high = train.images.min(), train.images.max()
    pixels = ((train.images - low) / (high - low) * 16).round().flatten(1)
    assert [known[tuple(row)] for row in pixels.tolist()] == train.labels.tolist()


def test_evaluation_pixels_use_the_constants_of_training():
    train, validation, test = parts(digits_splits(config(), seed=0))
    assert train.images.min() == validation.images.min() == test.images.min()
    assert validation.images.mean().abs() > 1e-5


def test_a_shift_moves_the_image_and_fills_with_background():
    images = torch.arange(1.0, 65.0).view(1, 1, 8, 8).repeat(400, 1, 1, 1)
    shifted = RandomShift(seed=0, background=-1.0)(images, step=0)
    seen = set()
    for image in shifted[:, 0]:
        down, right = _offset(image)
        seen.add((down, right))
        expected = torch.full((10, 10), -1.0)
        expected[1 + down : 9 + down, 1 + right : 9 + right] = images[0, 0]
        assert torch.equal(image, expected[1:9, 1:9])
    assert seen == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}


def _offset(image: torch.Tensor) -> tuple[int, int]:
    """Tell from the centre pixel how far the image of consecutive numbers has moved."""
    row, column = divmod(int(image[3, 3]) - 1, 8)
    return 3 - row, 3 - column


def test_shifts_are_a_function_of_seed_and_step():
    split = digits_splits(config(augment=True), seed=0).train
    rows = list(range(32))
    again = digits_splits(config(augment=True), seed=0).train
    other = digits_splits(config(augment=True), seed=1).train
    pixels = split.__getitems__(StepRows(5, rows))["pixel_values"]
    torch.rand(3)
    assert torch.equal(pixels, again.__getitems__(StepRows(5, rows))["pixel_values"])
    assert not torch.equal(pixels, split.__getitems__(StepRows(6, rows))["pixel_values"])
    assert not torch.equal(pixels, other.__getitems__(StepRows(5, rows))["pixel_values"])


def test_without_augmentation_and_in_evaluation_nothing_moves():
    plain = digits_splits(config(), seed=0).train
    augmented = digits_splits(config(augment=True), seed=0)
    rows = list(range(32))
    expected = plain.__getitems__(rows)["pixel_values"]
    assert torch.equal(plain.__getitems__(StepRows(5, rows))["pixel_values"], expected)
    assert torch.equal(augmented.train.__getitems__(rows)["pixel_values"], expected)
    still = augmented.test.__getitems__(rows)["pixel_values"]
    assert torch.equal(augmented.test.__getitems__(StepRows(5, rows))["pixel_values"], still)


@pytest.mark.parametrize("change", [{"train_size": 1298}, {"train_size": 0}, {"eval_size": 201}])
def test_sizes_that_the_data_set_lacks_are_refused(change: dict[str, int]):
    with pytest.raises(ValueError, match=next(iter(change))):
        digits_splits(config(**change), seed=0)


def test_info():
    info = digits_info(config(train_size=500))
    assert (info.modality, info.num_labels, info.metric, info.train_size) == ("image", 10, "accuracy", 500)
    assert (info.image_size, info.channels, info.vocab_size, info.max_length) == (8, 1, None, None)

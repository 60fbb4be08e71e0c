"""The 8x8 handwritten digits of scikit-learn: 1,797 images that ship with the library, so nothing is downloaded."""

import torch
from torch import Tensor

from lowbit.data.sampling import Stream, generator_for
from lowbit.data.splits import ImageSplit, RandomShift, Splits
from lowbit.settings.data import DataConfig, DataInfo

TRAIN_SIZE, VALIDATION_SIZE, TEST_SIZE = 1297, 200, 300
LARGEST_PIXEL = 16.0


def digits_info(config: DataConfig) -> DataInfo:
    """Describe the data set without loading it; raise ValueError where more rows are asked for than it has."""
    _limited("eval_size", config.eval_size, VALIDATION_SIZE)
    return DataInfo(
        name=config.name,
        modality="image",
        task="classification",
        num_labels=10,
        metric="accuracy",
        train_size=_limited("train_size", config.train_size, TRAIN_SIZE),
        image_size=8,
        channels=1,
    )


def digits_splits(config: DataConfig, seed: int) -> Splits:
    """Load and split the digits; pixels are standardised with mean and deviation of the training rows.

    A smaller `train_size` or `eval_size` takes the first rows of a split, which are stratified as well.
    """
    from sklearn.datasets import load_digits  # here, since no other data set needs scikit-learn

    train_size = digits_info(config).train_size
    validation_size, test_size = config.eval_size or VALIDATION_SIZE, config.eval_size or TEST_SIZE

    digits = load_digits()
    labels = torch.from_numpy(digits.target).long()
    images = torch.from_numpy(digits.images).float()[:, None] / LARGEST_PIXEL
    order = stratified_order(labels, config.split_seed)
    test = order[:test_size]
    validation = order[TEST_SIZE:][:validation_size]
    train = order[TEST_SIZE + VALIDATION_SIZE :][:train_size]

    mean, deviation = images[train].mean(), images[train].std()
    images = (images - mean) / deviation
    background = float(-mean / deviation)
    return Splits(
        train=ImageSplit(images[train], labels[train], RandomShift(seed, background) if config.augment else None),
        validation=ImageSplit(images[validation], labels[validation]),
        test=ImageSplit(images[test], labels[test]),
    )


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Return a random order of the rows in which every contiguous part has nearly the class shares of the whole."""
    shuffled = torch.randperm(len(labels), generator=generator_for(seed, Stream.split))
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in range(int(labels.max()) + 1):
        # The members of a class are spread evenly over [0, 1), in shuffled order.
        members = shuffled[labels[shuffled] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return shuffled[place[shuffled].argsort(stable=True)]


def _limited(key: str, value: int | None, limit: int) -> int:
    if value is None:
        return limit
    if not 1 <= value <= limit:
        raise ValueError(f"data.{key}={value}: digits has {limit} such rows; set data.{key} to 1..{limit} or null")
    return value

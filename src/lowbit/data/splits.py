"""Splits held in memory that turn the rows of a batch into tensors at once."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lowbit.data.sampling import StepRows, Stream, generator_for
from lowbit.data.shares import Share
from lowbit.data.tokens import Tokens
from lowbit.settings.data import DataConfig, Padding

Batch: TypeAlias = dict[str, Tensor]


class Split(Dataset[Batch], ABC):
    """Rows with labels; a DataLoader fetches a whole batch through `__getitems__`.

    Attributes:
        slow: Whether a batch takes so long that workers build it while the one before is trained on.
    """

    slow = False

    def __init__(self, labels: Tensor) -> None:
        """Keep the labels."""
        self.labels = labels

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)

    def __getitem__(self, row: int) -> Batch:
        """Return a batch of one row."""
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int] | StepRows) -> Batch:
        """Return the batch of some rows; only rows that come with their training step are augmented."""
        if isinstance(rows, StepRows):
            chosen = torch.tensor(rows.rows)
            if rows.share is not None:
                return self._share(chosen, rows.step, rows.share)
            return self._batch(chosen, rows.step)
        return self._batch(torch.tensor(rows), None)

    def _share(self, rows: Tensor, step: int, share: Share) -> Batch:
        """Build a process's share of a batch; what is costly to build and not used may be left out."""
        return share.of(self._batch(rows, step))

    @abstractmethod
    def _batch(self, rows: Tensor, step: int | None) -> Batch:
        """Build the tensors of a batch."""


@dataclass(frozen=True)
class RandomShift:
    """Moves each image by -1, 0 or 1 pixel in both directions; `background` fills the edge that opens."""

    seed: int
    background: float

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Return shifted copies of square images; the shifts depend on (seed, step) and place in the batch."""
        batch, channels, side, _ = images.shape
        shift = torch.randint(3, (batch, 2), generator=generator_for(self.seed, Stream.augment, step))
        padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=self.background)
        # (batch, side, 2): the rows and columns of the padded image that each image keeps.
        window = torch.arange(side)[None, :, None] + shift[:, None, :]
        return padded[
            torch.arange(batch)[:, None, None, None],
            torch.arange(channels)[None, :, None, None],
            window[:, None, :, None, 0],
            window[:, None, None, :, 1],
        ]


class ImageSplit(Split):
    """Images and labels."""

    def __init__(self, images: Tensor, labels: Tensor, augment: RandomShift | None = None) -> None:
        """Keep float32 images and int64 labels."""
        super().__init__(labels)
        self.images = images
        self.augment = augment

    def _batch(self, rows: Tensor, step: int | None) -> Batch:
        images = self.images[rows]
        if self.augment is not None and step is not None:
            images = self.augment(images, step)
        return {"pixel_values": images, "labels": self.labels[rows]}


def fixed_width(config: DataConfig) -> int | None:
    """Return the width that every batch is padded to; None: that of its longest text."""
    return config.max_length if config.padding is Padding.max_length else None


class TextSplit(Split):
    """Token ids and labels, padded on the right to `pad_to`, or to the longest sequence of the batch if it is None."""

    def __init__(self, tokens: Tokens, labels: Tensor, pad_id: int, pad_to: int | None) -> None:
        """Keep the tokens as they are: a batch is then one gather."""
        super().__init__(labels)
        self.tokens = tokens
        self.pad_id = pad_id
        self.pad_to = pad_to

    def _batch(self, rows: Tensor, step: int | None) -> Batch:
        return {**self.tokens.padded(rows, self._width(rows), self.pad_id), "labels": self.labels[rows]}

    def _width(self, rows: Tensor) -> int:
        return int(self.tokens.lengths_of(rows).max()) if self.pad_to is None else self.pad_to


@dataclass(frozen=True)
class Splits:
    """The parts of a data set; without a test split the models are scored on the validation split."""

    train: Split
    validation: Split
    test: Split | None
    more_validation: Mapping[str, Split] = field(default_factory=dict)

"""The part of a training batch that one process of several trains on, and what it counts for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import BatchSampler

Batch = dict[str, Tensor]
WEIGHTS = "share_weights"
UNITS = ("labels", "rows", "tokens", "pairs")


@dataclass(frozen=True)
class Share:
    """Part `rank` of `world` contiguous parts of every batch; they differ by one row at most.

    A rank for which a batch has no row takes the first one with weight 0: all ranks run every step.
    """

    rank: int
    world: int

    def rows(self, count: int) -> slice:
        """Return the rows of a batch of `count`."""
        start, stop = self._ends(count)
        return slice(start, stop) if stop > start else slice(0, 1)

    def of(self, batch: Batch) -> Batch:
        """Return the rows of a whole batch, padded as it is, with their weights."""
        whole = next(iter(batch.values()))
        own = {name: tensor[self.rows(len(whole))] for name, tensor in batch.items()}
        return {**own, WEIGHTS: self._weights(batch, own, len(whole))}

    def weighted(self, own: Batch, part: int, whole: int, rows: int) -> Batch:
        """Return a batch that was built for this rank alone with its weights.

        Args:
            own: The batch, built from this rank's rows.
            part: The inputs that those rows stand for, such as crops.
            whole: The inputs that all rows stand for.
            rows: Rows of the whole batch.
        """
        return {**own, WEIGHTS: torch.full((len(UNITS),), self._weight(part, whole, rows), dtype=torch.float64)}

    def _ends(self, count: int) -> tuple[int, int]:
        return self.rank * count // self.world, (self.rank + 1) * count // self.world

    def _weight(self, own: float, whole: float, rows: int) -> float:
        start, stop = self._ends(rows)
        return own * self.world / whole if stop > start else 0.0

    def _weights(self, batch: Batch, own: Batch, rows: int) -> Tensor:
        counts = zip(_counts(own), _counts(batch), strict=True)
        return torch.tensor([self._weight(part, whole, rows) for part, whole in counts], dtype=torch.float64)


class ShareOfBatches:
    """Every so many batches of an evaluation: batches stay as they are, and so do quantizers that see a batch."""

    def __init__(self, batches: BatchSampler, share: Share) -> None:
        """Keep the batches of all ranks."""
        self._batches = batches
        self._share = share

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the rank's batches."""
        yield from islice(self._batches, self._share.rank, None, self._share.world)

    def __len__(self) -> int:
        """Return how many they are."""
        return len(range(self._share.rank, len(self._batches), self._share.world))


def take_weights(batch: Batch) -> Mapping[str, float] | None:
    """Remove the weights from a batch and return them by unit; None if it is a whole one.

    A loss that is a mean over `labels` (rows, or the words that have one), `rows`, `tokens` or `pairs` of tokens, times
    the unit's weight, has the whole batch's loss as its mean over the ranks.
    """
    weights = batch.pop(WEIGHTS, None)
    return None if weights is None else dict(zip(UNITS, weights.tolist(), strict=True))


def _counts(batch: Batch) -> tuple[float, ...]:
    """Return what losses divide by, in the order of `UNITS`."""
    rows = float(len(next(iter(batch.values()))))
    words, mask = batch.get("word_starts"), batch.get("attention_mask")
    labels = rows if words is None else float(words.sum())
    if mask is None:
        return labels, rows, rows, rows
    lengths = mask.sum(-1).double()
    return labels, rows, float(lengths.sum()), float(lengths.square().sum())

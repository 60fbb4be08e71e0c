"""Randomness and row order as pure functions of (seed, step): a resumed run repeats nothing and skips nothing."""

import hashlib
import math
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from lowbit.data.shares import Share

GROUPED_BATCHES = 50  # as in transformers' length-grouped sampler


class Stream(IntEnum):
    """Second part of a generator key: keeps uses of one seed from sharing their random numbers."""

    order = 0
    augment = 1
    split = 2
    sentences = 3
    loader = 4


def generator_for(*key: int) -> torch.Generator:
    """Return a CPU generator seeded by a stable hash of `key`.

    A hash and not a sum or a `numpy.random.SeedSequence`: the former lets (1, 2) meet (2, 1), the latter pads with
    zeros, so that (1,) meets (1, 0).
    """
    text = ",".join(str(int(part)) for part in key)
    digest = hashlib.sha256(text.encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return generator


class StepRows(NamedTuple):
    """The rows of one batch, the recipe step that trains on them, and the share of this process, if it has one."""

    step: int
    rows: list[int]
    share: Share | None = None


class StepBatchSampler(Sampler[StepRows]):
    """Endless batch sampler in which the batch of step g depends on (seed, g) alone.

    Epoch `g // steps_per_epoch` has its own permutation; its last batch may be smaller than the others. There is no
    `__len__`, so Lightning takes the loader for infinite and `max_steps` decides when training ends. With `lengths`,
    the rows of a batch are of similar length: they are sorted within random groups of 50 batches, and the batches of
    the epoch then shuffled.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        seed: int,
        first_step: int | Callable[[], int] = 0,
        lengths: Tensor | None = None,
        share: Share | None = None,
    ) -> None:
        """Set up the order; a callable `first_step` is asked anew each time that an iteration begins.

        A `share` travels with the rows, which are those of the whole batch.
        """
        if num_rows < 1 or batch_size < 1:
            raise ValueError(f"need at least one row and a batch size of 1, got {num_rows} rows in {batch_size}s")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self.first_step = first_step
        self.lengths = lengths
        self.share = share

    @property
    def steps_per_epoch(self) -> int:
        """Batches that cover every row once."""
        return math.ceil(self.num_rows / self.batch_size)

    def __iter__(self) -> Iterator[StepRows]:
        """Yield batches without end, from the first step on."""
        # Read here and not in the generator, whose body would wait for the first batch to be drawn.
        first_step = self.first_step() if callable(self.first_step) else self.first_step
        if first_step < 0:
            raise ValueError(f"first_step must not be negative, got {first_step}")
        return self._from(first_step)

    def batch(self, step: int) -> StepRows:
        """Return the batch of one step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._slice(step, position, self._permutation(epoch))

    def _from(self, step: int) -> Iterator[StepRows]:
        while True:
            epoch, first = divmod(step, self.steps_per_epoch)
            permutation = self._permutation(epoch)
            for position in range(first, self.steps_per_epoch):
                yield self._slice(step, position, permutation)
                step += 1

    def _permutation(self, epoch: int) -> Tensor:
        generator = generator_for(self.seed, Stream.order, epoch)
        order = torch.randperm(self.num_rows, generator=generator)
        if self.lengths is None:
            return order
        group = torch.arange(self.num_rows) // (self.batch_size * GROUPED_BATCHES)
        lengths = self.lengths[order]
        order = order[(group * (lengths.max() + 1) + lengths).argsort(stable=True)]
        full = self.num_rows // self.batch_size
        batches = order[: full * self.batch_size].view(full, self.batch_size)
        # The partial batch stays the last one.
        shuffled = batches[torch.randperm(full, generator=generator)].flatten()
        return torch.cat([shuffled, order[full * self.batch_size :]])

    def _slice(self, step: int, position: int, permutation: Tensor) -> StepRows:
        start = position * self.batch_size
        return StepRows(step, permutation[start : start + self.batch_size].tolist(), self.share)

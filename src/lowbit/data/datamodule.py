"""The LightningDataModule of every data set: an endless training loader that can start at any recipe step."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

from lightning import LightningDataModule
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from lowbit.config.budget import epoch_steps, rows_per_step
from lowbit.data.sampling import StepBatchSampler, Stream, generator_for
from lowbit.data.shares import Share, ShareOfBatches
from lowbit.data.splits import Batch, Split, Splits, TextSplit
from lowbit.settings.data import DataConfig, DataInfo, Padding

T = TypeVar("T")
MOST_WORKERS = 8


def as_is(batch: T) -> T:
    """Return the batch that the split built; a named function, since workers must be able to pickle it."""
    return batch


def cpu_cores() -> int:
    """Return the cores that this process may use, where the system tells, else those of the machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    return (os.cpu_count() or 1) if affinity is None else len(affinity(0))


class StepDataModule(LightningDataModule):
    """Splits and their loaders.

    The training batch of recipe step g depends on (seed, g) alone. One optimizer step must take one batch, since the
    trainer's global step says where to go on. Where the trainer runs on several devices, each process gets its share of
    that batch, and of the batches of an evaluation.

    Attributes:
        info: Static facts of the data set.
        seed: Seed of row order and augmentation.
        first_step: Recipe step at which the current stage begins; the stage runner sets it before `fit`.
    """

    def __init__(self, info: DataInfo, config: DataConfig, seed: int, load: Callable[[], Splits]) -> None:
        """Keep the settings; `load` runs when the rows are first needed."""
        super().__init__()
        self.info = info
        self.seed = seed
        self.first_step = 0
        self._config = config
        self._load = load

    @property
    def steps_per_epoch(self) -> int:
        """Training batches that hold as many examples as there are rows: with stored crops, a share of a pass."""
        return epoch_steps(self.info.train_size, self._config.batch_size)

    @cached_property
    def splits(self) -> Splits:
        """The rows, loaded at first use."""
        return self._load()

    def setup(self, stage: str) -> None:
        """Load the rows."""
        assert len(self.splits.train) == self.info.train_size

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return an endless loader; each iteration begins at `first_step` plus the trainer's global step."""
        return self._loader(self.splits.train, self._sampler(self._next_step, self._share))

    def training_batches(self, step: int, count: int) -> Iterator[Batch]:
        """Yield the whole batches of `count` recipe steps from `step` on, whatever the trainer is doing."""
        self.setup("fit")
        yield from islice(self._loader(self.splits.train, self._sampler(lambda: step)), count)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return the validation rows in order; where there are further validation splits, a list with their loaders."""
        first, *more = map(self._eval_loader, self.validation_splits)
        return [first, *more] if more else first

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test rows in order."""
        assert self.splits.test is not None
        return self._eval_loader(self.splits.test)

    def is_shared(self, split: Split) -> bool:
        """Whether the processes of a run share out the evaluation of a split; else each evaluates all of it.

        Each needs a batch: torchmetrics cannot gather what a process without one has.
        """
        return self._share is not None and len(self._eval_batches(split)) >= self._share.world

    @property
    def validation_splits(self) -> list[Split]:
        """The validation splits, in the order of their loaders."""
        return [self.splits.validation, *self.splits.more_validation.values()]

    @property
    def _share(self) -> Share | None:
        if self.trainer is None or self.trainer.world_size == 1:
            return None
        return Share(self.trainer.global_rank, self.trainer.world_size)

    def _sampler(self, first_step: Callable[[], int], share: Share | None = None) -> StepBatchSampler:
        train = self.splits.train
        grouped = self._config.length_grouped and self._config.padding is Padding.longest
        lengths = train.tokens.lengths if grouped and isinstance(train, TextSplit) else None
        return StepBatchSampler(
            self.info.train_size, rows_per_step(self._config), self.seed, first_step, lengths, share
        )

    def _next_step(self) -> int:
        return self.first_step + (0 if self.trainer is None else self.trainer.global_step)

    @property
    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _eval_loader(self, split: Split) -> DataLoader[Batch]:
        batches = self._eval_batches(split)
        if self._share is not None and self.is_shared(split):
            return self._loader(split, ShareOfBatches(batches, self._share))
        return self._loader(split, batches)

    def _eval_batches(self, split: Split) -> BatchSampler:
        return BatchSampler(SequentialSampler(split), self._config.eval_batch_size, drop_last=False)

    def _loader(self, split: Split, batches: Iterable[Any]) -> DataLoader[Batch]:
        workers = self._config.num_workers
        if workers is None:
            processes = 1 if self.trainer is None else self.trainer.num_devices  # of this machine
            workers = min(MOST_WORKERS, max(cpu_cores() // processes, 1)) if split.slow else 0
        return DataLoader(
            split,
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=split.slow and self._on_cuda,
            collate_fn=as_is,
            # Without a generator of its own every iteration of a loader would advance the global one, and a resumed
            # run would see other dropout masks.
            generator=generator_for(self.seed, Stream.loader),
        )

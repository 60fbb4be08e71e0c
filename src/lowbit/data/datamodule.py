"""The LightningDataModule of every data set: an endless training loader that can start at any recipe step."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

from lightning import LightningDataModule
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from lowbit.config.budget import epoch_steps
from lowbit.config.schema import DataConfig, Padding
from lowbit.config.soft_labels import rows_per_step
from lowbit.data.info import DataInfo
from lowbit.data.sampling import StepBatchSampler, Stream, generator_for
from lowbit.data.splits import Batch, Split, Splits, TextSplit

T = TypeVar("T")


def as_is(batch: T) -> T:
    """Return the batch that the split built; a named function, since workers must be able to pickle it."""
    return batch


class StepDataModule(LightningDataModule):
    """Splits and their loaders.

    The training batch of recipe step g depends on (seed, g) alone. One optimizer step must take one batch, since the
    trainer's global step says where to go on.

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
        return self._loader(self.splits.train, self._sampler(self._next_step))

    def training_batches(self, step: int, count: int) -> Iterator[Batch]:
        """Yield the batches of `count` recipe steps from `step` on, whatever the trainer is doing."""
        self.setup("fit")
        yield from islice(self._loader(self.splits.train, self._sampler(lambda: step)), count)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return the validation rows in order; where there are further validation splits, a list with their loaders."""
        first = self._eval_loader(self.splits.validation)
        more = [self._eval_loader(split) for split in self.splits.more_validation.values()]
        return [first, *more] if more else first

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test rows in order."""
        assert self.splits.test is not None
        return self._eval_loader(self.splits.test)

    def _sampler(self, first_step: Callable[[], int]) -> StepBatchSampler:
        train = self.splits.train
        grouped = self._config.length_grouped and self._config.padding is Padding.longest
        lengths = train.tokens.lengths if grouped and isinstance(train, TextSplit) else None
        return StepBatchSampler(self.info.train_size, rows_per_step(self._config), self.seed, first_step, lengths)

    def _next_step(self) -> int:
        return self.first_step + (0 if self.trainer is None else self.trainer.global_step)

    def _eval_loader(self, split: Split) -> DataLoader[Batch]:
        rows = SequentialSampler(split)
        return self._loader(split, BatchSampler(rows, self._config.eval_batch_size, drop_last=False))

    def _loader(self, split: Split, batches: Iterable[Any]) -> DataLoader[Batch]:
        workers = self._config.num_workers
        return DataLoader(
            split,
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=as_is,
            # Without a generator of its own every iteration of a loader would advance the global one, and a resumed
            # run would see other dropout masks.
            generator=generator_for(self.seed, Stream.loader),
        )

"""Loaders: a run that resumes at a step sees the batches of one that was never interrupted."""

from itertools import islice
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lowbit.config.schema import DataConfig, DataKind, Padding
from lowbit.data import Batch, StepDataModule, build_datamodule


def module(kind: DataKind, seed: int = 1, **changes: object) -> StepDataModule:
    settings = {"train_size": 70, "eval_size": 30, "batch_size": 16, "eval_batch_size": 16} | changes
    return build_datamodule(DataConfig(name=kind.name, kind=kind, **settings), seed)  # type: ignore[arg-type]


def digits(**changes: object) -> StepDataModule:
    return module(DataKind.digits, **({"augment": True} | changes))  # type: ignore[arg-type]


def sentences(**changes: object) -> StepDataModule:
    return module(DataKind.agreement, **changes)  # type: ignore[arg-type]


def take(data: StepDataModule, count: int, first_step: int = 0) -> list[Batch]:
    data.first_step = first_step
    return list(islice(data.train_dataloader(), count))


def equal(first: list[Batch], second: list[Batch]) -> bool:
    def same(one: Batch, other: Batch) -> bool:
        return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    return len(first) == len(second) and all(same(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("build", [digits, sentences])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_fresh_loader_started_at_a_step_continues_the_uninterrupted_one(build, workers: int):
    uninterrupted = take(build(), 12)
    assert equal(take(build(num_workers=workers), 5, first_step=7), uninterrupted[7:])
    assert not equal(take(build(), 5, first_step=6), uninterrupted[7:])


@pytest.mark.parametrize("build", [digits, sentences])
def test_batches_depend_on_the_seed(build):
    assert equal(take(build(), 3), take(build(), 3))
    assert not equal(take(build(), 3), take(build(seed=2), 3))


def test_an_epoch_shows_every_row_once():
    data = digits(augment=False)
    assert data.steps_per_epoch == 5
    batches = take(data, 10)
    assert [len(batch["labels"]) for batch in batches] == [16, 16, 16, 16, 6] * 2
    everything = data.splits.train.__getitems__(list(range(70)))["pixel_values"].flatten(1).tolist()
    for epoch in (batches[:5], batches[5:]):
        seen = torch.cat([batch["pixel_values"] for batch in epoch]).flatten(1).tolist()
        assert sorted(seen) == sorted(everything)


def test_loading_leaves_the_global_generator_alone():
    data = digits()
    before = torch.get_rng_state()
    take(data, 3)
    list(data.val_dataloader())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_is_in_order_and_complete(workers: int):
    data = sentences(num_workers=workers)
    loaders = ((data.val_dataloader(), data.splits.validation), (data.test_dataloader(), data.splits.test))
    for loader, split in loaders:
        batches = list(loader)
        assert len(loader) == len(batches) == 2
        assert torch.equal(torch.cat([batch["labels"] for batch in batches]), split.labels)


def test_text_batches_and_padding_to_the_longest():
    widths = set()
    for batch in take(sentences(), 5):
        ids, mask = batch["input_ids"], batch["attention_mask"]
        assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
        assert {value.dtype for value in batch.values()} == {torch.int64}
        assert ids.shape == mask.shape == batch["token_type_ids"].shape
        assert torch.equal(mask, (ids != 0).long())
        assert mask.sum(1).max() == ids.shape[1]
        assert not batch["token_type_ids"].any()
        ends = ids[torch.arange(len(ids)), mask.sum(1) - 1]
        assert (ends == 3).all()
        widths.add(ids.shape[1])
    assert len(widths) > 1


@pytest.mark.parametrize(("limit", "width"), [(None, 25), (32, 32)])
def test_padding_to_the_maximal_length_keeps_the_tokens(limit: int | None, width: int):
    fixed = take(sentences(padding=Padding.max_length, max_length=limit), 5)
    for wide, narrow in zip(fixed, take(sentences(), 5), strict=True):
        used = narrow["input_ids"].shape[1]
        assert wide["input_ids"].shape == wide["attention_mask"].shape == (len(wide["labels"]), width)
        assert torch.equal(wide["input_ids"][:, :used], narrow["input_ids"])
        assert not wide["input_ids"][:, used:].any()
        assert not wide["attention_mask"][:, used:].any()


class Recorder(lightning.LightningModule):
    """A model with one weight that remembers the batches it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: list[Batch] = []

    def training_step(self, batch: Batch, _: int) -> Tensor:
        self.batches.append({key: value.clone() for key, value in batch.items()})
        return self.weight.sum() * batch["pixel_values"].mean()

    def validation_step(self, batch: Batch, _: int) -> None:
        assert not self.training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, steps: int, resume: str | None = None, first_step: int = 0, **options: object) -> list[Batch]:
    data, model = digits(), Recorder()
    data.first_step = first_step
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)],
        **({"val_check_interval": 3, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0} | options),  # type: ignore[arg-type]
    )
    trainer.fit(model, data, ckpt_path=resume)
    return model.batches


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_fit_sees_the_batches_of_an_uninterrupted_one(tmp_path: Path):
    uninterrupted = fit(tmp_path / "whole", 12)
    before = fit(tmp_path / "parts", 7)
    after = fit(tmp_path / "parts", 12, resume=str(tmp_path / "parts" / "last.ckpt"))
    assert len(after) == 5
    assert equal(before + after, uninterrupted)
    assert equal(uninterrupted, take(digits(), 12))


@pytest.mark.filterwarnings("ignore")
def test_the_second_stage_goes_on_where_the_first_ended(tmp_path: Path):
    assert equal(fit(tmp_path, 4, first_step=6), take(digits(), 4, first_step=6))


@pytest.mark.filterwarnings("ignore")
def test_lightning_epochs_of_limited_length_go_on_as_well(tmp_path: Path):
    batches = fit(tmp_path, 6, limit_train_batches=2, val_check_interval=None, check_val_every_n_epoch=1)
    assert equal(batches, take(digits(), 6))

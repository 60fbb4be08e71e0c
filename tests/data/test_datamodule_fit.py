"""Under Lightning's Trainer: resumed runs and later stages see the batches of an uninterrupted run."""

from itertools import islice
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lowbit.data import Batch, StepDataModule, build_datamodule
from lowbit.settings.data import DataConfig, DataKind


def digits() -> StepDataModule:
    config = DataConfig("digits", DataKind.digits, batch_size=16, train_size=70, eval_size=30, augment=True)
    return build_datamodule(config, seed=1)


def uninterrupted(start: int, stop: int) -> list[Batch]:
    return list(islice(digits().train_dataloader(), start, stop))


def equal(first: list[Batch], second: list[Batch]) -> bool:
    keys = ("pixel_values", "labels")
    pairs = list(zip(first, second, strict=True))
    return bool(pairs) and all(torch.equal(one[key], other[key]) for one, other in pairs for key in keys)


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
    before = fit(tmp_path / "parts", 7)
    after = fit(tmp_path / "parts", 12, resume=str(tmp_path / "parts" / "last.ckpt"))
    assert len(after) == 5
    assert equal(before + after, fit(tmp_path / "whole", 12))
    assert equal(before + after, uninterrupted(0, 12))


@pytest.mark.filterwarnings("ignore")
def test_the_second_stage_goes_on_where_the_first_ended(tmp_path: Path):
    assert equal(fit(tmp_path, 4, first_step=6), uninterrupted(6, 10))


@pytest.mark.filterwarnings("ignore")
def test_lightning_epochs_of_limited_length_go_on_as_well(tmp_path: Path):
    batches = fit(tmp_path, 6, limit_train_batches=2, val_check_interval=None, check_val_every_n_epoch=1)
    assert equal(batches, uninterrupted(0, 6))

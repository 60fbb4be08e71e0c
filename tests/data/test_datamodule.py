"""Loaders: a run that resumes at a step sees the batches of one that was never interrupted."""

from itertools import islice

import pytest
import torch

from lowbit.data import Batch, StepDataModule, build_datamodule
from lowbit.settings.data import DataConfig, DataKind, Padding


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

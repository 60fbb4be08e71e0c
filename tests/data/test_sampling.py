"""Row order is a pure function of (seed, step)."""

from itertools import islice

import pytest
import torch

from lowbit.data import StepBatchSampler, StepRows, generator_for


def take(sampler: StepBatchSampler, count: int) -> list[StepRows]:
    return list(islice(sampler, count))


def draw(*key: int) -> list[float]:
    return torch.rand(4, generator=generator_for(*key)).tolist()


def test_generator_repeats_its_key_and_tells_keys_apart():
    assert draw(1, 2) == draw(1, 2)
    keys = [(), (0,), (1,), (1, 0), (1, 2), (2, 1), (12,), (-1,), (1 << 32,), (0, 1)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_generator_is_the_same_in_every_process():
    assert torch.randperm(8, generator=generator_for(7, 0, 3)).tolist() == [3, 1, 2, 4, 6, 5, 7, 0]


def test_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    draw(3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (12, 4), (5, 1), (4, 9), (1, 1)])
def test_every_epoch_covers_every_row_once(rows: int, size: int):
    sampler = StepBatchSampler(rows, size, seed=0)
    steps = sampler.steps_per_epoch
    batches = take(sampler, 3 * steps)
    assert [batch.step for batch in batches] == list(range(3 * steps))
    for epoch in range(3):
        own = batches[epoch * steps : (epoch + 1) * steps]
        assert sorted(row for batch in own for row in batch.rows) == list(range(rows))
        assert [len(batch.rows) for batch in own[:-1]] == [size] * (steps - 1)


def test_the_last_batch_of_an_epoch_is_partial():
    sampler = StepBatchSampler(10, 4, seed=0)
    assert [len(batch.rows) for batch in take(sampler, 6)] == [4, 4, 2, 4, 4, 2]


def test_epochs_and_seeds_have_their_own_order():
    first, second = (batch.rows for batch in take(StepBatchSampler(50, 50, seed=0), 2))
    other = take(StepBatchSampler(50, 50, seed=1), 1)[0].rows
    assert first != second
    assert first != other
    assert first != list(range(50))


@pytest.mark.parametrize("start", [0, 1, 2, 3, 7, 30])
def test_a_sampler_started_at_a_step_continues_the_uninterrupted_one(start: int):
    uninterrupted = take(StepBatchSampler(10, 4, seed=5), start + 9)
    assert take(StepBatchSampler(10, 4, seed=5, first_step=start), 9) == uninterrupted[start:]
    assert StepBatchSampler(10, 4, seed=5).batch(start) == uninterrupted[start]


def test_a_callable_first_step_is_read_when_an_iteration_begins():
    step = 0
    sampler = StepBatchSampler(10, 4, seed=0, first_step=lambda: step)
    early = iter(sampler)
    step = 4
    assert next(early).step == 0
    assert next(iter(sampler)).step == 4


LENGTHS = torch.randint(3, 60, (1_000,), generator=torch.Generator().manual_seed(0))


def grouped(first_step: int = 0, seed: int = 0, rows: int = 1_000) -> StepBatchSampler:
    return StepBatchSampler(rows, 8, seed, first_step, LENGTHS[:rows])


def test_grouped_batches_cover_every_row_once_and_waste_little_padding():
    epoch = take(grouped(rows=997), 125)
    assert sorted(row for batch in epoch for row in batch.rows) == list(range(997))
    assert [len(batch.rows) for batch in epoch] == [8] * 124 + [5]
    plain = take(StepBatchSampler(997, 8, seed=0), 125)
    waste = [sum(int(LENGTHS[b.rows].max() * len(b.rows) - LENGTHS[b.rows].sum()) for b in e) for e in (epoch, plain)]
    assert waste[0] < 0.15 * waste[1]


def test_grouped_batches_are_not_in_order_of_length():
    longest = torch.tensor([float(LENGTHS[batch.rows].max()) for batch in take(grouped(), 125)])
    position = torch.arange(125.0)
    assert torch.corrcoef(torch.stack([longest, position]))[0, 1].abs() < 0.2


@pytest.mark.parametrize("start", [0, 1, 124, 125, 300])
def test_a_grouped_sampler_started_at_a_step_continues_the_uninterrupted_one(start: int):
    uninterrupted = take(grouped(), start + 3)
    assert take(grouped(first_step=start), 3) == uninterrupted[start:]
    assert grouped().batch(start) == uninterrupted[start]
    assert take(grouped(seed=1), 1) != uninterrupted[:1]


def test_the_sampler_has_no_length():
    with pytest.raises(TypeError):
        len(StepBatchSampler(10, 4, seed=0))  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "size"), [(0, 1), (3, 0)])
def test_empty_data_and_empty_batches_are_refused(rows: int, size: int):
    with pytest.raises(ValueError, match="at least one row"):
        StepBatchSampler(rows, size, seed=0)


def test_a_negative_start_is_refused():
    with pytest.raises(ValueError, match="-1"):
        iter(StepBatchSampler(3, 1, seed=0, first_step=-1))

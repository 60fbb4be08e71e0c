"""What each process of several gets of a batch: all rows once, padded alike, weighted by what losses average over."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import BatchSampler, SequentialSampler

from lowbit.data import StepBatchSampler, StepRows, build_datamodule
from lowbit.data.image_split import DecodedSplit
from lowbit.data.shares import UNITS, WEIGHTS, Share, ShareOfBatches, take_weights
from lowbit.data.splits import Batch, Split
from lowbit.settings.data import DataConfig, DataKind
from lowbit.soft_labels.crops import CropTransform
from lowbit.soft_labels.dataset import train_on_crops, training_images
from lowbit.soft_labels.writer import StoreSettings, write_store


class Rows(Split):
    """Texts of 1, 2, 3, ... tokens in a width of 8, the first half of each being starts of words."""

    def _batch(self, rows: torch.Tensor, step: int | None) -> Batch:
        place = torch.arange(8)
        lengths = rows[:, None] + 1
        return {
            "rows": rows,
            "attention_mask": (place < lengths).long(),
            "word_starts": place < (lengths + 1) // 2,
        }


def shares_of(split: Split, rows: list[int], world: int, step: int = 3) -> list[Batch]:
    return [split.__getitems__(StepRows(step, rows, Share(rank, world))) for rank in range(world)]


@pytest.mark.parametrize(("count", "world"), [(8, 2), (7, 2), (7, 3), (2, 2), (5, 5)])
def test_every_row_is_in_one_share_and_shares_differ_by_one_row(count: int, world: int):
    found = shares_of(Rows(torch.zeros(8)), list(range(count)), world)
    assert torch.cat([batch["rows"] for batch in found]).tolist() == list(range(count))
    sizes = [len(batch["rows"]) for batch in found]
    assert max(sizes) - min(sizes) <= 1
    for unit in UNITS:
        assert sum(batch[WEIGHTS][UNITS.index(unit)] for batch in found) == pytest.approx(world)


def test_weights_are_the_shares_of_rows_tokens_pairs_and_words():
    first, second = (take_weights(batch) for batch in shares_of(Rows(torch.zeros(8)), [0, 1, 2], 2))
    # one text of 1 token against two of 2 and 3; 1 word start against 1 + 2
    assert first == pytest.approx({"labels": 2 * 1 / 4, "rows": 2 / 3, "tokens": 2 * 1 / 6, "pairs": 2 * 1 / 14})
    assert second == pytest.approx({"labels": 2 * 3 / 4, "rows": 4 / 3, "tokens": 2 * 5 / 6, "pairs": 2 * 13 / 14})


def test_rank_without_a_row_takes_one_that_does_not_count():
    alone, idle = shares_of(Rows(torch.zeros(8)), [4], 2)[::-1]
    assert alone["rows"].tolist() == idle["rows"].tolist() == [4]
    assert take_weights(alone) == dict.fromkeys(UNITS, 2.0)
    assert take_weights(idle) == dict.fromkeys(UNITS, 0.0)


def test_whole_batch_has_no_weights():
    batch = Rows(torch.zeros(8)).__getitems__(StepRows(3, [0, 1]))
    assert take_weights(batch) is None


def test_sampler_gives_every_rank_the_rows_of_the_whole_batch():
    whole, *ranks = (
        list(islice(StepBatchSampler(10, 4, seed=1, share=share), 5)) for share in (None, Share(0, 2), Share(1, 2))
    )
    assert [[step.rows for step in rank] for rank in ranks] == [[step.rows for step in whole]] * 2


def test_batches_of_an_evaluation_stay_whole_and_are_dealt_once():
    batches = BatchSampler(SequentialSampler(range(11)), 2, drop_last=False)
    dealt = [ShareOfBatches(batches, Share(rank, 4)) for rank in range(4)]
    assert [len(share) for share in dealt] == [len(list(share)) for share in dealt] == [2, 2, 1, 1]
    assert sorted(rows for share in dealt for rows in share) == list(batches)


def test_decoded_images_of_a_share_are_those_of_the_whole_batch():
    class Images:
        def __init__(self) -> None:
            self.decoded: list[int] = []

        def pil(self, row: int) -> int:
            self.decoded.append(row)
            return row

    def augment(image: int) -> torch.Tensor:
        return image + torch.rand(2)

    images = Images()
    split = DecodedSplit(images, torch.arange(9), lambda image: torch.zeros(2), augment)
    whole = split.__getitems__(StepRows(3, [8, 2, 5]))
    images.decoded.clear()
    found = shares_of(split, [8, 2, 5], 2)
    assert images.decoded == [8, 2, 5], "no image is decoded for another rank"
    for name in whole:
        assert torch.equal(torch.cat([batch[name] for batch in found]), whole[name])
    assert [take_weights(batch)["rows"] for batch in found] == pytest.approx([2 / 3, 4 / 3])


def test_crops_of_a_share_are_those_of_the_whole_batch(tmp_path: Path):
    config = DataConfig(name="digits", kind=DataKind.digits, train_size=6, eval_size=10, batch_size=5, num_crops=2)
    images = training_images(build_datamodule(config, seed=0))
    settings = StoreSettings("digits", "t", 10, CropTransform(8), crops=3, label_type="smoothing")
    write_store(images, lambda: lambda pixels: pixels.flatten(1)[:, 20:30], tmp_path / "store", settings)
    config.soft_labels = str(tmp_path / "store")
    split = train_on_crops(build_datamodule(config, seed=0), config).splits.train
    whole = split.__getitems__(StepRows(3, [4, 0, 2]))  # 2, 2 and 1 crops
    found = shares_of(split, [4, 0, 2], 2)
    for name in whole:
        assert torch.equal(torch.cat([batch[name] for batch in found]), whole[name])
    assert [take_weights(batch)["labels"] for batch in found] == pytest.approx([2 * 2 / 5, 2 * 3 / 5])

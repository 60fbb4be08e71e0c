"""The published BERT runs as the stage runner takes them: batches, initial weights, a module that remembers its steps.

Model size, classes, step counts and learning rate come from index.json of the folder named by LOWBIT_VECTORS.
"""

import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from lowbit.training.modules import DistillationModule

FOLDER = Path(os.environ.get("LOWBIT_VECTORS") or Path(__file__).parents[1] / "golden") / "trajectories"
INDEX = json.loads((FOLDER / "index.json").read_text())
TOLERANCE = 1e-8
Batch = dict[str, torch.Tensor]


class Stream(torch.utils.data.IterableDataset[Batch]):
    """Batches from a recipe step on; the step index runs through both stages."""

    def __init__(self, data: "PublishedBatches") -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        for step in itertools.count(self.data.first_step):
            yield self.data.batch(step % self.data.period)


class PublishedBatches(L.LightningDataModule):
    """The batches of the run as the stage runner expects them."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors = load_file(FOLDER / "batches.safetensors")
        (period,) = re.findall(r"mod (\d+)", INDEX["batch_of_step"])
        self.period = int(period)
        self.first_step = 0

    def batch(self, index: int) -> Batch:
        suffix = f".{index}"
        return {key.removesuffix(suffix): t for key, t in self.tensors.items() if key.endswith(suffix)}

    def training_batches(self, step: int, count: int) -> Iterator[Batch]:
        return (self.batch((step + index) % self.period) for index in range(count))

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(Stream(self), batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        batch = self.batch(INDEX["eval_batch"])
        labels = torch.zeros(len(batch["input_ids"]), dtype=torch.long)
        return DataLoader([{**batch, "labels": labels}], batch_size=None)


class RecordingModule(DistillationModule):
    """DistillationModule that remembers what each training step returned."""

    def __init__(self, *args: Any, log: list[dict[str, float]]) -> None:
        super().__init__(*args)
        self.log_of_steps = log

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        result = super().training_step(batch, batch_idx)
        terms = {name: value.item() for name, value in result["terms"].items()}
        self.log_of_steps.append({"total": result["loss"].item(), **terms})
        return result


def initial_model() -> BertForSequenceClassification:
    sizes = dict(INDEX["model"])
    dropout = sizes.pop("dropout")
    config = BertConfig(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **sizes)
    model = BertForSequenceClassification(config).double()
    model.load_state_dict(load_file(FOLDER / "initial_weights.safetensors"))
    return model.eval()


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    scale = expected.abs().max().clamp(min=1e-30)
    return float((actual - expected).abs().max() / scale)

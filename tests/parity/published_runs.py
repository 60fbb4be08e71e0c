"""Published runs as the stage runner takes them: batches, initial weights, modules that remember their steps.

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

from lowbit.data import DataInfo
from lowbit.training.modules import DistillationModule, FinetuneModule

FOLDER = Path(os.environ.get("LOWBIT_VECTORS") or Path(__file__).parents[1] / "golden") / "trajectories"
INDEX = json.loads((FOLDER / "index.json").read_text())
TOLERANCE = 1e-8
Batch = dict[str, torch.Tensor]


class Stream(torch.utils.data.IterableDataset[Batch]):
    """Batches from a recipe step on; the step index runs through both stages."""

    def __init__(self, data: "PublishedSteps") -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        for step in itertools.count(self.data.first_step):
            yield self.data.batch(step % self.data.period)


class PublishedSteps(L.LightningDataModule):
    """The batches of a published run as the stage runner expects them; `batch` says what is in one."""

    info = DataInfo("published", "text", "classification", num_labels=2, metric="accuracy", train_size=1)

    def __init__(self, file: str, index: dict[str, Any]) -> None:
        super().__init__()
        self.tensors = load_file(FOLDER / file)
        (period,) = re.findall(r"mod (\d+)", index["batch_of_step"])
        self.period, self.first_step = int(period), 0
        self.evaluated = index["eval_batch"]

    def batch(self, index: int) -> Batch:
        raise NotImplementedError

    def training_batches(self, step: int, count: int) -> Iterator[Batch]:
        return (self.batch((step + index) % self.period) for index in range(count))

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(Stream(self), batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        batch = self.batch(self.evaluated)
        labels = torch.zeros(len(next(iter(batch.values()))), dtype=torch.long)
        return DataLoader([{**batch, "labels": labels}], batch_size=None)


class PublishedBatches(PublishedSteps):
    """The sentences of the BERT runs."""

    def __init__(self) -> None:
        super().__init__("batches.safetensors", INDEX)

    def batch(self, index: int) -> Batch:
        suffix = f".{index}"
        return {key.removesuffix(suffix): t for key, t in self.tensors.items() if key.endswith(suffix)}


class RecordingSteps(FinetuneModule):
    """FinetuneModule that remembers what each training step returned."""

    def __init__(self, *args: Any, log: list[dict[str, float]]) -> None:
        super().__init__(*args)
        self.log_of_steps = log

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        result = super().training_step(batch, batch_idx)
        terms = {name: value.item() for name, value in result["terms"].items()}
        self.log_of_steps.append({"total": result["loss"].item(), **terms})
        return result


class RecordingModule(RecordingSteps, DistillationModule):
    """The same with a teacher."""


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

"""What is measured: a model, its data and the first stage of a recipe; and the clock."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from lowbit.config.compose import compose, to_config
from lowbit.data import DataInfo, Splits, StepDataModule
from lowbit.data.splits import Split
from lowbit.modeling.build import build_model
from lowbit.recipes import Stage
from lowbit.settings.run import Config
from lowbit.training.modules import DistillationModule, FinetuneModule
from lowbit.training.quantization import calibrate_student
from lowbit.training.setup import make_datamodule, make_instrument

Batch = dict[str, Tensor]
PUBLISHED_SHAPE = "hidden=384,layers=6,heads=12,ffn=1536,vocab=30522,batch=32,length=64"
_SHAPE_KEYS = ("hidden", "layers", "heads", "ffn", "vocab", "batch", "length")


def load_workload(config: Config | None, shape: str | None) -> tuple[str, Config, StepDataModule]:
    """Return a name, a config and its data: those of an experiment, or TernaryBERT on one random batch of the shape.

    Raises:
        ValueError: a shape that cannot be read.
    """
    if config is not None:
        return config.name, config, make_datamodule(config, config.seed)
    name = shape or PUBLISHED_SHAPE
    sizes = _read_shape(name)
    config = to_config(compose(["data=agreement", "model=bert_micro", "method=ternarybert", "budget.steps=1000"]))
    config.model.hidden_size, config.model.num_layers = sizes["hidden"], sizes["layers"]
    config.model.num_heads, config.model.intermediate_size = sizes["heads"], sizes["ffn"]
    config.model.max_positions = max(512, sizes["length"])
    info = DataInfo("shape", "text", "classification", 2, "accuracy", 1000, vocab_size=sizes["vocab"])
    split = _SameBatch(_random_batch(sizes["batch"], sizes["length"], sizes["vocab"]), info.train_size)
    return name, config, StepDataModule(info, config.data, 0, lambda: Splits(split, split, None))


def build_module(config: Config, stage: Stage, data: StepDataModule) -> FinetuneModule:
    """Return the training module of a stage, with an untrained student and, if the stage has one, teacher."""
    model = build_model(config.model, data.info, seed=0)
    student = make_instrument(copy.deepcopy(model), stage.rules)
    calibrate_student(student, data, stage)
    metric = ("none", MeanMetric())  # nothing is evaluated
    if not stage.teacher:
        return FinetuneModule(student, stage, metric, seed=0)
    return DistillationModule(student, make_instrument(model), stage, metric, seed=0)


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(part: Callable[[], object], device: torch.device) -> float:
    """Return how long a call takes. Freeing what it returns is not part of the work."""
    wait_for(device)
    start = time.perf_counter()
    result = part()
    wait_for(device)
    elapsed = 1000 * (time.perf_counter() - start)
    del result
    return elapsed


class _SameBatch(Split):
    """A split that returns one batch whichever rows are asked for."""

    def __init__(self, batch: Batch, rows: int) -> None:
        super().__init__(torch.zeros(rows))
        self._content = batch

    def _batch(self, rows: Tensor, step: int | None) -> Batch:
        return dict(self._content)


def _random_batch(rows: int, length: int, vocabulary: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(length // 2, length + 1, (rows,), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {
        "input_ids": torch.randint(1, vocabulary, (rows, length), generator=generator) * mask,
        "attention_mask": mask,
        "token_type_ids": torch.zeros(rows, length, dtype=torch.long),
        "labels": torch.randint(2, (rows,), generator=generator),
    }


def _read_shape(shape: str) -> dict[str, int]:
    pairs = dict(item.partition("=")[::2] for item in shape.split(","))
    if set(pairs) != set(_SHAPE_KEYS) or not all(value.isdigit() for value in pairs.values()):
        example = "hidden=64,layers=2,heads=4,ffn=256,vocab=99,batch=8,length=16"
        raise ValueError(f"--shape {shape}: give {', '.join(_SHAPE_KEYS)} as whole numbers, for example {example}")
    return {key: int(value) for key, value in pairs.items()}

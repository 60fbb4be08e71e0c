"""Tiny models under recipes that are built from the shipped configs, and one real run of two stages."""

import copy
import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from tiny import TINY_TI
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from transformers import BertConfig, BertForSequenceClassification

from lowbit.config.compose import compose, to_config
from lowbit.config.validate import load, validate
from lowbit.files import read_json
from lowbit.modeling import Instrument, prepare
from lowbit.quantizers import calibrate
from lowbit.recipes import Stage, build_recipe
from lowbit.settings.run import Config
from lowbit.training.modules import DistillationModule
from lowbit.training.train import train

Batch = dict[str, Tensor]


@cache
def _composed(choices: tuple[str, ...]) -> DictConfig:
    return compose(list(choices))


@cache
def _config(overrides: tuple[str, ...]) -> Config:
    """Return the validated config; only choices of groups are composed, the slow part: single settings are put in."""
    keys = [override for override in overrides if "." in override.split("=")[0]]
    cfg = copy.deepcopy(_composed(tuple(o for o in overrides if o not in keys)))
    for key in keys:
        name, value = key.split("=", 1)
        content = yaml.safe_load(value)
        OmegaConf.update(cfg, name, content, merge=isinstance(content, dict))
    config = to_config(cfg)
    assert validate(config) == []
    return config


@pytest.fixture(scope="session")
def config_of() -> Callable[..., Config]:
    """Return a function: overrides -> the validated config."""
    return lambda *overrides: _config(overrides)


@pytest.fixture(scope="session")
def stages_of() -> Callable[..., tuple[Stage, ...]]:
    """Return a function: overrides -> the stages of their recipe, a hundred steps an epoch."""
    return lambda *overrides: build_recipe(_config(overrides), 100).stages


def make_bert(labels: int = 3, seed: int = 0, layers: int = 2, dropout: float = 0.0) -> nn.Module:
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
        num_labels=labels,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertForSequenceClassification(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def bert() -> Callable[..., nn.Module]:
    """Return a maker of tiny BERTs whose every parameter is random and of order 0.2; equal seeds, equal models."""
    return make_bert


@pytest.fixture
def batch() -> Batch:
    """Three sentences of 5, 3 and 4 tokens with class labels."""
    return make_batch()


def make_batch(padding: int = 0) -> Batch:
    mask = torch.arange(5) < torch.tensor([[5], [3], [4]])
    ids = torch.randint(1, 30, (3, 5), generator=torch.Generator().manual_seed(5)) * mask
    more = torch.zeros(3, padding, dtype=torch.long)
    return {
        "input_ids": torch.cat([ids, more], 1),
        "attention_mask": torch.cat([mask.long(), more], 1),
        "labels": torch.tensor([0, 1, 1]),
    }


@pytest.fixture(scope="session")
def padded() -> Callable[[int], Batch]:
    """Return a function: number -> the batch with so many more padding tokens."""
    return make_batch


@pytest.fixture
def student_of(batch: Batch) -> Callable[[Stage, nn.Module], Instrument]:
    """Return a function: stage, model -> the model under the stage's rules, calibrated on the batch, in eval mode."""

    def make(stage: Stage, model: nn.Module) -> Instrument:
        instrument = prepare(model, stage.rules)
        calibrate(model, [batch], instrument.run)
        model.eval()
        return instrument

    return make


@pytest.fixture
def distil(student_of: Callable[[Stage, nn.Module], Instrument]) -> Callable[..., DistillationModule]:
    """Return a function: stage, student, teacher -> the training module of the stage."""

    def make(stage: Stage, student: nn.Module, teacher: nn.Module) -> DistillationModule:
        metric = ("accuracy", MulticlassAccuracy(3))
        return DistillationModule(student_of(stage, student), prepare(teacher), stage, metric, seed=1)

    return make


@pytest.fixture(scope="session")
def replica() -> Callable[[nn.Module], nn.Module]:
    """Return a function: module -> what DataParallel makes of it; its parameters are plain tensors."""

    def make(module: nn.Module) -> nn.Module:
        copy = module._replicate_for_data_parallel()
        for name, child in module._modules.items():
            copy._modules[name] = None if child is None else make(child)
        for name, parameter in module._parameters.items():
            object.__setattr__(copy, name, None if parameter is None else parameter * 1)
        return copy

    return make


@dataclass(frozen=True)
class TwoStageRun:
    """What a run of TI-G of 9 + 9 steps, evaluated every 4 steps, left and did on its way.

    Attributes:
        folder: of the run.
        losses: the total of every step, as the training step computed it.
        evaluated: for every evaluation of a batch: (stage, step, gradients were on).
        result: run.json.
        rows: of metrics.csv.
    """

    folder: Path
    losses: list[float]
    evaluated: list[tuple[str, int, bool]]
    result: dict[str, Any]
    rows: list[dict[str, str]]


@pytest.fixture(scope="session")
def two_stage_run(tmp_path_factory: pytest.TempPathFactory) -> TwoStageRun:
    outputs = tmp_path_factory.mktemp("run")
    losses: list[float] = []
    evaluated: list[tuple[str, int, bool]] = []
    computed, evaluate = DistillationModule.losses, DistillationModule.evaluate

    def recorded_losses(self: DistillationModule, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        total, terms = computed(self, batch, step)
        losses.append(total.item())
        return total, terms

    def recorded_evaluation(self: DistillationModule, batch: Batch, view: str) -> Tensor:
        logits_BC = evaluate(self, batch, view)
        evaluated.append((self.stage.name, self.global_step, logits_BC.requires_grad))
        return logits_BC

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationModule, "losses", recorded_losses)
        patch.setattr(DistillationModule, "evaluate", recorded_evaluation)
        train(*load([*TINY_TI, "trainer.threads=1", "trainer.eval_every=4", f"paths.outputs={outputs}"]))
    torch.set_num_threads(threads)
    (file,) = outputs.glob("runs/*/*/*/run.json")
    with (file.parent / "metrics.csv").open() as table:
        rows = list(csv.DictReader(table))
    return TwoStageRun(file.parent, losses, evaluated, read_json(file), rows)

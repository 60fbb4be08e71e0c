"""Regression and span extraction under TernaryBERT: every term compares with the teacher, and none reads the labels."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lowbit.config.validate import load
from lowbit.recipes import build_recipe
from lowbit.training.modules import DistillationModule
from lowbit.training.setup import make_datamodule, make_instrument, make_metric, make_model

Batch = dict[str, Tensor]
Modules = Callable[..., tuple[DistillationModule, Batch]]


@pytest.fixture
def module_of(tiny_bert: Path, glue: Path, squad: Path, tmp_path: Path) -> Modules:
    """Return a function: data set, overrides -> its module with a teacher of other weights, and a training batch."""

    def build(name: str, *overrides: str) -> tuple[DistillationModule, Batch]:
        folder = squad if name == "squad" else glue
        files = [f"model.path={tiny_bert}", f"data.dir={folder}", f"paths.outputs={tmp_path}"]
        run = [
            "method=ternarybert",
            "quantizer=w2a8",
            "budget={steps: 4, epochs: null}",
            "data.batch_size=4",
            "data.max_length=128",
        ]
        _, config = load([f"data={name}", "model=hf", *files, *run, "model.dropout=0", *overrides])
        data = make_datamodule(config, 1)
        (stage,) = build_recipe(config, data.steps_per_epoch).stages
        student, teacher = (make_model(config, data.info, seed) for seed in (1, 2))
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        models = make_instrument(student, stage.rules), make_instrument(teacher)
        module = DistillationModule(*models, stage, make_metric(data), seed=1)
        return module, next(iter(data.train_dataloader()))

    return build


def with_other_labels(batch: Batch) -> Batch:
    return {**batch, "labels": torch.ones_like(batch["labels"])}


@pytest.mark.parametrize("name", ["stsb", "squad"])
def test_labels_do_not_enter_the_distillation(name: str, module_of: Modules):
    module, batch = module_of(name)
    total, terms = module.losses(batch, 0)
    other_total, _ = module.losses(with_other_labels(batch), 0)
    assert set(terms) == {"logits", "hidden", "scores"}
    assert torch.equal(total, other_total)
    trained, labels = module_of(name, "method=qat_task")
    assert trained.losses(labels, 0)[0] != trained.losses(with_other_labels(labels), 0)[0]


def test_regression_compares_with_the_teachers_output(module_of: Modules):
    module, batch = module_of("stsb")
    _, terms = module.losses(batch, 0)
    student, teacher = (trace.logits.flatten().tolist() for trace in module.traces(batch, 0))
    expected = sum((a - b) ** 2 for a, b in zip(student, teacher, strict=True)) / len(student)
    assert len(student) == 4
    assert terms["logits"].item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_spans_compare_both_ends_with_the_teachers(reduction: str, module_of: Modules):
    module, batch = module_of("squad", f"method.losses.logits.reduction={reduction}")
    _, terms = module.losses(batch, 0)
    student, teacher = (trace.logits.double() for trace in module.traces(batch, 0))
    assert student.shape == (4, 2, batch["input_ids"].shape[1])
    entropies = -(teacher.exp() / teacher.exp().sum(-1, keepdim=True)) * student.log_softmax(-1)
    positions = 1 if reduction == "sum" else student.shape[-1]
    expected = (entropies[:, 0].sum() + entropies[:, 1].sum()) / 4 / positions
    assert terms["logits"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["stsb", "squad"])
def test_the_loss_falls_and_gradients_reach_the_head(name: str, module_of: Modules):
    module, batch = module_of(name)
    head: Any = module.student.qa_outputs if name == "squad" else module.student.classifier
    before = copy.deepcopy(head.weight)
    optimizer = torch.optim.AdamW(module.student.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        total, _ = module.losses(batch, 0)
        losses.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert not torch.equal(head.weight, before)
    assert all(parameter.grad is None for parameter in module.teacher.parameters())

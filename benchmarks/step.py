"""`lowbit bench step`: what a distillation step costs next to its parts, measured alternately in one process."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.workload import Batch, build_module, load_workload, milliseconds
from lowbit.config.budget import epoch_steps
from lowbit.losses import task_loss
from lowbit.modeling.build import build_model
from lowbit.modeling.families import family_of
from lowbit.recipes import build_recipe
from lowbit.settings.run import Config
from lowbit.training.environment import device_name, keep_freed_memory
from lowbit.training.modules import FinetuneModule
from lowbit.training.optimizers import build_optimizer, parameter_groups


def bench_step(config: Config | None, shape: str | None, rounds: int, threads: int | None) -> str:
    """Time (a) a plain fine-tuning step, (b) the teacher's forward, (c) the recipe's first stage; return the report.

    In float32, on the GPU if there is one. (a) is the untouched model with its own attention, cross-entropy and fused
    AdamW. (c) contains a teacher forward, the student's forward and backward under the quantizers, all loss terms,
    clipping and the optimizer.

    Raises:
        ValueError: a shape that cannot be read.
    """
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    name, config, data = load_workload(config, shape)
    stage = build_recipe(config, epoch_steps(data.info.train_size, config.data.batch_size)).stages[0]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = {key: tensor.to(device) for key, tensor in next(iter(data.train_dataloader())).items()}
    model = build_model(config.model, data.info, seed=0).to(device)
    parts = {
        "(a) fine-tuning step, fused AdamW": _plain_step(copy.deepcopy(model), batch),
        "(b) teacher forward": _teacher_forward(model, batch),
        f"(c) distillation step, {config.method.name}": _distillation_step(
            build_module(config, stage, data).to(device), batch
        ),
    }
    for call in parts.values():
        call()
    times: dict[str, list[float]] = {part: [] for part in parts}
    for _ in range(rounds):
        for part, call in parts.items():
            times[part].append(milliseconds(call, device))
    return _report(times, f"{name}; {device_name()}, torch {torch.__version__}, float32")


def _plain_step(model: nn.Module, batch: Batch) -> Callable[[], None]:
    family = family_of(model)
    optimizer = torch.optim.AdamW(parameter_groups(model.train(), 0.01), lr=1e-5, fused=True)

    def step() -> None:
        task_loss(family.call(model, batch), batch["labels"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _teacher_forward(model: nn.Module, batch: Batch) -> Callable[[], None]:
    family = family_of(model.eval())

    def forward() -> None:
        with torch.no_grad():
            family.call(model, batch)

    return forward


def _distillation_step(module: FinetuneModule, batch: Batch) -> Callable[[], None]:
    module.student.train()
    optimizer, _ = build_optimizer(module.student, module.stage.optimizer, lambda _: 1e-3)

    def step() -> None:
        module.losses(batch, 0)[0].backward()  # type: ignore[no-untyped-call]
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _report(times: dict[str, list[float]], what: str) -> str:
    lines = [what]
    for name, values in times.items():
        lines.append(f"  {name:<38} min {min(values):8.1f} ms   median {statistics.median(values):8.1f} ms")
    a, b, c = times.values()
    ratios = [z / (x + y) for x, y, z in zip(a, b, c, strict=True)]
    best = min(c) / (min(a) + min(b))
    lines.append(f"  c / (a + b): {best:.3f} of the minima, {statistics.median(ratios):.3f} median over rounds")
    return "\n".join(lines)

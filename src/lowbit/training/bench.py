"""`lowbit bench step`: what a distillation step costs beside its parts, measured alternately in one process."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lowbit.config.budget import epoch_steps
from lowbit.config.compose import compose, to_config
from lowbit.data import DataInfo
from lowbit.losses import task_loss
from lowbit.modeling import prepare
from lowbit.modeling.build import build_model
from lowbit.modeling.families import family_of
from lowbit.recipes import build_recipe
from lowbit.settings.run import Config
from lowbit.training.environment import device_name, keep_freed_memory
from lowbit.training.modules import DistillationModule
from lowbit.training.optimizers import build_optimizer, parameter_groups
from lowbit.training.setup import make_datamodule

Batch = dict[str, Tensor]
PUBLISHED_SHAPE = "hidden=384,layers=6,heads=12,ffn=1536,vocab=30522,batch=32,length=64"
_SHAPE_KEYS = ("hidden", "layers", "heads", "ffn", "vocab", "batch", "length")


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
    if config is None:
        what = shape or PUBLISHED_SHAPE
        config, info, batch = config_of_shape(what)
    else:
        data = make_datamodule(config, config.seed)
        info, batch = data.info, next(iter(data.train_dataloader()))
        what = config.name
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    model = build_model(config.model, info, seed=0).to(device)
    parts = {
        "(a) fine-tuning step, fused AdamW": _plain_step(copy.deepcopy(model), batch),
        "(b) teacher forward": _teacher_forward(copy.deepcopy(model), batch),
        f"(c) distillation step, {config.method.name}": _distillation_step(config, model, info, batch),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for part in parts.values():
        part()
    for _ in range(rounds):
        for name, part in parts.items():
            times[name].append(_time(part, device))
    return _report(times, f"{what}; {device_name()}, torch {torch.__version__}, float32")


def config_of_shape(shape: str) -> tuple[Config, DataInfo, Batch]:
    """Return a run of TernaryBERT with a model of the shape, its data set's facts and a batch.

    Raises:
        ValueError: a shape that cannot be read.
    """
    sizes = _read_shape(shape)
    config = to_config(compose(["data=agreement", "model=bert_micro", "method=ternarybert", "budget.steps=1000"]))
    config.model.hidden_size, config.model.num_layers = sizes["hidden"], sizes["layers"]
    config.model.num_heads, config.model.intermediate_size = sizes["heads"], sizes["ffn"]
    config.model.max_positions = max(512, sizes["length"])
    info = DataInfo("shape", "text", "classification", 2, "accuracy", 1000, vocab_size=sizes["vocab"])
    rows, length = sizes["batch"], sizes["length"]
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(length // 2, length + 1, (rows,), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    batch = {
        "input_ids": torch.randint(1, sizes["vocab"], (rows, length), generator=generator) * mask,
        "attention_mask": mask,
        "token_type_ids": torch.zeros(rows, length, dtype=torch.long),
        "labels": torch.randint(2, (rows,), generator=generator),
    }
    return config, info, batch


def _read_shape(shape: str) -> dict[str, int]:
    pairs = dict(item.partition("=")[::2] for item in shape.split(","))
    if set(pairs) != set(_SHAPE_KEYS) or not all(value.isdigit() for value in pairs.values()):
        example = "hidden=64,layers=2,heads=4,ffn=256,vocab=99,batch=8,length=16"
        raise ValueError(f"--shape {shape}: give {', '.join(_SHAPE_KEYS)} as whole numbers, for example {example}")
    return {key: int(value) for key, value in pairs.items()}


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


def _distillation_step(config: Config, model: nn.Module, info: DataInfo, batch: Batch) -> Callable[[], None]:
    stage = build_recipe(config, epoch_steps(info.train_size, config.data.batch_size)).stages[0]
    student, teacher = prepare(copy.deepcopy(model), stage.rules), prepare(model)
    module = DistillationModule(student, teacher, stage, ("none", MeanMetric()), seed=0)  # nothing is evaluated
    module.student.train()
    optimizer, _ = build_optimizer(module.student, stage.optimizer, lambda _: 1e-3)

    def step() -> None:
        module.losses(batch, 0)[0].backward()  # type: ignore[no-untyped-call]
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _time(part: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    part()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def _report(times: dict[str, list[float]], what: str) -> str:
    lines = [what]
    for name, values in times.items():
        lines.append(f"  {name:<38} min {min(values):8.1f} ms   median {statistics.median(values):8.1f} ms")
    a, b, c = times.values()
    ratios = [z / (x + y) for x, y, z in zip(a, b, c, strict=True)]
    best = min(c) / (min(a) + min(b))
    lines.append(f"  c / (a + b): {best:.3f} of the minima, {statistics.median(ratios):.3f} median over rounds")
    return "\n".join(lines)

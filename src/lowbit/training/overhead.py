"""`lowbit bench job`: what a run costs beside its arithmetic, before the first step and in every step."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import MeanMetric

from lowbit.data import DataInfo, Splits, StepDataModule
from lowbit.data.splits import Split
from lowbit.modeling.build import build_model
from lowbit.recipes import Stage, build_recipe
from lowbit.settings.run import Config
from lowbit.training.bench import PUBLISHED_SHAPE, config_of_shape
from lowbit.training.environment import device_name, keep_freed_memory, process_age
from lowbit.training.loggers import MetricsFile
from lowbit.training.modules import DistillationModule, FinetuneModule
from lowbit.training.optimizers import build_optimizer
from lowbit.training.quantization import calibrate_student
from lowbit.training.schedules import build_schedule
from lowbit.training.setup import make_datamodule, make_instrument
from lowbit.training.stage_runner import build_trainer, stage_callbacks

Batch = dict[str, Tensor]
_WARM_UP = 3


def bench_job(config: Config | None, shape: str | None, rounds: int, threads: int | None) -> str:
    """Train the recipe's first stage and, after each of its steps, run one of a bare loop; return the report.

    The bare loop has a model, an optimizer and batches of its own and does the same arithmetic: teacher, student, loss
    terms, backward pass, clipping, update, learning rate. What the run has beside it are Lightning, logs, checkpoints,
    the check for losses that are not finite, and the progress file.

    Raises:
        ValueError: a shape that cannot be read.
    """
    marks = {"imports and config": process_age()}
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    if config is None:
        what = shape or PUBLISHED_SHAPE
        config, info, batch = config_of_shape(what)
        data = _same_batch(config, info, batch)
    else:
        what, data = config.name, make_datamodule(config, config.seed)
    steps = rounds + _WARM_UP
    stage = replace(build_recipe(config, data.steps_per_epoch).stages[0], steps=steps, first_step=0)
    module, twin = (_module(config, stage, data) for _ in range(2))
    marks["data and models"] = process_age()
    settings = replace(config.trainer, eval_every=None, progress=False)
    with TemporaryDirectory() as folder:
        callbacks, _ = stage_callbacks(settings, stage, Path(folder))
        beside = _Beside(_bare_steps(twin, stage, data))
        trainer = build_trainer(settings, steps, [*callbacks, beside], [MetricsFile(Path(folder))])
        trainer.fit(module, datamodule=data)
    marks["trainer"] = beside.first_step
    return _report(beside, marks, f"{what}, {config.method.name}; {device_name()}, torch {torch.__version__}")


class _Beside(Callback):
    """Runs a bare step after each step of the trainer and measures both, by the clock and in CPU time.

    A step of the trainer lasts from the end of one bare step to the start of the next.
    """

    def __init__(self, bare: Iterator[None]) -> None:
        self.ours: list[tuple[float, float]] = []
        self.bare: list[tuple[float, float]] = []
        self.first_step: float | None = None
        self._bare = bare
        self._since: tuple[float, float] | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        """Note when training begins."""
        if self.first_step is None:
            self.first_step = process_age()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Run a bare step."""
        between = self._now(trainer)
        next(self._bare)
        after = self._now(trainer)
        if self._since is not None and trainer.global_step > _WARM_UP:
            self.ours.append((between[0] - self._since[0], between[1] - self._since[1]))
            self.bare.append((after[0] - between[0], after[1] - between[1]))
        self._since = after

    @staticmethod
    def _now(trainer: L.Trainer) -> tuple[float, float]:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


class _SameBatch(Split):
    """A split that gives one batch whatever is asked of it."""

    def __init__(self, batch: Batch, rows: int) -> None:
        super().__init__(torch.zeros(rows))
        self._content = batch

    def _batch(self, rows: Tensor, step: int | None) -> Batch:
        return dict(self._content)


def _same_batch(config: Config, info: DataInfo, batch: Batch) -> StepDataModule:
    split = _SameBatch(batch, info.train_size)
    return StepDataModule(info, config.data, 0, lambda: Splits(split, split, None))


def _module(config: Config, stage: Stage, data: StepDataModule) -> FinetuneModule:
    model = build_model(config.model, data.info, seed=0)
    student = make_instrument(copy.deepcopy(model), stage.rules)
    calibrate_student(student, data, stage)
    metric = ("none", MeanMetric())  # nothing is evaluated
    if not stage.teacher:
        return FinetuneModule(student, stage, metric, seed=0)
    return DistillationModule(student, make_instrument(model), stage, metric, seed=0)


def _bare_steps(module: FinetuneModule, stage: Stage, data: StepDataModule) -> Iterator[None]:
    schedule = build_schedule(stage.scheduler, stage.steps)
    optimizer: Any = None
    for step, batch in enumerate(data.training_batches(0, stage.steps)):
        if optimizer is None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            module.to(device).student.train()
            optimizer, scheduler = build_optimizer(module.student, stage.optimizer, schedule)
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        module.quantization.begin(step, optimizer)
        module.losses(moved, step)[0].backward()  # type: ignore[no-untyped-call]
        module.clip_gradients_of_stage()
        optimizer.step()
        module.quantization.after_update(step, stage.optimizer.lr * schedule(step))
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad()
        yield


def _report(beside: _Beside, marks: dict[str, float | None], what: str) -> str:
    lines = [what]
    parts: tuple[tuple[str, Callable[[tuple[float, float]], float]], ...] = (
        ("clock", lambda pair: pair[0]),
        ("CPU time", lambda pair: pair[1]),
    )
    for name, part in parts:
        ours, bare = ([1000 * part(pair) for pair in pairs] for pairs in (beside.ours, beside.bare))
        ratio = statistics.median(o / b for o, b in zip(ours, bare, strict=True))
        lines.append(
            f"  {name:<9} a step of the run {statistics.median(ours):8.1f} ms, of the bare loop "
            f"{statistics.median(bare):8.1f} ms; ratio {ratio:.4f}, median of {len(ours)} rounds"
        )
    if all(age is not None for age in marks.values()):
        ages = [0.0, *(age for age in marks.values() if age is not None)]
        spans = (f"{name} {end - begin:.1f} s" for name, begin, end in zip(marks, ages, ages[1:], strict=False))
        lines.append(f"  start of the process to the first step: {ages[-1]:.1f} s ({', '.join(spans)})")
    return "\n".join(lines)

"""`lowbit bench job`: what a run costs on top of its arithmetic, before the first step and in every step."""

from __future__ import annotations

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
from torch.optim import Optimizer

from benchmarks.workload import build_module, load_workload, wait_for
from lowbit.data import StepDataModule
from lowbit.recipes import Stage, build_recipe
from lowbit.settings.run import Config
from lowbit.training.environment import device_name, keep_freed_memory, process_age
from lowbit.training.loggers import MetricsFile
from lowbit.training.modules import FinetuneModule
from lowbit.training.optimizers import build_optimizer
from lowbit.training.schedules import build_schedule
from lowbit.training.stage_runner import build_trainer, stage_callbacks

_WARM_UP = 3


def bench_job(config: Config | None, shape: str | None, rounds: int, threads: int | None) -> str:
    """Train the recipe's first stage and run one step of a bare loop after each of its steps; return the report.

    The bare loop has its own model, optimizer and batches and does the same arithmetic: teacher, student, loss terms,
    backward pass, clipping, update, learning rate. The run adds Lightning, logs, checkpoints, the check for losses that
    are not finite, and the progress file.

    Raises:
        ValueError: a shape that cannot be read.
    """
    marks: dict[str, float | None] = {"imports and config": process_age()}
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    name, config, data = load_workload(config, shape)
    steps = rounds + _WARM_UP
    stage = replace(build_recipe(config, data.steps_per_epoch).stages[0], steps=steps, first_step=0)
    module, twin = (build_module(config, stage, data) for _ in range(2))
    marks["data and models"] = process_age()
    settings = replace(config.trainer, eval_every=None, progress=False)
    with TemporaryDirectory() as folder:
        callbacks, _ = stage_callbacks(settings, stage, Path(folder), {})
        pairs = _StepPairs(_bare_steps(twin, stage, data))
        trainer = build_trainer(settings, steps, [*callbacks, pairs], [MetricsFile(Path(folder))])
        trainer.fit(module, datamodule=data)
    marks["trainer"] = pairs.first_step
    return _report(pairs, marks, f"{name}, {config.method.name}; {device_name()}, torch {torch.__version__}")


class _StepPairs(Callback):
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
        if self.first_step is None:
            self.first_step = process_age()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        between = self._now(trainer)
        next(self._bare)
        after = self._now(trainer)
        if self._since is not None and trainer.global_step > _WARM_UP:
            self.ours.append((between[0] - self._since[0], between[1] - self._since[1]))
            self.bare.append((after[0] - between[0], after[1] - between[1]))
        self._since = after

    @staticmethod
    def _now(trainer: L.Trainer) -> tuple[float, float]:
        wait_for(trainer.strategy.root_device)
        return time.perf_counter(), time.process_time()


def _bare_steps(module: FinetuneModule, stage: Stage, data: StepDataModule) -> Iterator[None]:
    schedule = build_schedule(stage.scheduler, stage.steps)
    optimizer: Optimizer | None = None
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


def _report(pairs: _StepPairs, marks: dict[str, float | None], what: str) -> str:
    lines = [what]
    parts: tuple[tuple[str, Callable[[tuple[float, float]], float]], ...] = (
        ("clock", lambda pair: pair[0]),
        ("CPU time", lambda pair: pair[1]),
    )
    for name, part in parts:
        ours, bare = ([1000 * part(pair) for pair in pairs] for pairs in (pairs.ours, pairs.bare))
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

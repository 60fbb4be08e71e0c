"""The loggers of a run: metrics.csv that survives interruptions, TensorBoard and Weights & Biases."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray

from lowbit.files import write_text
from lowbit.results.run_file import METRICS_FILE, read_rows, rows_of
from lowbit.settings.run import Config, LoggerMode
from lowbit.training.environment import end_children_with_this_process

if TYPE_CHECKING:
    from wandb import Run

_FLUSH_EVERY = 50


@dataclass(frozen=True)
class Tracked:
    """A run as its loggers see it: id, folder, plain config, names of the stages, and what it trains."""

    run_id: str
    folder: Path
    resolved: dict[str, Any]
    stages: Sequence[str]
    job_type: str = "train"


class MetricsFile(Logger):
    """Writes one row per logged step to metrics.csv, with columns for stage, step and every metric seen.

    Lightning's CSVLogger deletes the file of an earlier attempt. This logger continues the rows that a checkpoint or a
    finished stage kept: the file in the folder may be damaged, and may end anywhere.
    """

    name = "metrics"
    version = ""  # one file per run

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / METRICS_FILE
        self.rows: list[dict[str, Any]] = []  # the values of interrupted attempts are text
        self.stage = ""
        self._first_step: int | None = None
        self._unwritten = 0

    def start_stage(self, stage: str, first_step: int) -> None:
        """Name the stage of the next rows and drop rows from `first_step` on: they are logged again."""
        self.stage = stage
        self._first_step = first_step
        self.rows = [row for row in self.rows if int(row["step"]) < first_step]

    def take_up(self, text: str | None) -> None:
        """Continue after the rows in `text`. With None, take those of the file: older checkpoints keep no rows.

        Raises:
            ValueError: the file is damaged.
        """
        if text is not None:
            self.rows = list(rows_of(text))
            return
        try:
            rows = read_rows(self._path)
        except ValueError as error:
            raise ValueError(f"{error}, and the same command goes on without the rows of the steps before") from error
        self.rows = [row for row in rows if self._first_step is None or int(row["step"]) < self._first_step]

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass  # the config is in run.json

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = _without_epoch(metrics)
        if not values:
            return
        key = {"stage": self.stage, "step": int(step or 0)}
        last = self.rows[-1] if self.rows else {}
        if {k: str(last.get(k)) for k in key} == {k: str(v) for k, v in key.items()}:
            last.update(values)
        else:
            self.rows.append({**key, **values})
        self._unwritten += 1

    def save(self) -> None:
        """Write now and then: Lightning calls this after every logged step, and each write is of the whole file."""
        if self._unwritten >= max(_FLUSH_EVERY, len(self.rows) // 10):
            self.flush()

    def text(self) -> str:
        """Return the content of the file for the rows so far."""
        columns = list(dict.fromkeys(["stage", "step", *(k for row in self.rows for k in row)]))
        cells = ([row.get(c, "") for c in columns] for row in self.rows)
        lines = [",".join(f"{v:.8g}" if isinstance(v, float) else str(v) for v in line) for line in (columns, *cells)]
        return "\n".join([*lines, ""])

    def flush(self) -> None:
        """Write the file, atomically."""
        write_text(self._path, self.text())
        self._unwritten = 0

    def finalize(self, status: str) -> None:
        self.flush()


class TensorBoardRun(TensorBoardLogger):
    """Lightning's TensorBoardLogger in the run's folder; a resumed run hides the steps that it logs again."""

    def __init__(self, folder: Path, stages: Sequence[str]) -> None:
        super().__init__(folder, name="tensorboard", version="")
        self._stages = list(stages)

    def start_stage(self, stage: str, first_step: int) -> None:
        """Mark where the stage begins."""
        if self._experiment is None and Path(self.log_dir).exists():
            self._kwargs["purge_step"] = first_step
        self.log_metrics({"phase/stage": self._stages.index(stage)}, first_step)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(_without_epoch(metrics), int(step or 0))

    def save(self) -> None:
        pass  # the writer flushes by itself, and the config is in run.json

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Write the values as one table."""
        self.log_table("summary", ["", ""], [list(item) for item in values.items()], step=0)

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], *, step: int) -> None:
        """Write a table as text."""
        lines = [columns, ["---"] * len(columns), *data]
        self.experiment.add_text(key, "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines), step)

    def log_image(self, key: str, images: list[NDArray[Any]], step: int) -> None:
        """Write pictures (HWC, RGB in bytes)."""
        for image_HWC in images:
            self.experiment.add_image(key, image_HWC, step, dataformats="HWC")


class WandbRun(WandbLogger):
    """Lightning's WandbLogger with the steps of the recipe as W&B's steps.

    Lightning lets W&B count the steps, so that steps after a checkpoint would be logged twice. Online, W&B refuses the
    steps that it has, and the numbers are the same.
    """

    def __init__(self, run: Run, stages: Sequence[str]) -> None:
        super().__init__(experiment=run)
        self._stages = list(stages)
        self._stage: dict[str, Any] = {}

    def start_stage(self, stage: str, first_step: int) -> None:
        """Name the stage of the next rows."""
        self._stage = {"phase/stage": self._stages.index(stage), "phase/name": stage}

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if values := _without_epoch(metrics):
            self.experiment.log({**self._stage, **values}, step=int(step or 0))

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Set the values of the run's page and of the table of runs."""
        self.experiment.summary.update(dict(values))


def _without_epoch(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name != "epoch"}


def build_loggers(config: Config, tracked: Tracked) -> list[Logger]:
    """Return metrics.csv, TensorBoard if asked for and, unless disabled, one W&B run.

    Raises:
        ValueError: W&B refuses the run.
    """
    tensorboard = TensorBoardRun(tracked.folder, tracked.stages) if config.logger.tensorboard else None
    loggers = [MetricsFile(tracked.folder), tensorboard, open_wandb(config, tracked)]
    return [logger for logger in loggers if logger is not None]


def wandb_mode(mode: LoggerMode) -> str:
    """Resolve `auto`: WANDB_MODE if set, else online with a key or under an agent, else offline."""
    if mode is not LoggerMode.auto:
        return mode.name
    if from_environment := os.environ.get("WANDB_MODE"):
        return {"dryrun": "offline", "run": "online"}.get(from_environment, from_environment)
    return "online" if os.environ.get("WANDB_API_KEY") or under_agent() else "offline"


def under_agent() -> bool:
    """Whether `wandb agent` started this process: the agent has then chosen the run's id, project and entity."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def open_wandb(config: Config, tracked: Tracked) -> WandbRun | None:
    """Open the W&B run of a job; None if W&B is disabled, or if an agent's run belongs to another job.

    Raises:
        ValueError: W&B refuses the run, for example without a key.
    """
    mode, agent = wandb_mode(config.logger.mode), under_agent()
    if mode == "disabled" or (agent and tracked.job_type != "train"):
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    settings = {"console": "off", "silent": True, "disable_git": True, "disable_code": True, "mode": mode}
    try:
        run = wandb.init(
            id=None if agent else tracked.run_id,
            project=None if agent else config.logger.project,
            entity=None if agent else config.logger.entity,
            name=f"{config.name}-s{config.seed}" if tracked.job_type == "train" else f"{config.data.name}/teacher",
            group=config.sweep or config.name,
            job_type=tracked.job_type,
            tags=[config.data.name, config.model.name, config.method.name, config.quantizer.name, *config.logger.tags],
            config={**tracked.resolved, "run_id": tracked.run_id},
            dir=str(tracked.folder),
            resume="allow",
            settings={**settings, "reinit": "finish_previous"},
        )
    except wandb.Error as error:
        raise ValueError(
            f"W&B, logger.mode={config.logger.mode.name}: {error}. Run `wandb login`, or choose logger.mode=offline"
        ) from error
    end_children_with_this_process("wandb-core")  # it looks for its parent only every half minute
    return WandbRun(run, tracked.stages)


def finish_wandb(*, failed: bool) -> None:
    """Close the W&B run of a job, so that nothing leaks into the next job of this process."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))

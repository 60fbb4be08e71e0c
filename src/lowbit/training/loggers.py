"""Loggers: metrics.csv that survives interruptions, and Weights & Biases."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from lowbit.config.schema import Config, LoggerMode
from lowbit.results import write_text

METRICS_FILE = "metrics.csv"
_FLUSH_EVERY = 50


class MetricsFile(Logger):
    """One row per logged step in metrics.csv; columns are stage, step and every metric seen.

    Lightning's CSVLogger deletes the file of the attempt before. This one keeps it, less the rows that the resumed
    run will write again.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / METRICS_FILE
        self._rows: list[dict[str, Any]] = []
        self.stage = ""
        self._unwritten = 0
        self._checkpointed = False
        if self._path.exists():
            with self._path.open(newline="") as file:
                self._rows = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]

    def start_stage(self, stage: str, first_step: int) -> None:
        """Name the stage of the coming rows and drop rows from `first_step` on: they will come again."""
        self.stage = stage
        self._rows = [row for row in self._rows if int(row["step"]) < first_step]

    @property
    def name(self) -> str:
        """Lightning's name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """One file per run, hence no versions."""
        return ""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the config is in run.json."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the step's row."""
        values = {k: v for k, v in metrics.items() if k != "epoch"}
        if not values:
            return
        key = {"stage": self.stage, "step": int(step or 0)}
        last = self._rows[-1] if self._rows else {}
        if {k: str(last.get(k)) for k in key} == {k: str(v) for k, v in key.items()}:
            last.update(values)
        else:
            self._rows.append({**key, **values})
        self._unwritten += 1

    def save(self) -> None:
        """Write now and then: Lightning calls this after every logged step, and each write is of the whole file."""
        if self._unwritten >= max(_FLUSH_EVERY, len(self._rows) // 10) or self._checkpointed:
            self.flush()
            self._checkpointed = False

    def keep_up(self) -> None:
        """Write now and at the next row: a checkpoint is being saved, and its own step is logged after it."""
        self.flush()
        self._checkpointed = True

    def flush(self) -> None:
        """Write the file, atomically."""
        columns = list(dict.fromkeys(["stage", "step", *(k for row in self._rows for k in row)]))
        lines = [columns, *([row.get(c, "") for c in columns] for row in self._rows)]
        write_text(self._path, "\n".join(",".join(_cell(v) for v in line) for line in lines) + "\n")
        self._unwritten = 0

    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.flush()


def _cell(value: Any) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def wandb_mode(mode: LoggerMode) -> str:
    """Resolve `auto`: online if a key is set, else offline."""
    if mode is LoggerMode.auto:
        return "online" if os.environ.get("WANDB_API_KEY") else "offline"
    return mode.name


def build_loggers(config: Config, run_id: str, folder: Path, resolved: dict[str, Any]) -> list[Logger]:
    """Return metrics.csv and, unless disabled, one W&B run whose id is the run id."""
    loggers: list[Logger] = [MetricsFile(folder)]
    mode = wandb_mode(config.logger.mode)
    if mode == "disabled":
        return loggers
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    settings = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True)
    wandb_logger = WandbLogger(
        project=config.logger.project,
        entity=config.logger.entity,
        id=run_id,
        name=f"{config.name}-s{config.seed}",
        group=config.sweep or config.name,
        job_type=config.method.name,
        tags=[config.data.name, config.model.name, config.quantizer.name, *config.logger.tags],
        offline=mode == "offline",
        save_dir=str(folder),
        resume="allow",
        log_model=False,
        settings=settings,
    )
    wandb_logger.log_hyperparams(resolved)
    return [*loggers, wandb_logger]


def finish_wandb(*, failed: bool) -> None:
    """Close the job's W&B run, so that nothing leaks into the next job of this process."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))

"""How far a stage is, for whoever watches its run from outside."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lowbit.results.run_file import PROGRESS_FILE, Progress, write_progress

SECONDS_BETWEEN = 1.0


class Heartbeat(Callback):
    """Write progress.json into the stage's folder, at most once a second, and remove it at the stage's end."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder = folder
        self._steps = steps
        self._next = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        """Write, if it is time; only then are values fetched from the device."""
        now = time.monotonic()
        if now < self._next or not trainer.is_global_zero:
            return
        self._next = now + SECONDS_BETWEEN
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val")}
        stage = str(getattr(pl_module, "stage_name", ""))
        progress = Progress(
            stage=stage,
            phase=str(getattr(pl_module, "phase", stage)),
            step=trainer.global_step,
            steps=self._steps,
            values={"loss": float(outputs["loss"]), **values},
        )
        write_progress(self._folder, progress)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove it."""
        (self._folder / PROGRESS_FILE).unlink(missing_ok=True)

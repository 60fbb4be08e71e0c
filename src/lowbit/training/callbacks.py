"""Lightning callbacks: step times and the line or bar that shows them."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar


class StepTimer(Callback):
    """Count training seconds, also across interruptions: the count travels in the checkpoint."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.step_ms = 0.0
        self._since: float | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop the clock."""
        assert self._since is not None
        elapsed = time.perf_counter() - self._since
        self.seconds += elapsed
        self.step_ms = 1000 * elapsed if self.step_ms == 0 else 0.9 * self.step_ms + 100 * elapsed

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run continues from."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting."""
        self.seconds = state_dict["seconds"]


class PhaseBar(RichProgressBar):
    """Rich progress bar that also shows the current phase and the step time."""

    def __init__(self, timer: StepTimer) -> None:
        super().__init__(leave=False)
        self._timer = timer

    def _get_train_description(self, current_epoch: int) -> str:
        """Name the stage; a stage is one endless epoch to Lightning."""
        return str(getattr(self.trainer.lightning_module, "stage_name", f"epoch {current_epoch}"))

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Add phase and milliseconds per step."""
        metrics: dict[str, Any] = {"phase": getattr(pl_module, "phase", "")}
        metrics.update(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        metrics["ms/step"] = f"{self._timer.step_ms:.0f}"
        return metrics


class PhaseLines(Callback):
    """The same facts as ten plain lines a stage, for logs and pipes."""

    def __init__(self, timer: StepTimer, steps: int) -> None:
        self._timer = timer
        self._steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        """Print a line at every tenth of the stage."""
        step = trainer.global_step
        if step % max(self._steps // 10, 1) == 0 or step == self._steps:
            loss = float(outputs["loss"])
            phase = getattr(pl_module, "phase", "")
            print(f"  {phase} step {step}/{self._steps} loss {loss:.4f} {self._timer.step_ms:.0f} ms/step", flush=True)


def progress(enabled: bool, timer: StepTimer, steps: int) -> list[Callback]:
    """Return the progress display: a bar on a terminal, lines elsewhere, nothing if disabled."""
    if not enabled:
        return []
    return [PhaseBar(timer)] if sys.stdout.isatty() else [PhaseLines(timer, steps)]

"""Checkpoints of a stage: `last.ckpt`, always whole, always finite, with its digest and the rows of metrics.csv."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from lowbit.files import DamagedFileError, atomic_write, sha256
from lowbit.modeling.weights import not_finite
from lowbit.training.loggers import MetricsFile

CHECKPOINT = "last.ckpt"
_ROWS = "metrics.csv"  # key of the rows in a checkpoint
_SEAL = b"lowbit sha256 "  # at the end of the file, before the digest of what comes before
_SEAL_SIZE = len(_SEAL) + 64


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target and rename; compare the digest when reading.

    Lightning's own write goes through the temporary folder of the system and is a plain copy where that is another
    file system: a process that dies in it leaves a torn file under the checkpoint's name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save atomically, with a digest."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with atomic_write(Path(path)) as temporary, temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.write(_SEAL + sha256(buffer.getbuffer()).encode())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Load a whole checkpoint."""
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint; those of earlier versions have no digest to compare.

    Raises:
        DamagedFileError: the file is not whole.
    """
    content = path.read_bytes()
    seal = content[-_SEAL_SIZE:]
    if seal.startswith(_SEAL) and seal[len(_SEAL) :] != sha256(memoryview(content)[:-_SEAL_SIZE]).encode():
        raise DamagedFileError(path, f"{path} is damaged: its content does not have the SHA-256 that was written")
    try:
        checkpoint: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        int(checkpoint["global_step"])
    except Exception as error:  # zip, pickle and torch raise what they like, with advice that does not fit here
        raise DamagedFileError(path, f"{path} is cut off or no checkpoint") from error
    return checkpoint


class LastCheckpoint(Callback):
    """Keep `last.ckpt` up to date every so many steps, and never replace it by weights that are not finite.

    The rows of metrics.csv travel in it, so that a resumed run goes on with those that belong to its steps.

    Args:
        folder: the stage's.
        every: steps from one checkpoint to the next.
        eval_every: steps from one evaluation to the next; None: there is none.
    """

    def __init__(self, folder: Path, every: int, eval_every: int | None) -> None:
        self._path = folder / CHECKPOINT
        self._every = every
        self._eval_every = eval_every
        self._is_due = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save if it is time and the weights are finite; where the step is evaluated, after that.

        A resumed run does not evaluate a step again: what came of it must be in the checkpoint.
        """
        step = trainer.global_step
        if step % self._every or not_finite(dict(pl_module.named_parameters())) is not None:
            return  # in the second case, the next loss is not finite either and stops the run
        self._is_due = True
        if self._eval_every is None or step % self._eval_every:
            for metrics_file in _metrics_files(trainer):
                _log_this_step(trainer, metrics_file)
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after the evaluation of a step whose checkpoint is due."""
        if self._is_due:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        self._is_due = False
        for metrics_file in _metrics_files(trainer):
            metrics_file.flush()  # whoever watches the run reads the file
        trainer.save_checkpoint(self._path)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the rows."""
        for metrics_file in _metrics_files(trainer):
            checkpoint[_ROWS] = metrics_file.text()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the rows."""
        for metrics_file in _metrics_files(trainer):
            metrics_file.take_up(checkpoint.get(_ROWS))


def _metrics_files(trainer: L.Trainer) -> list[MetricsFile]:
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsFile)]


def _log_this_step(trainer: L.Trainer, metrics_file: MetricsFile) -> None:
    """Log what Lightning logs of the step only after the hooks of its end: the row must be in the checkpoint."""
    connector: Any = trainer._logger_connector
    if connector.should_update_logs:
        values = {name: float(value) for name, value in connector.metrics["log"].items()}
        metrics_file.log_metrics(values, int(values.pop("step")))


def step_of(checkpoint: Path) -> int:
    """Return the stage's step at which the checkpoint was written; 0 if there is none.

    Raises:
        DamagedFileError: the file is not whole.
    """
    return int(read_checkpoint(checkpoint)["global_step"]) if checkpoint.exists() else 0

"""Checkpoints of a stage: `last.ckpt`, always whole, always finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from lowbit.files import replacing
from lowbit.training.loggers import MetricsFile

CHECKPOINT = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target and rename.

    Lightning's own write goes through the temporary folder of the system and is a plain copy where that is another
    file system: a process that dies in it leaves a torn file under the checkpoint's name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save atomically."""
        with replacing(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


class LastCheckpoint(ModelCheckpoint):
    """Keep `last.ckpt` up to date every so many steps, and never replace it by weights that are not finite."""

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__(
            dirpath=folder,
            filename=Path(CHECKPOINT).stem,
            every_n_train_steps=every,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )
        self._every = every

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Save if it is time and the weights are finite; metrics.csv reaches at least as far as the checkpoint."""
        if trainer.global_step % self._every:
            return
        if not all(torch.isfinite(p).all() for p in pl_module.parameters()):
            return  # the next loss is not finite either and stops the run
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.keep_up()
        super().on_train_batch_end(trainer, pl_module, *args)


def step_of(checkpoint: Path) -> int:
    """Return the stage's step at which the checkpoint was written; 0 if there is none.

    Raises:
        ValueError: the file cannot be read.
    """
    if not checkpoint.exists():
        return 0
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])
    except Exception as error:
        raise ValueError(f"{checkpoint} cannot be read ({error}); delete it to start this stage anew") from error

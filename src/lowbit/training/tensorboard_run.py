"""TensorBoard's event files in the run's folder.

Lightning's TensorBoardLogger has to know when it is built from where a resumed run logs again; this is known later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

TENSORBOARD_FOLDER = "tensorboard"


class TensorBoardRun(Logger):
    """Logs by the steps of the recipe; a resumed run hides what the interrupted attempt logged after its checkpoint.

    Args:
        folder: the run's.
        stages: names of the recipe's stages, in order.
    """

    def __init__(self, folder: Path, stages: Sequence[str]) -> None:
        super().__init__()
        self._folder = folder / TENSORBOARD_FOLDER
        self._stages = list(stages)
        self._writer: Any = None

    @property
    def name(self) -> str:
        """Lightning's name of the logger."""
        return TENSORBOARD_FOLDER

    @property
    def version(self) -> str:
        """One folder per run, hence no versions."""
        return ""

    def _open(self, again_from: int | None = None) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._folder, purge_step=again_from)
        return self._writer

    @rank_zero_only
    def start_stage(self, stage: str, first_step: int) -> None:
        """Mark where the stage begins."""
        writer = self._open(first_step if self._folder.exists() else None)
        writer.add_scalar("phase/stage", self._stages.index(stage), first_step)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the config is in run.json."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values at the step."""
        for key, value in metrics.items():
            if key != "epoch":
                self._open().add_scalar(key, value, int(step or 0))

    @rank_zero_only
    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Write the values as one text."""
        self.log_table("summary", ["", ""], list(map(list, values.items())), 0)

    @rank_zero_only
    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Write the table as text."""
        lines = [columns, ["---"] * len(columns), *rows]
        self._open().add_text(name, "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines), step)

    @rank_zero_only
    def log_image(self, name: str, image_HWC: NDArray[Any], step: int) -> None:
        """Write a picture, RGB in bytes."""
        self._open().add_image(name, image_HWC, step, dataformats="HWC")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left; what is logged after this goes into a further file."""
        if self._writer is not None:
            self._writer.close()

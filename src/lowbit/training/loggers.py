"""The loggers of a run: metrics.csv that survives interruptions, TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.loggers import Logger
from numpy.typing import NDArray

from lowbit.files import write_text
from lowbit.results.run_file import METRICS_FILE, read_rows, rows_of
from lowbit.settings.run import Config
from lowbit.training.tensorboard_run import TensorBoardRun
from lowbit.training.wandb_run import Tracked, open_wandb

_FLUSH_EVERY = 50


@runtime_checkable
class Staged(Protocol):
    """A logger that is told which stage begins, and at which step of the recipe."""

    def start_stage(self, stage: str, first_step: int) -> None:
        """Name the stage of the coming rows."""


@runtime_checkable
class Showcase(Protocol):
    """A logger that shows more than numbers over steps."""

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Show values of the whole run."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Show a table."""

    def log_image(self, name: str, image_HWC: NDArray[Any], step: int) -> None:
        """Show a picture, RGB in bytes."""

    def finalize(self, status: str) -> None:
        """Write what is left."""


class MetricsFile(Logger):
    """One row per logged step in metrics.csv; columns are stage, step and every metric seen.

    Lightning's CSVLogger deletes the file of the attempt before. This one is given the rows that a checkpoint or a
    finished stage kept: what lies in the folder may be damaged, and may end anywhere.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / METRICS_FILE
        self._rows: list[dict[str, Any]] = []
        self.stage = ""
        self._first_step: int | None = None
        self._unwritten = 0

    def start_stage(self, stage: str, first_step: int) -> None:
        """Name the stage of the coming rows and drop rows from `first_step` on: they will come again."""
        self.stage = stage
        self._first_step = first_step
        self._rows = [row for row in self._rows if int(row["step"]) < first_step]

    def take_up(self, text: str | None) -> None:
        """Go on with rows that were kept; None: an earlier version kept none but those of the file in the folder.

        Raises:
            ValueError: the file is damaged.
        """
        if text is not None:
            self._rows = list(rows_of(text))
            return
        try:
            rows = read_rows(self._path)
        except ValueError as error:
            raise ValueError(f"{error}, and the same command goes on without the rows of the steps before") from error
        self._rows = [row for row in rows if self._first_step is None or int(row["step"]) < self._first_step]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows so far, those of interrupted attempts as text."""
        return self._rows

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
        if self._unwritten >= max(_FLUSH_EVERY, len(self._rows) // 10):
            self.flush()

    def text(self) -> str:
        """Return what the file holds of the rows so far."""
        columns = list(dict.fromkeys(["stage", "step", *(k for row in self._rows for k in row)]))
        lines = [columns, *([row.get(c, "") for c in columns] for row in self._rows)]
        return "\n".join(",".join(_cell(v) for v in line) for line in lines) + "\n"

    def flush(self) -> None:
        """Write the file, atomically."""
        write_text(self._path, self.text())
        self._unwritten = 0

    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.flush()


def _cell(value: Any) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def build_loggers(config: Config, tracked: Tracked) -> list[Logger]:
    """Return metrics.csv, TensorBoard if asked for and, unless disabled, one W&B run.

    Raises:
        ValueError: W&B refuses the run.
    """
    loggers: list[Logger] = [MetricsFile(tracked.folder)]
    if config.logger.tensorboard:
        loggers.append(TensorBoardRun(tracked.folder, tracked.stages))
    wandb_run = open_wandb(config, tracked)
    return loggers if wandb_run is None else [*loggers, wandb_run]

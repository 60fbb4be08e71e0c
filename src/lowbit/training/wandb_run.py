"""One Weights & Biases run per job, offline unless told otherwise.

Lightning's WandbLogger lets W&B count the steps, so that what a resumed run computes again would be logged twice; it
takes over whichever run is open; and it sets WANDB_MODE for the rest of the process. Hence this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from lowbit.settings.run import Config, LoggerMode

_watched: dict[int, subprocess.Popen[bytes]] = {}  # W&B's service -> who ends it


@dataclass(frozen=True)
class Tracked:
    """What the loggers are told about a run: its id, folder, plain config, the names of its stages, what it trains."""

    run_id: str
    folder: Path
    resolved: dict[str, Any]
    stages: Sequence[str]
    job_type: str = "train"


class WandbRun(Logger):
    """Logs into an open W&B run, by the steps of the recipe; does nothing in the other processes of a run.

    Online, a resumed run logs no step again: W&B refuses those that it has, and the numbers are the same.
    """

    def __init__(self, run: Any, stages: Sequence[str]) -> None:
        super().__init__()
        self._run = run
        self._stages = list(stages)
        self._stage: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Lightning's name of the logger."""
        return "wandb"

    @property
    def version(self) -> str:
        """The id of the run at W&B."""
        return "" if self._run is None else str(self._run.id)

    def start_stage(self, stage: str, first_step: int) -> None:
        """Name the stage of the coming rows."""
        self._stage = {"phase/stage": self._stages.index(stage), "phase/name": stage}

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the config is given when the run is opened."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the step's row."""
        values = {k: v for k, v in metrics.items() if k != "epoch"}
        if values:
            self._run.log({**self._stage, **values}, step=int(step or 0))

    @rank_zero_only
    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Set what the run's page and the table of runs show."""
        self._run.summary.update(dict(values))

    @rank_zero_only
    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Add a table."""
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])}, step=step)

    @rank_zero_only
    def log_image(self, name: str, image_HWC: NDArray[Any], step: int) -> None:
        """Add a picture, RGB in bytes."""
        import wandb

        self._run.log({name: wandb.Image(image_HWC)}, step=step)


def wandb_mode(mode: LoggerMode) -> str:
    """Resolve `auto`: what WANDB_MODE says, else online if a key is set or an agent started the run, else offline."""
    if mode is not LoggerMode.auto:
        return mode.name
    said = os.environ.get("WANDB_MODE")
    if said:
        return {"dryrun": "offline", "run": "online"}.get(said, said)
    return "online" if os.environ.get("WANDB_API_KEY") or under_agent() else "offline"


def under_agent() -> bool:
    """Whether `wandb agent` started this process: the agent has then chosen the run's id, project and entity."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def open_wandb(config: Config, tracked: Tracked) -> WandbRun | None:
    """Open the job's W&B run; None if W&B is disabled, or if the agent's run is for another job than this.

    Raises:
        ValueError: W&B refuses, for want of a key for example.
    """
    mode = wandb_mode(config.logger.mode)
    if mode == "disabled" or (under_agent() and tracked.job_type != "train"):
        return None
    if getattr(rank_zero_only, "rank", 0):  # set by Lightning, unknown to its types
        return WandbRun(None, tracked.stages)
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    ours = {"id": tracked.run_id, "project": config.logger.project, "entity": config.logger.entity}
    try:
        run = wandb.init(
            **({} if under_agent() else ours),  # type: ignore[arg-type]
            name=f"{config.name}-s{config.seed}" if tracked.job_type == "train" else f"{config.data.name}/teacher",
            group=config.sweep or config.name,
            job_type=tracked.job_type,
            tags=[config.data.name, config.model.name, config.method.name, config.quantizer.name, *config.logger.tags],
            config={**tracked.resolved, "run_id": tracked.run_id},
            dir=str(tracked.folder),
            mode=mode,  # type: ignore[arg-type]
            resume="allow",
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True, reinit="finish_previous"
            ),
        )
    except wandb.Error as error:
        raise ValueError(
            f"W&B, logger.mode={config.logger.mode.name}: {error}. Run `wandb login`, or choose logger.mode=offline"
        ) from error
    _end_service_with_this_process()
    return WandbRun(run, tracked.stages)


def _end_service_with_this_process() -> None:
    """See that W&B's service ends as soon as this process does, even if that is killed.

    The service looks for its parent only every half minute. The shell waits for the end of a pipe that this process
    holds open; where there is no /proc, nothing is done.
    """
    for pid in _services() - _watched.keys():
        _watched[pid] = subprocess.Popen(
            ["/bin/sh", "-c", f"read _; grep -qs wandb-core /proc/{pid}/comm && kill -9 {pid}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def _services() -> set[int]:
    """Return the ids of W&B's services that are children of this process."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            start, _, rest = stat.read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        if "(wandb-core" in start and int(rest.split()[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def finish_wandb(*, failed: bool) -> None:
    """Close the job's W&B run, so that nothing leaks into the next job of this process."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))

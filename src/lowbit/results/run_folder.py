"""The files of a run folder besides run.json: who holds it, how it ended, and how far it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lowbit.files import read_json, write_json

LOCK_FILE = ".lock"
HOLDER_FILE = "holder.json"
ERROR_FILE = "error.log"
METRICS_FILE = "metrics.csv"
LOG_FILE = "job.log"  # what the job of a sweep prints
ATTEMPT_FILE = "attempt.json"
PROGRESS_FILE = "progress.json"
STAGE_FILE = "stage.json"  # of a finished stage, in the stage's folder


@dataclass(frozen=True)
class Attempt:
    """How the last process of a run ended, as the sweep saw it.

    `seconds` is its wall time; `whole` says that it began at step 0.
    """

    exit_code: int
    seconds: float
    whole: bool


@dataclass(frozen=True)
class Progress:
    """Where a stage is: its phase, `step` of `steps`, and the newest values by name."""

    stage: str
    phase: str
    step: int
    steps: int
    values: dict[str, float] = field(default_factory=dict)


def write_attempt(folder: Path, attempt: Attempt) -> None:
    """Record how a process of the run ended."""
    write_json(folder / ATTEMPT_FILE, asdict(attempt))


def read_attempt(folder: Path) -> Attempt | None:
    """Return how the last process ended, or None where no sweep has run it to an end."""
    content = _readable(folder / ATTEMPT_FILE)
    return None if content is None else Attempt(**content)


def write_progress(folder: Path, progress: Progress) -> None:
    """Replace the stage's progress; not synced to disk, since a lost one is written again a second later."""
    write_json(folder / PROGRESS_FILE, asdict(progress), sync=False)


def read_progress(folder: Path) -> Progress | None:
    """Return the progress of the stage that is being trained in a run folder (or a teacher's), or None."""
    files = [*folder.glob(f"stages/*/{PROGRESS_FILE}"), *folder.glob(PROGRESS_FILE)]
    dated = sorted((found for found in map(_dated, files) if found is not None), key=lambda pair: pair[0])
    content = _readable(dated[-1][1]) if dated else None
    return None if content is None else Progress(**content)


def _dated(path: Path) -> tuple[float, Path] | None:
    try:
        return path.stat().st_mtime, path
    except FileNotFoundError:  # its stage has just ended
        return None


def _readable(path: Path) -> dict[str, Any] | None:
    """Return a record that only helps to show a sweep; one that cannot be read is as good as none."""
    try:
        content = read_json(path)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None

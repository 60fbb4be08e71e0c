"""The state of a job, read from its run's folder."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lowbit.execution.jobs import Job
from lowbit.results.run_file import read_run
from lowbit.results.run_folder import (
    ERROR_FILE,
    HOLDER_FILE,
    LOCK_FILE,
    read_attempt,
    read_holder,
    read_progress,
    read_stage,
)

_INTERRUPTED = 130


class State(enum.Enum):
    """What a sweep does with a job: nothing if `done`, leave it alone if `running`, else run it."""

    done = "done"
    running = "running"
    failed = "failed"
    missing = "missing"


def state_of(job: Job) -> State:
    """Return the job's state."""
    if job.problems:
        return State.failed
    if result(job) is not None:
        return State.done
    if is_running(job.folder):
        return State.running
    attempt = read_attempt(job.folder)
    ended_badly = attempt is not None and attempt.exit_code not in (0, _INTERRUPTED)
    return State.failed if ended_badly or (job.folder / ERROR_FILE).exists() else State.missing


def result(job: Job) -> dict[str, Any] | None:
    """Return the content of the run.json of a finished run; None where there is none that tables could read."""
    try:
        run = read_run(job.folder)
    except ValueError:  # running the job says what is wrong with the file
        return None
    return run if run is not None and run["status"] == "finished" else None


def is_running(folder: Path) -> bool:
    """Return whether a live process holds the run.

    Taking the lock to find out could keep a run that starts in this instant from starting, hence only where the
    process that took it last may be alive.
    """
    lock = folder / LOCK_FILE
    if not lock.exists() or not (folder / HOLDER_FILE).exists():
        return False
    holder = read_holder(folder)
    if holder is not None and holder.is_gone:
        return False
    try:
        with FileLock(lock, blocking=False):
            return False
    except (Timeout, PermissionError):  # the latter: of another user, who may be running it
        return True


def steps_done(folder: Path) -> int:
    """Return how many steps of all its stages an unfinished run has behind it, as far as its files say."""
    progress = read_progress(folder)
    return sum(map(_steps_of, folder.glob("stages/*"))) + (0 if progress is None else progress.step)


def _steps_of(stage: Path) -> int:
    try:
        record = read_stage(stage)
    except ValueError:  # running the job says what is wrong with the file
        return 0
    return 0 if record is None else record.steps

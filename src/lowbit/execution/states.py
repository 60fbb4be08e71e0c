"""The state of a job, read from its run's folder."""

from __future__ import annotations

import enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lowbit.config.problems import explain
from lowbit.execution.jobs import Job
from lowbit.results.run_file import RUN_FILE, finished_run, read_run
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
    damaged = "damaged"
    missing = "missing"


def state_of(job: Job) -> State:
    """Return the job's state."""
    return State.failed if job.problems else state_of_run(job.folder)


def state_of_run(folder: Path) -> State:
    """Return the state of the run in a folder."""
    if _result(folder) is not None:
        return State.done
    if is_running(folder):
        return State.running
    if damage(folder) is not None:
        return State.damaged
    attempt = read_attempt(folder)
    ended_badly = attempt is not None and attempt.exit_code not in (0, _INTERRUPTED)
    return State.failed if ended_badly or (folder / ERROR_FILE).exists() else State.missing


def result(job: Job) -> dict[str, Any] | None:
    """Return the content of the run.json of a finished run; None where there is none that tables could read."""
    return _result(job.folder)


def _result(folder: Path) -> dict[str, Any] | None:
    try:
        status = (folder / RUN_FILE).stat()
    except OSError:
        return None
    return _finished(folder, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=10_000)  # a sweep looks at each of its runs several times
def _finished(folder: Path, modified: int, size: int) -> dict[str, Any] | None:
    return finished_run(folder)[0]


def damage(folder: Path) -> str | None:
    """Return what is wrong with the records of an unfinished run and what to do, or None."""
    try:
        read_run(folder)
        for stage in folder.glob("stages/*"):
            read_stage(stage)
    except (ValueError, OSError) as error:
        return explain(error)
    return None


def is_running(folder: Path) -> bool:
    """Return whether a live process holds the run.

    Taking the lock to find out could keep a run that starts in this instant from starting, hence only where the
    process that took it last may be alive.
    """
    lock = folder / LOCK_FILE
    holder = read_holder(folder)
    if holder is not None and holder.is_gone:
        return False
    try:
        if not lock.exists() or not (folder / HOLDER_FILE).exists():
            return False
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
    except (ValueError, OSError):  # see `damage`
        return 0
    return 0 if record is None else record.steps

"""The state of a job, read from its run's folder."""

from __future__ import annotations

import enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lowbit.config.problems import explain
from lowbit.execution.jobs import SweepJob
from lowbit.results.run_file import (
    ERROR_FILE,
    HOLDER_FILE,
    LOCK_FILE,
    RUN_FILE,
    finished_run,
    read_attempt,
    read_holder,
    read_progress,
    read_run,
    read_stage,
)

_INTERRUPTED = 130


class State(enum.Enum):
    """The state of a run. A sweep leaves runs alone that are `done` or `running`, and starts all others."""

    done = "done"
    running = "running"
    failed = "failed"
    damaged = "damaged"
    missing = "missing"


TO_RUN = (State.missing, State.damaged, State.failed)


def state_of(job: SweepJob) -> State:
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


def result(job: SweepJob) -> dict[str, Any] | None:
    """Return the run.json of a finished run; None if there is none that a table could read."""
    return _result(job.folder)


def _result(folder: Path) -> dict[str, object] | None:
    try:
        status = (folder / RUN_FILE).stat()
    except OSError:
        return None
    return _finished(folder, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=10_000)  # a sweep looks at each of its runs several times
def _finished(folder: Path, modified: int, size: int) -> dict[str, object] | None:
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

    The check takes the lock for a moment, which could stop a run that starts just then. It is therefore made only if
    the last holder may be alive.
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
    except (Timeout, PermissionError):  # the latter: the lock of another user, who may be running it
        return True


def steps_done(folder: Path) -> int:
    """Return the steps of all stages that an unfinished run has completed, as far as its files say."""
    progress = read_progress(folder)
    done = 0 if progress is None else progress.step
    for stage in folder.glob("stages/*"):
        try:
            record = read_stage(stage)
        except (ValueError, OSError):  # `damage` reports it
            continue
        done += 0 if record is None else record.steps
    return done

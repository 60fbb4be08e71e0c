"""The state of a job, read from its run's folder."""

from __future__ import annotations

import enum
import os
import socket
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lowbit.execution.jobs import Job
from lowbit.files import read_json
from lowbit.results.run_file import read_run
from lowbit.results.run_folder import ERROR_FILE, HOLDER_FILE, LOCK_FILE, STAGE_FILE, read_attempt, read_progress

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
    try:
        holder = read_json(folder / HOLDER_FILE)
    except ValueError:
        return False
    if holder is None or not lock.exists():
        return False
    if holder["host"] == socket.gethostname() and not _alive(int(holder["pid"])):
        return False
    try:
        with FileLock(lock, blocking=False):
            return False
    except Timeout:
        return True


def steps_done(folder: Path) -> int:
    """Return how many steps of all its stages an unfinished run has behind it, as far as its files say."""
    finished = [read_json(path) for path in folder.glob(f"stages/*/{STAGE_FILE}")]
    progress = read_progress(folder)
    return sum(int(record["steps"]) for record in finished) + (0 if progress is None else progress.step)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True

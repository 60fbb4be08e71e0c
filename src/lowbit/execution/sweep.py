"""Run the jobs of a sweep that are not finished, and say how each ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from lowbit.execution.jobs import Job
from lowbit.execution.pool import Launcher
from lowbit.execution.process import last_error
from lowbit.execution.states import State, state_of
from lowbit.execution.views import View
from lowbit.files import remove_leftovers, write_text

_SECONDS_BETWEEN_POLLS = 0.2
_TO_RUN = (State.missing, State.damaged, State.failed)


@dataclass(frozen=True)
class Failure:
    """A job that failed, and why."""

    job: Job
    reason: str


def run_sweep(jobs: Sequence[Job], launcher: Launcher, view: View) -> list[Failure]:
    """Run what is missing, damaged or failed before; jobs that are done, or running elsewhere, are left alone.

    Raises:
        KeyboardInterrupt: after the running jobs have ended; a second one kills them.
    """
    states = {job.run_id: state_of(job) for job in jobs}
    pending = [job for job in jobs if states[job.run_id] in _TO_RUN and not job.problems]
    elsewhere = [job for job in jobs if states[job.run_id] is State.running]
    failures = [refused(job) for job in jobs if job.problems]
    for job in jobs:  # a sweep that was killed when it recorded the end of a job; other jobs see to theirs
        if states[job.run_id] is State.done:
            remove_leftovers(job.folder)

    def following() -> Iterator[Job]:
        if not pending and not launcher.running:  # one more look at what another process was running at the start
            pending.extend(job for job in elsewhere if state_of(job) in _TO_RUN)
            elsewhere.clear()
        for job in _startable(pending, launcher):
            pending.remove(job)
            yield job

    def ended(job: Job, code: int, reason: str) -> None:
        failures.extend(collect_failures(job, code, view, reason))

    view.begin(jobs, {**states, **{job.run_id: State.missing for job in pending if states[job.run_id] is State.failed}})
    drive(launcher, view, following, ended)
    return failures


def drive(
    launcher: Launcher, view: View, following: Callable[[], Iterator[Job]], ended: Callable[[Job, int, str], None]
) -> None:
    """Start the jobs of `following` as they come and report those that have ended, until there are none.

    A job that cannot be started (a file is where its folder should be) has ended, with exit code 1 and the reason.

    Raises:
        KeyboardInterrupt: after the running jobs have ended; a second one kills them.
    """
    with _terminated_like_interrupted():
        try:
            while True:
                over: list[tuple[Job, int, str]] = []
                for job in following():
                    view.started(job)
                    try:
                        launcher.start(job)
                    except OSError as error:
                        over.append((job, 1, f"error: cannot be started: {error}"))
                over += [(job, code, "") for job, code in launcher.poll()]
                for job, code, reason in over:
                    ended(job, code, reason)
                if not over and not launcher.running:
                    return
                if not over:
                    view.show(launcher.running)
                    time.sleep(_SECONDS_BETWEEN_POLLS)
        except KeyboardInterrupt:
            if launcher.interrupt():
                view.note("interrupted: waiting for the running jobs to stop; once more kills them")
                while launcher.running:
                    launcher.poll()
                    time.sleep(_SECONDS_BETWEEN_POLLS)
            raise
        finally:
            launcher.kill()
            view.end()


def collect_failures(job: Job, code: int, view: View, reason: str = "") -> list[Failure]:
    """Show how a job ended; return its failure, if it is one, with the reason, which is else in its log."""
    state = state_of(job)
    if state in (State.done, State.running):  # running: another process was faster
        view.ended(job, state)
        return []
    view.ended(job, State.failed)
    return [Failure(job, reason or (f"killed by signal {-code}" if code < 0 else last_error(job.log)))]


def _startable(pending: Sequence[Job], launcher: Launcher) -> Iterator[Job]:
    """Yield the jobs to start now: as many as there are slots, of those that wait for one teacher the first alone."""
    free = launcher.slots - len(launcher.running)
    in_training = {job.teacher for job in launcher.running.values()}
    for job in list(pending):
        if free == 0:
            return
        if job.teacher is not None and job.teacher in in_training and not job.teacher.exists():
            continue
        in_training.add(job.teacher)
        free -= 1
        yield job


def refused(job: Job) -> Failure:
    """Write the problems of a job whose config is not valid into the log where it would have told them."""
    with suppress(OSError):  # it is told on the terminal too
        remove_leftovers(job.log.parent)
        write_text(job.log, "\n".join([f"$ {job.command}", *job.problems]) + "\n")
    return Failure(job, job.problems[0])


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Take SIGTERM (a batch system, a container that stops) as Ctrl-C."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

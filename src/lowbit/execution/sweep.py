"""Run the jobs of a sweep that are not finished, and collect the failures."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from lowbit.execution.jobs import SweepJob
from lowbit.execution.process import last_error
from lowbit.execution.progress import View
from lowbit.execution.state import TO_RUN, State, state_of
from lowbit.files import remove_leftovers, write_text

_SECONDS_BETWEEN_POLLS = 0.2


class Launcher(Protocol):
    """Runs at most `slots` jobs at once."""

    slots: int
    running: dict[str, SweepJob]

    def start(self, job: SweepJob) -> None:
        """Start a job."""

    def poll(self) -> list[tuple[SweepJob, int]]:
        """Return the jobs that have ended since the last call, with their exit codes."""

    def interrupt(self) -> bool:
        """Ask the running jobs to stop; return False if they go on without the sweep."""

    def kill(self) -> None:
        """Stop the running jobs now."""


@dataclass(frozen=True)
class Failure:
    """A job that failed, and why."""

    job: SweepJob
    reason: str


def run_sweep(jobs: Sequence[SweepJob], launcher: Launcher, view: View) -> list[Failure]:
    """Run the jobs that are missing, damaged or failed; leave those alone that are done or run elsewhere.

    Raises:
        KeyboardInterrupt: after the running jobs have ended; a second one kills them.
    """
    states = {job.run_id: state_of(job) for job in jobs}
    pending = [job for job in jobs if states[job.run_id] in TO_RUN and not job.problems]
    elsewhere = [job for job in jobs if states[job.run_id] is State.running]
    failures = [record_invalid(job) for job in jobs if job.problems]
    for job in jobs:
        if states[job.run_id] is State.done:  # what a sweep left that was killed when it recorded the end of the job
            remove_leftovers(job.folder)

    def following() -> Iterator[SweepJob]:
        if not pending and not launcher.running:  # look once more at the jobs that another process ran at the start
            pending.extend(job for job in elsewhere if state_of(job) in TO_RUN)
            elsewhere.clear()
        for job in _startable(pending, launcher):
            pending.remove(job)
            yield job

    def ended(job: SweepJob, code: int, reason: str) -> None:
        failures.extend(collect_failures(job, code, view, reason))

    view.begin(jobs, states | {job.run_id: State.missing for job in pending if states[job.run_id] is State.failed})
    drive(launcher, view, following, ended)
    return failures


def drive(
    launcher: Launcher,
    view: View,
    following: Callable[[], Iterator[SweepJob]],
    ended: Callable[[SweepJob, int, str], None],
) -> None:
    """Start the jobs that `following` yields and pass those that have ended to `ended`, until there are none.

    A job that cannot be started (a file is in the place of its folder) ends with exit code 1 and the reason.

    Raises:
        KeyboardInterrupt: after the running jobs have ended; a second one kills them.
    """
    with _sigterm_as_interrupt():
        try:
            while True:
                over: list[tuple[SweepJob, int, str]] = []
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
                    view.show()
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


def collect_failures(job: SweepJob, code: int, view: View, reason: str = "") -> list[Failure]:
    """Show how a job ended; return its failure, if it failed, with the given reason or that of its log."""
    state = state_of(job)
    if state in (State.done, State.running):  # running: another process was faster
        view.ended(job, state)
        return []
    view.ended(job, State.failed)
    return [Failure(job, reason or (f"killed by signal {-code}" if code < 0 else last_error(job.log)))]


def record_invalid(job: SweepJob) -> Failure:
    """Write the problems of an invalid config into the job's log; return the failure."""
    with suppress(OSError):  # the terminal shows them too
        remove_leftovers(job.folder)
        write_text(job.log, "\n".join([f"$ {job.command}", *job.problems]) + "\n")
    return Failure(job, job.problems[0])


def _startable(pending: Sequence[SweepJob], launcher: Launcher) -> Iterator[SweepJob]:
    """Yield a job for each free slot; of the jobs that need one missing teacher only the first, which trains it."""
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


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM (a batch system, a container that stops) like Ctrl-C."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

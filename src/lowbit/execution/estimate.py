"""How long jobs will take, judged by finished jobs of the same sweep."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from lowbit.execution.jobs import Job
from lowbit.execution.states import result, steps_done
from lowbit.results.run_folder import read_attempt

_REST = ""  # no method's name


@dataclass(frozen=True)
class Finished:
    """A finished job: training seconds per step, and the seconds that it spent on anything else (None: unknown)."""

    method: str
    per_step: float | None
    rest: float | None


class Estimate:
    """Seconds of a job: its steps at the pace of its method's finished jobs, and what else they took on top.

    Without a finished job of the method, all finished jobs set the pace; without any, nothing is known.
    """

    def __init__(self) -> None:
        self._finished: dict[str, Finished] = {}
        self._paces: dict[str, float] = {}  # of the methods that were asked for since the last job ended

    def __len__(self) -> int:
        return len(self._finished)

    def learn(self, job: Job) -> None:
        """Take a finished job into account."""
        run, attempt = result(job), read_attempt(job.folder)
        if run is None:
            return
        steps, seconds = int(run["steps"]), float(run["seconds"])
        # The wall time of an attempt that resumed the run belongs to a part of its steps.
        rest = max(attempt.seconds - seconds, 0.0) if attempt is not None and attempt.whole else None
        self._finished[job.run_id] = Finished(job.method, seconds / steps if steps else None, rest)
        self._paces.clear()

    def seconds(self, job: Job) -> float | None:
        """Return the time that the whole job will take, or None."""
        if not self._finished or job.problems:
            return None
        return self._pace(job.method) * (job.steps or 0) + self._pace(_REST)

    def _pace(self, method: str) -> float:
        """Return the seconds per step of a method, or those besides the steps."""
        if method not in self._paces:
            finished = self._finished.values()
            same = [f.per_step for f in finished if f.method == method and f.per_step is not None]
            paces = same or [f.per_step for f in finished if f.per_step is not None]
            found = [f.rest for f in finished if f.rest is not None] if method == _REST else paces
            self._paces[method] = median(found) if found else 0.0
        return self._paces[method]

    def left(self, job: Job) -> float | None:
        """Return the time that what is left of the job will take, or None."""
        whole = self.seconds(job)
        if whole is None or not job.steps:
            return whole
        return whole * max(0.0, 1 - steps_done(job.folder) / job.steps)


def makespan(seconds: Iterable[float], slots: int) -> float:
    """Return the time until all jobs are done if each goes to the slot that is free first.

    >>> makespan([3.0, 1.0, 1.0, 1.0], slots=2)
    3.0
    """
    free = [0.0] * slots
    for duration in seconds:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def format_duration(seconds: float | None) -> str:
    """Return a duration for people.

    >>> [format_duration(s) for s in (None, 8.4, 95.0, 7300.0)]
    ['-', '8 s', '2 min', '2.0 h']
    """
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""What is known of a running sweep: states, metrics, phases and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lowbit.execution.estimate import Estimate, format_duration, makespan
from lowbit.execution.jobs import Job
from lowbit.execution.states import State, damage, result, steps_done
from lowbit.results.run_folder import read_progress


@dataclass(frozen=True)
class Line:
    """A job as people see it; an empty text where there is nothing to say."""

    job: Job
    state: str
    phase: str = ""
    metric: str = ""
    left: str = ""


class Board:
    """The jobs of one sweep; files are read when `lines` or `left` is called."""

    def __init__(self, jobs: Sequence[Job], states: Mapping[str, State]) -> None:
        self.jobs = list(jobs)
        self.states = dict(states)
        self.estimate = Estimate()
        self._since: dict[str, float] = {}
        for job in self.jobs:
            if self.states[job.run_id] is State.done:
                self.estimate.learn(job)

    def started(self, job: Job) -> None:
        """Note that a job runs; one that a search adds is new here."""
        if job.run_id not in self.states:
            self.jobs.append(job)
        self.states[job.run_id] = State.running
        self._since[job.run_id] = time.monotonic()

    def ended(self, job: Job, state: State) -> None:
        """Note how a job ended."""
        self.states[job.run_id] = state
        self.estimate.learn(job)

    def count(self, state: State) -> int:
        """Return the jobs in a state."""
        return sum(self.states[job.run_id] is state for job in self.jobs)

    def counts(self) -> str:
        """Return the number of jobs in each state that occurs."""
        parts = [f"{self.count(state)} {state.value}" for state in State if self.count(state)]
        return f"{len(self.jobs)} {'job' if len(self.jobs) == 1 else 'jobs'}: {', '.join(parts) or 'none'}"

    def left(
        self, slots: int, pending: Collection[State] = (State.missing, State.damaged, State.running)
    ) -> float | None:
        """Return the seconds until all jobs are done, or None without a finished one."""
        jobs = [job for job in self.jobs if self.states[job.run_id] in pending and not job.problems]
        times = [self.estimate.left(job) for job in jobs]
        known = [seconds for seconds in times if seconds is not None]
        return makespan(known, slots) if len(known) == len(times) else None

    def line(self, job: Job) -> Line:
        """Return a job's line."""
        state = self.states[job.run_id]
        if state is State.done:
            return Line(job, state.value, metric=metric_of(job))
        if state is State.running:
            return self._running(job)
        if job.problems:
            return Line(job, state.value, phase="config is not valid")
        if state is State.damaged:
            return Line(job, state.value, phase=damage(job.folder) or "")
        steps = steps_done(job.folder)
        phase = f"resumes after step {steps} or before" if steps else ""
        return Line(job, state.value, phase=phase, left=format_duration(self.estimate.left(job)))

    def _running(self, job: Job) -> Line:
        progress, left = read_progress(job.folder), format_duration(self.estimate.left(job))
        if progress is None and job.teacher is not None:
            progress = read_progress(job.teacher.with_name(f"{job.teacher.name}.partial"))
            if progress is not None:
                return Line(job, "running", f"teacher, step {progress.step} of {progress.steps}", left=left)
        if progress is None:
            since = self._since.get(job.run_id)
            return Line(
                job, "running", "" if since is None else f"for {format_duration(time.monotonic() - since)}", left=left
            )
        metric = next((f"{name} {value:.4f}" for name, value in reversed(progress.values.items())), "")
        return Line(job, "running", f"{progress.phase}, step {progress.step} of {progress.steps}", metric, left)


def metric_of(job: Job) -> str:
    """Return the primary metric of a finished job, named."""
    run = result(job)
    return "" if run is None else f"{run['primary_metric']} {run['metrics'][run['primary_metric']]:.4f}"

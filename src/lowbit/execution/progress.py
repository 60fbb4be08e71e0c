"""The progress of a sweep: states, metrics and the time left, as a live table on a terminal and as lines elsewhere."""

from __future__ import annotations

import heapq
import sys
import time
from bisect import insort
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from rich.live import Live
from rich.table import Table
from rich.text import Text

from lowbit.execution.jobs import SweepJob
from lowbit.execution.state import TO_RUN, State, damage, result, steps_done
from lowbit.results.run_file import read_attempt, read_progress

_SECONDS_BETWEEN_DRAWINGS = 1.0
_SHOWN = 20  # lines of the live table, so that it fits a terminal


class Estimate:
    """How long jobs take: their steps at the pace of finished jobs of the method, plus what jobs take besides steps.

    If no job of the method has finished, all finished jobs set the pace.
    """

    def __init__(self) -> None:
        self.finished = 0
        self._paces: defaultdict[str | None, list[float]] = defaultdict(list)  # seconds per step; None: of all methods
        self._rests: list[float] = []  # seconds besides the steps

    def learn(self, job: SweepJob) -> None:
        """Take a job into account if it is finished."""
        run, attempt = result(job), read_attempt(job.folder)
        if run is None:
            return
        self.finished += 1
        steps, seconds = int(run["steps"]), float(run["seconds"])
        for method in (job.method, None) if steps else ():
            insort(self._paces[method], seconds / steps)
        if attempt is not None and attempt.whole:  # one that resumed the run took its wall time for a part of the steps
            insort(self._rests, max(attempt.seconds - seconds, 0.0))

    def seconds(self, job: SweepJob) -> float | None:
        """Return how long the whole job takes; None if that is not known."""
        if not self.finished or job.problems:
            return None
        paces = self._paces.get(job.method) or self._paces[None]
        pace, rest = (median(numbers) if numbers else 0.0 for numbers in (paces, self._rests))
        return pace * (job.steps or 0) + rest

    def left(self, job: SweepJob) -> float | None:
        """Return how long the rest of the job takes; None if that is not known."""
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


class Line(NamedTuple):
    """The columns of a job."""

    job: str
    state: str
    phase: str = ""
    metric: str = ""
    left: str = ""


class View:
    """The states of a sweep's jobs; each event is printed as one line."""

    def __init__(self, slots: int) -> None:
        self.jobs: list[SweepJob] = []
        self.states: dict[str, State] = {}
        self.estimate = Estimate()
        self._slots = slots
        self._since: dict[str, float] = {}

    def begin(self, jobs: Sequence[SweepJob], states: Mapping[str, State]) -> None:
        """Show what there is to do."""
        self.take(jobs, states)
        self.event(self.counts())
        for job in self.with_state(State.running):
            self.event(f"running in another process: {job.label}")

    def take(self, jobs: Sequence[SweepJob], states: Mapping[str, State]) -> None:
        """Take over the jobs and their states, and learn from those that are done."""
        self.jobs, self.states = list(jobs), dict(states)
        for job in self.with_state(State.done):
            self.estimate.learn(job)

    def started(self, job: SweepJob) -> None:
        """Show that a job has started; a search adds its jobs here."""
        if job.run_id not in self.states:
            self.jobs.append(job)
        self.states[job.run_id] = State.running
        self._since[job.run_id] = time.monotonic()
        self.event(f"started {job.label} -> {job.log}")

    def ended(self, job: SweepJob, state: State) -> None:
        """Show how a job has ended, and the time left."""
        self.states[job.run_id] = state
        self.estimate.learn(job)
        facts = ", ".join(self.with_time_left(self.line(job).metric))
        self.event(f"{state.value} {job.label}" + (f": {facts}" if facts else ""))

    def show(self) -> None:
        """Show how far the running jobs are; called several times a second, so that lines would fill a log."""

    def note(self, text: str) -> None:
        """Show a sentence."""
        print(text, flush=True)

    def event(self, text: str) -> None:
        """Show what has happened."""
        self.note(text)

    def end(self) -> None:
        """Show the final states."""
        self.event(self.counts())

    def with_state(self, *states: State) -> list[SweepJob]:
        """Return the jobs in one of the states."""
        return [job for job in self.jobs if self.states[job.run_id] in states]

    def counts(self) -> str:
        """Return the number of jobs in each state that occurs."""
        numbers = {state: len(self.with_state(state)) for state in State}
        parts = [f"{number} {state.value}" for state, number in numbers.items() if number]
        return f"{len(self.jobs)} {'job' if len(self.jobs) == 1 else 'jobs'}: {', '.join(parts) or 'none'}"

    def left(self, pending: Collection[State] = (State.missing, State.damaged, State.running)) -> float | None:
        """Return the seconds until the jobs in the pending states are done; None if that is not known."""
        times = [self.estimate.left(job) for job in self.with_state(*pending) if not job.problems]
        known = [seconds for seconds in times if seconds is not None]
        return makespan(known, self._slots) if len(known) == len(times) else None

    def with_time_left(self, fact: str) -> list[str]:
        """Return a fact and the time left, without what is empty."""
        left = self.left()
        return [*filter(None, [fact]), *([f"about {format_duration(left)} left"] if left else [])]

    def line(self, job: SweepJob) -> Line:
        """Return the columns of a job, from the files of its run."""
        state = self.states[job.run_id]
        line = Line(job.label, state.value)
        if state is State.done:
            return line._replace(metric=metric_of(job))
        if state is State.running:
            return self._running(job, line._replace(left=format_duration(self.estimate.left(job))))
        if job.problems:
            return line._replace(phase="config is not valid")
        if state is State.damaged:
            return line._replace(phase=damage(job.folder) or "")
        steps = steps_done(job.folder)
        phase = f"resumes after step {steps} or before" if steps else ""
        return line._replace(phase=phase, left=format_duration(self.estimate.left(job)))

    def _running(self, job: SweepJob, line: Line) -> Line:
        progress = read_progress(job.folder)
        if progress is not None:
            metric = next((f"{name} {value:.4f}" for name, value in reversed(progress.values.items())), "")
            return line._replace(phase=f"{progress.phase}, step {progress.step} of {progress.steps}", metric=metric)
        if job.teacher is not None:
            progress = read_progress(job.teacher.with_name(f"{job.teacher.name}.partial"))
        if progress is not None:
            return line._replace(phase=f"teacher, step {progress.step} of {progress.steps}")
        since = self._since.get(job.run_id)
        return line if since is None else line._replace(phase=f"for {format_duration(time.monotonic() - since)}")


def metric_of(job: SweepJob) -> str:
    """Return the name and value of a finished job's primary metric."""
    run = result(job)
    return "" if run is None else f"{run['primary_metric']} {run['metrics'][run['primary_metric']]:.4f}"


class LiveTable(View):
    """Draws a table every second; of many jobs it shows those that run, that ended last and that come next."""

    def __init__(self, slots: int, title: str) -> None:
        super().__init__(slots)
        self._title = title
        self._ended: list[SweepJob] = []
        self._next = 0.0
        self._live = Live(auto_refresh=False)

    def begin(self, jobs: Sequence[SweepJob], states: Mapping[str, State]) -> None:
        """Start to draw."""
        self._live.start()
        super().begin(jobs, states)

    def ended(self, job: SweepJob, state: State) -> None:
        """Draw the job as it ended."""
        self._ended.append(job)
        super().ended(job, state)

    def show(self) -> None:
        """Draw the progress, if a second has passed."""
        if time.monotonic() >= self._next:
            self.event("")

    def note(self, text: str) -> None:
        """Print a line above the table."""
        self._live.console.print(Text(text))

    def event(self, text: str) -> None:
        """Draw the table, whatever has happened."""
        self._next = time.monotonic() + _SECONDS_BETWEEN_DRAWINGS
        caption = ", ".join(self.with_time_left(self.counts()))
        table = Table(title=self._title, caption=caption, title_justify="left", caption_justify="left")
        table.add_column("job", overflow="fold")
        for name in ("state", "phase", "metric", "time left"):
            table.add_column(name, overflow="ellipsis", no_wrap=True)
        for job in self.chosen():
            table.add_row(*map(Text, self.line(job)))
        self._live.update(table, refresh=True)

    def end(self) -> None:
        """Leave the last table on the terminal."""
        super().end()
        self._live.stop()

    def chosen(self) -> list[SweepJob]:
        """Return the jobs that the table shows."""
        if len(self.jobs) <= _SHOWN:
            return self.jobs
        running = self.with_state(State.running)
        ended = self._ended[-max(_SHOWN // 2 - len(running), 1) :]
        following = self.with_state(State.missing, State.damaged)
        return [*ended, *running, *following[: max(_SHOWN - len(ended) - len(running), 0)]]


def make_view(slots: int, title: str, *, live: bool) -> View:
    """Return the live table on a terminal, and lines elsewhere or if the jobs print to the same terminal."""
    return LiveTable(slots, title) if live and sys.stdout.isatty() else View(slots)


def print_plan(jobs: Sequence[SweepJob], states: Mapping[str, State], slots: int) -> None:
    """Print the jobs with their states and the time that they will take (`--dry-run`)."""
    view = View(slots)
    view.take(jobs, states)
    lines = [view.line(job) for job in jobs]
    width = max(len(line.state) for line in lines)
    for job, line in zip(jobs, lines, strict=True):
        facts = [line.phase, line.metric, "" if line.left in ("", "-") else f"about {line.left}"]
        text = ", ".join(fact for fact in facts if fact)
        print(f"{line.state:<{width}}  {job.run_id}  {job.label}" + (f"  ({text})" if text else ""))
    left = view.left((*TO_RUN, State.running))
    if left is None:
        print(f"{view.counts()}; no job has finished yet, so the time is not known")
        return
    at_once = "one at a time" if slots == 1 else f"{slots} at a time"
    judged = f"judged by {view.estimate.finished} finished"
    print(f"{view.counts()}; about {format_duration(left)} left, {at_once}, {judged}")

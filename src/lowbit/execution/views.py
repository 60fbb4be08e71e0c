"""How a running sweep is shown: a live table on a terminal, one line per event elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.live import Live
from rich.table import Table
from rich.text import Text

from lowbit.execution.board import Board, Line
from lowbit.execution.estimate import format_duration
from lowbit.execution.jobs import Job
from lowbit.execution.states import State

_SECONDS_BETWEEN_LOOKS = 1.0
_SHOWN = 20  # lines of the live table, so that it fits a terminal


class View(Protocol):
    """Is told what happens."""

    def begin(self, jobs: Sequence[Job], states: Mapping[str, State]) -> None:
        """Show what there is to do."""

    def started(self, job: Job) -> None:
        """Show that a job has started."""

    def ended(self, job: Job, state: State) -> None:
        """Show how a job has ended."""

    def show(self, running: Mapping[str, Job]) -> None:
        """Show how far the running jobs are; called several times a second."""

    def note(self, text: str) -> None:
        """Show a sentence."""

    def end(self) -> None:
        """Show no more."""


class Lines:
    """One line per event."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._board = Board([], {})

    def begin(self, jobs: Sequence[Job], states: Mapping[str, State]) -> None:
        """Print the number of jobs in each state."""
        self._board = Board(jobs, states)
        self.note(self._board.counts())
        for job in jobs:
            if states[job.run_id] is State.running:
                self.note(f"running in another process: {job.label}")

    def started(self, job: Job) -> None:
        """Print it."""
        self._board.started(job)
        self.note(f"started {job.label} -> {job.log}")

    def ended(self, job: Job, state: State) -> None:
        """Print it, with the metric and the time that is left."""
        self._board.ended(job, state)
        line = self._board.line(job)
        facts = [fact for fact in (line.metric, _left(self._board, self._slots)) if fact]
        self.note(f"{line.state} {job.label}" + (f": {', '.join(facts)}" if facts else ""))

    def show(self, running: Mapping[str, Job]) -> None:
        """Print nothing: the log would grow by the second."""

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def end(self) -> None:
        """Print the number of jobs in each state."""
        self.note(self._board.counts())


class LiveTable:
    """A table that is drawn anew every second; of many jobs those that run, ended last or come next."""

    def __init__(self, slots: int, title: str) -> None:
        self._slots = slots
        self._title = title
        self._board = Board([], {})
        self._ended: list[Job] = []
        self._next = 0.0
        self._live = Live(auto_refresh=False)

    def begin(self, jobs: Sequence[Job], states: Mapping[str, State]) -> None:
        """Draw the first table."""
        self._board = Board(jobs, states)
        self._live.start()
        self._draw()

    def started(self, job: Job) -> None:
        """Draw the job as running."""
        self._board.started(job)
        self._draw()

    def ended(self, job: Job, state: State) -> None:
        """Draw the job as it ended."""
        self._board.ended(job, state)
        self._ended.append(job)
        self._draw()

    def show(self, running: Mapping[str, Job]) -> None:
        """Draw the progress, if a second has passed."""
        if time.monotonic() >= self._next:
            self._draw()

    def note(self, text: str) -> None:
        """Print a line above the table."""
        self._live.console.print(Text(text))

    def end(self) -> None:
        """Leave the last table on the terminal."""
        self._draw()
        self._live.stop()

    def _draw(self) -> None:
        self._next = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        caption = ", ".join(filter(None, [self._board.counts(), _left(self._board, self._slots)]))
        table = Table(title=self._title, caption=caption, title_justify="left", caption_justify="left")
        for name in ("job", "state", "phase", "metric", "time left"):
            table.add_column(name, overflow="fold" if name == "job" else "ellipsis", no_wrap=name != "job")
        for job in self._chosen():
            table.add_row(*_cells(self._board.line(job)))
        return table

    def _chosen(self) -> list[Job]:
        if len(self._board.jobs) <= _SHOWN:
            return self._board.jobs
        states = self._board.states
        running = [job for job in self._board.jobs if states[job.run_id] is State.running]
        ended = self._ended[-max(_SHOWN // 2 - len(running), 1) :]
        following = [job for job in self._board.jobs if states[job.run_id] in (State.missing, State.damaged)]
        return [*ended, *running, *following[: max(_SHOWN - len(ended) - len(running), 0)]]


def make_view(slots: int, title: str, *, live: bool) -> View:
    """Return the live table on a terminal, lines elsewhere or where the jobs themselves print."""
    return LiveTable(slots, title) if live and sys.stdout.isatty() else Lines(slots)


def print_plan(jobs: Sequence[Job], states: Mapping[str, State], slots: int) -> None:
    """Print the jobs with their states and the time that they will take (`--dry-run`)."""
    board = Board(jobs, states)
    lines = [board.line(job) for job in jobs]
    width = max(len(line.state) for line in lines)
    for line in lines:
        facts = [line.phase, line.metric, "" if line.left in ("", "-") else f"about {line.left}"]
        told = ", ".join(fact for fact in facts if fact)
        print(f"{line.state:<{width}}  {line.job.run_id}  {line.job.label}" + (f"  ({told})" if told else ""))
    to_run = (State.missing, State.running, State.damaged, State.failed)
    left = board.left(slots, to_run)
    at_once = "one at a time" if slots == 1 else f"{slots} at a time"
    if left is None:
        print(f"{board.counts()}; no job has finished yet, so the time is not known")
    else:
        print(
            f"{board.counts()}; about {format_duration(left)} left, {at_once}, judged by {len(board.estimate)} finished"
        )


def _left(board: Board, slots: int) -> str:
    left = board.left(slots)
    return f"about {format_duration(left)} left" if left else ""


def _cells(line: Line) -> list[Text]:
    return [Text(word) for word in (line.job.label, line.state, line.phase, line.metric, line.left)]

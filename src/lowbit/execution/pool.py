"""A pool of job processes on this machine, which shares its cores and GPUs among them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from lowbit.execution.jobs import Job
from lowbit.execution.parent import PARENT_VARIABLE
from lowbit.execution.process import Started, start, train_command

_GPUS = Path("/proc/driver/nvidia/gpus")  # asking torch would take seconds, and memory on the GPU
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Launcher(Protocol):
    """Runs jobs, at most `slots` at once."""

    slots: int
    running: dict[str, Job]

    def start(self, job: Job) -> None:
        """Start a job."""

    def poll(self) -> list[tuple[Job, int]]:
        """Return the jobs that have ended since the last call, with their exit codes."""

    def interrupt(self) -> bool:
        """Ask the running jobs to stop; return whether they do."""

    def kill(self) -> None:
        """Stop the running jobs now."""


class Pool:
    """One operating-system process per job.

    Args:
        slots: Jobs that run at once.
        command: The command line of a list of overrides; `lowbit train` unless a test says otherwise.
    """

    def __init__(self, slots: int, command: Callable[[Sequence[str]], list[str]] = train_command) -> None:
        self.slots = slots
        self.running: dict[str, Job] = {}
        self._command = command
        self._started: dict[str, Started] = {}
        self._slot_of: dict[str, int] = {}
        self._interrupted = False

    def start(self, job: Job) -> None:
        """Start a job in a free slot."""
        slot = min(set(range(self.slots)) - set(self._slot_of.values()))
        overrides = [*job.overrides]
        if self.slots > 1 and job.threads is None:
            overrides.append(f"trainer.threads={max(cores() // self.slots, 1)}")
        mine = {PARENT_VARIABLE: str(os.getpid()), **gpus_of(slot, self.slots, job.devices)}
        self._started[job.run_id] = start(job.folder, self._command(overrides), {**os.environ, **mine})
        self._slot_of[job.run_id] = slot
        self.running[job.run_id] = job

    def poll(self) -> list[tuple[Job, int]]:
        """Return the jobs that have ended; what a job that was interrupted says is no failure, and not recorded."""
        ended = []
        for run_id, started in list(self._started.items()):
            if started.process.poll() is None:
                continue
            code = started.process.returncode if self._interrupted else started.record()
            del self._started[run_id], self._slot_of[run_id]
            ended.append((self.running.pop(run_id), code))
        return ended

    def interrupt(self) -> bool:
        """Send every job one Ctrl-C."""
        self._interrupted = True
        for started in self._started.values():
            with suppress(ProcessLookupError):
                started.process.send_signal(signal.SIGINT)
        return True

    def kill(self) -> None:
        """Kill every job and what it has started."""
        self._interrupted = True
        for started in self._started.values():
            with suppress(ProcessLookupError):
                os.killpg(started.process.pid, signal.SIGKILL)
            started.process.wait()


def cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_of(slot: int, slots: int, devices: int) -> dict[str, str]:
    """Return the environment that gives the job in `slot` its own GPUs; empty where there is nothing to share out."""
    known = gpus()
    if slots == 1 or len(known) < 2:
        return {}
    first = slot * devices
    return {_VISIBLE: ",".join(known[index % len(known)] for index in range(first, first + devices))}


def gpus() -> list[str]:
    """Return the names of the GPUs that this process may use."""
    named = os.environ.get(_VISIBLE)
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(index) for index, _ in enumerate(_GPUS.iterdir())] if _GPUS.is_dir() else []

"""A pool of job processes on this machine, which divides its cores and GPUs among them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lowbit.execution.jobs import SweepJob
from lowbit.execution.process import PARENT_VARIABLE, Started, start, train_command

_GPUS = Path("/proc/driver/nvidia/gpus")  # asking torch would take seconds, and memory on the GPU
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Pool:
    """A launcher with one operating-system process per job.

    Args:
        slots: Jobs that run at once.
        command: Makes the command line of a job from its overrides; tests replace `lowbit train`.
    """

    def __init__(self, slots: int, command: Callable[[Sequence[str]], list[str]] = train_command) -> None:
        self.slots = slots
        self.running: dict[str, SweepJob] = {}
        self._command = command
        self._started: dict[str, tuple[int, Started]] = {}  # slot and process of each job
        self._interrupted = False

    def start(self, job: SweepJob) -> None:
        """Start a job in a free slot."""
        slot = min(set(range(self.slots)) - {slot for slot, _ in self._started.values()})
        overrides = [*job.overrides]
        if self.slots > 1 and job.threads is None:
            overrides.append(f"trainer.threads={max(cores() // self.slots, 1)}")
        own = {PARENT_VARIABLE: str(os.getpid()), **gpus_of(slot, self.slots, job.devices)}
        self._started[job.run_id] = slot, start(job.folder, self._command(overrides), {**os.environ, **own})
        self.running[job.run_id] = job

    def poll(self) -> list[tuple[SweepJob, int]]:
        """Return the jobs that have ended; the exit code of an interrupted job is no failure, and not recorded."""
        ended = []
        for run_id, (_, started) in list(self._started.items()):
            if started.process.poll() is None:
                continue
            code = started.process.returncode if self._interrupted else started.record()
            del self._started[run_id]
            ended.append((self.running.pop(run_id), code))
        return ended

    def interrupt(self) -> bool:
        """Send every job one Ctrl-C."""
        self._interrupted = True
        for _, started in self._started.values():
            with suppress(ProcessLookupError):
                started.process.send_signal(signal.SIGINT)
        return True

    def kill(self) -> None:
        """Kill every job and its children."""
        self._interrupted = True
        for _, started in self._started.values():
            with suppress(ProcessLookupError):
                os.killpg(started.process.pid, signal.SIGKILL)
            started.process.wait()


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_of(slot: int, slots: int, devices: int) -> dict[str, str]:
    """Return the environment that gives the job in `slot` its GPUs; empty if there is nothing to divide."""
    known = gpus()
    if slots == 1 or len(known) < 2:
        return {}
    first = slot * devices
    return {_VISIBLE: ",".join(known[index % len(known)] for index in range(first, first + devices))}


def gpus() -> list[str]:
    """Return the names of the GPUs that this process may use."""
    visible = os.environ.get(_VISIBLE)
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(index) for index, _ in enumerate(_GPUS.iterdir())] if _GPUS.is_dir() else []

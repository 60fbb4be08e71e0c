"""Jobs through submitit: on Slurm, where a preempted job is requeued and resumes, or on this machine."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lowbit.config.problems import ConfigError
from lowbit.execution.jobs import Job
from lowbit.execution.parent import PARENT_VARIABLE
from lowbit.execution.pool import gpus
from lowbit.execution.process import Started, start, train_command

_MINUTES = 24 * 60  # unless --slurm time=... says otherwise
_TIME_LIMITS = 200  # that a job may reach before it counts as failed; submitit's own number is 3
_SECONDS_TO_STOP = 60.0  # of the 90 seconds between Slurm's warning and its kill
# Lightning takes it for the order to launch ranks and to requeue by itself; one owner of the signals is enough.
_NOT_FOR_JOBS = ("SLURM_NTASKS",)


class ClusterJob:
    """What submitit pickles and calls: run the command of one job and return its exit code."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self._folder = folder
        self._command = list(command)
        self._started: Started | None = None

    def __call__(self) -> int:
        """Run the command to its end."""
        environment = {key: value for key, value in os.environ.items() if key not in _NOT_FOR_JOBS}
        environment[PARENT_VARIABLE] = str(os.getpid())
        self._started = start(self._folder, self._command, environment)
        return self._started.record()

    def checkpoint(self) -> Any:
        """Stop the command and ask for the same job again, which resumes; submitit calls this before a preemption."""
        from submitit.helpers import DelayedSubmission

        if self._started is not None:
            _stop(self._started.process.pid)
        return DelayedSubmission(ClusterJob(self._folder, self._command))


class Cluster:
    """A launcher that submits every job to submitit's executor.

    Args:
        folder: Where submitit keeps its files.
        slots: Jobs in the queue at once.
        cluster: `slurm` or `local`; None: Slurm where there is `sbatch`, else this machine.
        parameters: Of Slurm, by the names of submitit's executor: `partition`, `time` (minutes), `mem`, ...
        command: The command line of a list of overrides; `lowbit train` unless a test says otherwise.
    """

    def __init__(
        self,
        folder: Path,
        slots: int,
        cluster: str | None,
        parameters: Mapping[str, str],
        command: Callable[[Sequence[str]], list[str]] = train_command,
    ) -> None:
        if importlib.util.find_spec("submitit") is None:
            raise ConfigError(["--launcher submitit needs the package submitit: run `pip install 'lowbit[cluster]'`"])
        import submitit

        self.slots = slots
        self.running: dict[str, Job] = {}
        self._command = command
        self._submitted: dict[str, Any] = {}
        self._executor = submitit.AutoExecutor(
            folder=folder.resolve(), cluster=cluster, slurm_max_num_timeout=_TIME_LIMITS
        )
        self._parameters = {f"slurm_{key}": _value(value) for key, value in parameters.items()}
        self._update({})

    def start(self, job: Job) -> None:
        """Submit a job: one task, which starts the ranks of its devices itself."""
        own: dict[str, Any] = {"gpus_per_node": job.devices} if self._executor.cluster == "slurm" or gpus() else {}
        if job.threads is not None:
            own["cpus_per_task"] = job.threads
        self._update(own)
        submitted = self._executor.submit(ClusterJob(job.folder.resolve(), self._command(job.overrides)))
        self._submitted[job.run_id] = submitted
        self.running[job.run_id] = job

    def poll(self) -> list[tuple[Job, int]]:
        """Return the jobs that have ended; one without a result was cancelled, or its machine is gone."""
        ended = []
        for run_id, submitted in list(self._submitted.items()):
            if not submitted.done():
                continue
            found = submitted.paths.result_pickle.exists() and submitted.exception() is None
            del self._submitted[run_id]
            ended.append((self.running.pop(run_id), int(submitted.result()) if found else 1))
        return ended

    def interrupt(self) -> bool:
        """Cancel jobs on this machine; jobs of Slurm keep running."""
        if self._executor.cluster == "slurm":
            return False
        self.kill()
        return True

    def kill(self) -> None:
        """Cancel jobs on this machine."""
        if self._executor.cluster != "slurm":
            for submitted in self._submitted.values():
                submitted.cancel()

    def _update(self, own: Mapping[str, Any]) -> None:
        generic = {"name": "lowbit", "timeout_min": _MINUTES, "nodes": 1, "tasks_per_node": 1}
        try:
            self._executor.update_parameters(**generic, **own, **self._parameters)
        except NameError as error:  # submitit's way to refuse an unknown parameter
            raise ConfigError([f"--slurm: {str(error).splitlines()[0]}"]) from error


def _stop(pid: int) -> None:
    """Send Ctrl-C to a child, and kill it if that has no effect.

    This runs in a signal handler that has interrupted the wait for the child: another `Popen.wait` would never return.
    """
    deadline = time.monotonic() + _SECONDS_TO_STOP
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGINT)
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


def _value(text: str) -> str | int:
    return int(text) if text.isdigit() else text

"""Jobs through submitit: under Slurm, where a preempted job is requeued and resumes, or on this machine."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.config.problems import ConfigError
from lowbit.execution.jobs import SweepJob
from lowbit.execution.pool import gpus
from lowbit.execution.process import PARENT_VARIABLE, Started, start, train_command

if TYPE_CHECKING:
    import submitit

_MINUTES = 24 * 60  # unless --slurm time=... says otherwise
_TIME_LIMITS = 200  # that a job may reach before it counts as failed; submitit's default is 3
_SECONDS_TO_STOP = 60.0  # of the 90 seconds between Slurm's warning and its kill
# Lightning would read it as an order to launch ranks and to requeue; submitit already owns the signals.
_NOT_FOR_JOBS = ("SLURM_NTASKS",)


class SubmittedCommand:
    """The function that submitit pickles and calls: it runs the command of one job and returns the exit code."""

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

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Stop the command and submit the same job again, which resumes; submitit calls this before a preemption."""
        from submitit.helpers import DelayedSubmission

        if self._started is not None:
            _stop(self._started.process.pid)
        return DelayedSubmission(SubmittedCommand(self._folder, self._command))


class Slurm:
    """A launcher that submits every job to an executor of submitit.

    Args:
        folder: The folder for submitit's files.
        slots: Jobs in the queue at once.
        cluster: `slurm` or `local`; None means Slurm if there is `sbatch`, else this machine.
        parameters: Slurm settings by the names of submitit's executor: `partition`, `time` (minutes), `mem`, ...
        command: Makes the command line of a job from its overrides; tests replace `lowbit train`.
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
        self.running: dict[str, SweepJob] = {}
        self._command = command
        self._submitted: dict[str, submitit.Job[int]] = {}
        self._executor = submitit.AutoExecutor(
            folder=folder.resolve(), cluster=cluster, slurm_max_num_timeout=_TIME_LIMITS
        )
        self._on_slurm = self._executor.cluster == "slurm"
        self._parameters = {f"slurm_{key}": int(text) if text.isdigit() else text for key, text in parameters.items()}
        self._update({})

    def start(self, job: SweepJob) -> None:
        """Submit a job as one task, which starts the ranks of its devices itself."""
        own = {"gpus_per_node": job.devices} if self._on_slurm or gpus() else {}
        if job.threads is not None:
            own["cpus_per_task"] = job.threads
        self._update(own)
        command = SubmittedCommand(job.folder.resolve(), self._command(job.overrides))
        self._submitted[job.run_id] = self._executor.submit(command)
        self.running[job.run_id] = job

    def poll(self) -> list[tuple[SweepJob, int]]:
        """Return the jobs that have ended; a job without a result was cancelled, or its machine is gone."""
        ended = []
        for run_id, submitted in list(self._submitted.items()):
            if not submitted.done():
                continue
            found = submitted.paths.result_pickle.exists() and submitted.exception() is None
            del self._submitted[run_id]
            ended.append((self.running.pop(run_id), submitted.result() if found else 1))
        return ended

    def interrupt(self) -> bool:
        """Cancel jobs on this machine; jobs of Slurm keep running."""
        self.kill()
        return not self._on_slurm

    def kill(self) -> None:
        """Cancel jobs on this machine."""
        if not self._on_slurm:
            for submitted in self._submitted.values():
                submitted.cancel()

    def _update(self, own: Mapping[str, int]) -> None:
        shared = {"name": "lowbit", "timeout_min": _MINUTES, "nodes": 1, "tasks_per_node": 1}
        try:
            self._executor.update_parameters(**shared, **own, **self._parameters)
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

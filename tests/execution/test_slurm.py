"""Jobs through submitit's local executor: the same results, and a requeue where a job is preempted."""

import os
import signal
import time

import pytest

pytest.importorskip("submitit")

from lowbit.config.problems import ConfigError
from lowbit.execution.progress import View
from lowbit.execution.slurm import Slurm, SubmittedCommand
from lowbit.execution.state import State, state_of
from lowbit.execution.sweep import run_sweep


def test_jobs_run_and_failures_are_told(job, command, tmp_path):
    good, bad = job("good"), job("bad", code=3)
    launcher = Slurm(tmp_path / "submitit", 2, "local", {}, command)
    (failure,) = run_sweep([good, bad], launcher, View(2))
    assert (failure.job, failure.reason) == (bad, "error: out of luck")
    assert [state_of(good), state_of(bad)] == [State.done, State.failed]


def test_preempted_job_is_requeued(job, command, tmp_path):
    """Slurm sends the signal of a preemption; submitit stops the job, and the same job starts again."""
    one = job("one", long=True)
    launcher = Slurm(tmp_path / "submitit", 1, "local", {}, command)
    launcher.start(one)
    while not (one.folder / "pid").exists():
        time.sleep(0.02)
    first = (one.folder / "pid").read_text()
    os.kill(int((one.folder / "parent").read_text()), signal.SIGUSR2)
    while not (ended := launcher.poll()):
        time.sleep(0.05)
    assert ended == [(one, 0)]
    assert (one.folder / "pid").read_text() != first
    assert one.log.read_text().count("\n$ ") + one.log.read_text().startswith("$ ") == 2
    assert "interrupted" in one.log.read_text()
    assert state_of(one) is State.done


def test_checkpoint_before_the_start_is_the_same_job(tmp_path):
    delayed = SubmittedCommand(tmp_path, ["true"]).checkpoint()
    assert isinstance(delayed.function, SubmittedCommand)
    assert delayed.function() == 0


def test_parameters_reach_slurm(tmp_path, monkeypatch):
    """The executor of Slurm can be built anywhere; only its submission needs sbatch."""
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/sbatch")
    launcher = Slurm(tmp_path, 4, "slurm", {"partition": "gpu", "time": "60"})
    launcher._update({"gpus_per_node": 2, "cpus_per_task": 8})
    text = launcher._executor._executor._make_submission_file_text("command", "uid")
    for line in ("--partition=gpu", "--time=60", "--gpus-per-node=2", "--cpus-per-task=8", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}" in text
    assert launcher._executor._executor.max_num_timeout == 200  # of 58 hours in pieces of 4
    assert launcher.interrupt() is False
    with pytest.raises(ConfigError, match="partitoin"):
        Slurm(tmp_path, 4, "slurm", {"partitoin": "gpu"})

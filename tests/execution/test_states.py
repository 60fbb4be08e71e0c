"""The state of a job, as its folder tells it."""

import os
import socket
from dataclasses import asdict

import pytest
from filelock import FileLock

from lowbit.execution.states import State, is_running, state_of, steps_done
from lowbit.files import write_json
from lowbit.results.run_folder import Attempt, Progress, StageRecord, read_progress, write_attempt, write_progress


def test_states_in_the_order_of_a_life(job, finish):
    a = job("a")
    assert state_of(a) is State.missing
    a.folder.mkdir(parents=True)
    holder = {"pid": os.getpid(), "host": socket.gethostname()}
    write_json(a.folder / "holder.json", holder)
    with FileLock(a.folder / ".lock"):
        assert state_of(a) is State.running
    assert state_of(a) is State.missing
    (a.folder / "error.log").write_text("Traceback")
    assert state_of(a) is State.failed
    finish(a)
    assert state_of(a) is State.done


@pytest.mark.parametrize(("code", "state"), [(1, State.failed), (-9, State.failed), (130, State.missing)])
def test_exit_code_of_the_last_process(code, state, job):
    """A job that the sweep interrupted is to be resumed; one that was killed by the system has failed."""
    a = job("a")
    write_attempt(a.folder, Attempt(code, 1.0, whole=True))
    assert state_of(a) is state


def test_damaged_run_is_not_done(job):
    a = job("a")
    a.folder.mkdir(parents=True)
    (a.folder / "run.json").write_text("{")
    assert state_of(a) is State.missing


def test_dead_holder_is_told_without_touching_the_lock(job, monkeypatch):
    a = job("a")
    a.folder.mkdir(parents=True)
    write_json(a.folder / "holder.json", {"pid": 2**22 + 1, "host": socket.gethostname()})  # above the limit of Linux
    with FileLock(a.folder / ".lock"):  # by another process, which has not written its name yet
        assert not is_running(a.folder)


def test_progress_of_the_stage_in_training_counts(job):
    a = job("a")
    write_json(a.folder / "stages" / "first" / "stage.json", asdict(StageRecord("first", 60, 1.0, {})))
    write_json(a.folder / "stages" / "third" / "stage.json", [])
    write_progress(a.folder / "stages" / "second", Progress("second", "second:probs", 7, 40, {"loss": 0.5}))
    assert steps_done(a.folder) == 67
    assert read_progress(a.folder) == Progress("second", "second:probs", 7, 40, {"loss": 0.5})
    (a.folder / "stages" / "second" / "progress.json").write_text("{")
    assert read_progress(a.folder) is None

"""The state of a job, as its folder tells it."""

import os
import socket
from dataclasses import asdict
from pathlib import Path

import pytest
from filelock import FileLock

from lowbit.execution.progress import View, print_plan
from lowbit.execution.state import State, damage, is_running, state_of, steps_done
from lowbit.files import write_json
from lowbit.results.run_file import Attempt, Progress, StageRecord, read_progress, write_attempt, write_progress


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


DAMAGED = {
    "run.json": ["{", "", "[]", "7", '{"schema": 1}', "\udcff", "[" * 100_000, '{"schema": 1' + "0" * 5000],
    "stages/one/stage.json": ["{", "", "[]", '{"steps": 60}', '{"name": 1, "steps": "x", "seconds": 1, "metrics": {}}'],
}
HELPERS = {  # records that only help to show a run: one that cannot be read is as good as none
    "holder.json": ["[]", "{}", '{"pid": "one", "host": 1}', f'{{"pid": {10**30}, "host": "{socket.gethostname()}"}}'],
    "attempt.json": ["[]", '{"exit_code": "x"}', '{"exit_code": 1, "more": 2}'],
    "stages/one/progress.json": ["[]", "{}", '{"stage": "a", "phase": "a", "step": 1, "steps": 2, "values": {}}'],
}


def cases(files):
    return [(file, text) for file, texts in files.items() for text in texts]


@pytest.mark.parametrize(("file", "text"), cases(DAMAGED))
def test_damaged_run_says_which_file(file, text, job, capsys):
    """It is no other state, and the dry run names the file; nothing else is in its way."""
    a, other = job("a"), job("other")
    (a.folder / file).parent.mkdir(parents=True)
    (a.folder / file).write_text(text, errors="surrogateescape")
    assert [state_of(one) for one in (a, other)] == [State.damaged, State.missing]
    print_plan([a, other], {"a": State.damaged, "other": State.missing}, slots=1)
    first, second, total = capsys.readouterr().out.splitlines()
    assert first.startswith("damaged  a  job=a")
    assert str(a.folder / file) in first
    assert "un the same command again" in first
    assert second.startswith("missing  other")
    assert total.startswith("2 jobs: 1 damaged, 1 missing")


@pytest.mark.parametrize("where", ["runs", "runs/a"])
def test_file_in_the_place_of_a_folder(where, job, tmp_path):
    a = job("a")
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).write_text("")
    assert state_of(a) is State.damaged
    assert "Move it away" in damage(a.folder)


@pytest.mark.parametrize(("file", "text"), cases(HELPERS))
def test_damaged_helper_does_no_harm(file, text, job):
    a = job("a")
    (a.folder / file).parent.mkdir(parents=True, exist_ok=True)
    (a.folder / file).write_text(text)
    (a.folder / ".lock").touch()
    assert state_of(a) is State.missing
    view = View(1)
    view.begin([a], {"a": State.missing})
    view.started(a)
    assert view.line(a).state == "running"
    with FileLock(a.folder / ".lock"):
        assert state_of(a) is (State.running if file == "holder.json" and str(10**30) not in text else State.missing)


def test_run_of_another_user(job, finish, monkeypatch):
    """What cannot be read is damaged; a lock that cannot be opened may be held."""
    a = job("a")
    finish(a)

    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert state_of(a) is State.damaged
    assert damage(a.folder) == f"{a.folder / 'run.json'} cannot be read (Permission denied). Make it readable."


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

"""Processes of jobs: how many at once, their threads and GPUs, and what becomes of them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowbit.execution import pool as pool_module
from lowbit.execution.pool import Pool, gpus_of
from lowbit.execution.process import PARENT_VARIABLE, last_error
from lowbit.execution.state import State, state_of
from lowbit.results.run_file import read_attempt


def ends(pool: Pool, count: int) -> dict[str, int]:
    codes: dict[str, int] = {}
    while len(codes) < count:
        codes.update({job.run_id: code for job, code in pool.poll()})
        time.sleep(0.02)
    return codes


def gone(pid: int) -> bool:
    """A process that was killed is gone once its parent, or init, has taken note."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_codes_logs_and_records(job, command):
    pool = Pool(2, command)
    good, bad = job("good"), job("bad", code=3)
    pool.start(good)
    pool.start(bad)
    assert set(pool.running) == {"good", "bad"}
    assert ends(pool, 2) == {"good": 0, "bad": 3}
    assert pool.running == {}
    assert (state_of(good), state_of(bad)) == (State.done, State.failed)
    assert last_error(bad.log) == "error: out of luck"
    attempt = read_attempt(good.folder)
    assert attempt is not None
    assert (attempt.exit_code, attempt.whole) == (0, True)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("error: first\nlater words\nerror: last\nmore\n", "error: last"),
        ("2 problems in the configuration:\n  - seed=-1: wrong\n  - rules do not fit:\n    no.such.layer\n",
         "rules do not fit: no.such.layer"),
        ("Traceback\nRuntimeError: boom\ntraceback: error.log\n", "RuntimeError: boom"),
        ("", "the log is empty"),
    ],
)  # fmt: skip
def test_last_error_of_a_log(text, error, tmp_path):
    assert last_error(tmp_path / "job.log") == "no log was written"
    (tmp_path / "job.log").write_text(text)
    assert last_error(tmp_path / "job.log") == error


def test_cores_are_shared_unless_a_job_says_its_threads(job, command, monkeypatch):
    monkeypatch.setattr(pool_module, "cores", lambda: 8)
    pool = Pool(3, command)
    for one in (job("shared"), job("own", threads=5)):
        pool.start(one)
    alone = Pool(1, command)
    alone.start(job("alone"))
    ends(pool, 2)
    ends(alone, 1)
    told = {name: job(name).log.read_text().splitlines()[-1] for name in ("shared", "own", "alone")}
    assert told == {"shared": "threads ['trainer.threads=2']", "own": "threads []", "alone": "threads []"}


@pytest.mark.parametrize(
    ("visible", "slot", "slots", "devices", "expected"),
    [("0,1,2,3", 1, 2, 1, "1"), ("4,5,6,7", 1, 2, 2, "6,7"), ("0,1", 2, 3, 1, "0"), ("0,1", 0, 1, 1, None)],
)
def test_gpus_are_shared(visible, slot, slots, devices, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus_of(slot, slots, devices).get("CUDA_VISIBLE_DEVICES") == expected


def test_nothing_to_share_without_gpus(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pool_module, "_GPUS", tmp_path / "none")
    assert gpus_of(0, 2, 1) == {}


def started(folder: Path) -> int:
    while not (folder / "pid").exists():
        time.sleep(0.02)
    return int((folder / "pid").read_text())


def test_interrupted_job_ends_and_has_not_failed(job, command):
    pool, long = Pool(1, command), job("long", long=True)
    pool.start(long)
    started(long.folder)
    assert pool.interrupt()
    assert ends(pool, 1) == {"long": 130}
    assert state_of(long) is State.missing
    assert long.log.read_text().endswith("interrupted\n")


def test_killed_job_is_gone(job, command):
    pool, long = Pool(1, command), job("long", long=True)
    pool.start(long)
    pid = started(long.folder)
    pool.kill()
    assert gone(pid)
    assert state_of(long) is State.missing


PARENT = """
import os, subprocess, sys, time
child = '''
import os, time
from lowbit.execution.process import follow_parent
follow_parent()
print(os.getpid(), flush=True)
time.sleep(600)
'''
environment = {**os.environ, sys.argv[1]: str(os.getpid())}
subprocess.Popen([sys.executable, "-c", child], env=environment, start_new_session=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread looks once a second")
def test_kill_9_of_the_sweep_leaves_no_orphan():
    arguments = [sys.executable, "-c", PARENT, PARENT_VARIABLE]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child)
        parent.kill()
        parent.wait()
    while not gone(child):
        time.sleep(0.02)


def test_process_that_was_not_started_by_a_sweep_follows_nobody(monkeypatch):
    from lowbit.execution.process import follow_parent

    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    follow_parent()
    assert PARENT_VARIABLE not in os.environ

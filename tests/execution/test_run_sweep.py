"""A sweep from its first job to its list of failures, with jobs that do not train."""

import os
import signal
import socket

import pytest
from filelock import FileLock

from lowbit.cli.sweep import exit_code
from lowbit.execution.pool import Pool
from lowbit.execution.progress import View
from lowbit.execution.state import State, state_of
from lowbit.execution.sweep import Failure, run_sweep
from lowbit.results.run_file import write_holder


def test_only_what_is_missing_is_run(job, command, finish, capsys):
    done, missing, failing = job("done"), job("missing"), job("failing", code=1)
    finish(done)
    before = (done.folder / "run.json").stat().st_mtime_ns
    failures = run_sweep([done, missing, failing], Pool(2, command), View(2))
    assert [(failure.job.run_id, failure.reason) for failure in failures] == [("failing", "error: out of luck")]
    assert [state_of(one) for one in (done, missing, failing)] == [State.done, State.done, State.failed]
    assert (done.folder / "run.json").stat().st_mtime_ns == before
    assert not done.log.exists()
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "3 jobs: 1 done, 2 missing"
    assert out[-1] == "3 jobs: 2 done, 1 failed"
    assert any(line.startswith("done job=missing: test/accuracy 0.5000") for line in out)


def test_second_time_nothing_is_run(job, command, capsys):
    jobs = [job("a"), job("b")]
    assert run_sweep(jobs, Pool(1, command), View(1)) == []
    stamps = [(one.folder / "run.json").stat().st_mtime_ns for one in jobs]
    assert run_sweep(jobs, Pool(1, command), View(1)) == []
    assert [(one.folder / "run.json").stat().st_mtime_ns for one in jobs] == stamps
    assert "started" not in capsys.readouterr().out.split("2 jobs: 2 done", 1)[1]


def test_what_a_killed_sweep_left_in_a_finished_run_goes(job, command, finish):
    """Its temporary file of attempt.json, when it was killed as a job had ended; nothing runs in that folder again."""
    done = job("done")
    finish(done)
    left = done.folder / f".attempt.json.01234567.{socket.gethostname()}-{2**22 + 1}.tmp"
    left.touch()
    assert run_sweep([done], Pool(1, command), View(1)) == []
    assert not left.exists()


def test_damaged_runs_stop_no_other(job, command, tmp_path, capsys):
    """Not the neighbour that runs, nor those that follow: a file for a folder, garbage in every record."""
    no_folder, garbage, first, last = (job(name) for name in ("no_folder", "garbage", "first", "last"))
    no_folder.folder.parent.mkdir()
    no_folder.folder.write_text("")
    (garbage.folder / "stages" / "one").mkdir(parents=True)
    for file in ("run.json", "holder.json", "attempt.json", "stages/one/stage.json", "stages/one/progress.json"):
        (garbage.folder / file).write_bytes(b"\xff\x00[")
    (failure,) = run_sweep([first, no_folder, garbage, last], Pool(2, command), View(2))
    assert failure.job is no_folder
    assert str(no_folder.folder) in failure.reason
    assert [state_of(one) for one in (first, garbage, last)] == [State.done] * 3
    assert capsys.readouterr().out.splitlines()[0] == "4 jobs: 2 damaged, 2 missing"


def test_exit_code_says_that_jobs_still_run_elsewhere(job, finish, capsys):
    """3, and which they are; 1 where others have failed; 0 once they are done."""
    a, b = job("a"), job("b")
    finish(b)
    a.folder.mkdir(parents=True)
    write_holder(a.folder)
    with FileLock(a.folder / ".lock"):
        assert exit_code([], [a, b]) == 3
        assert "1 of 2 jobs are still running in another process" in capsys.readouterr().err
        assert exit_code([Failure(b, "of a reason")], [a, b]) == 1
    finish(a)
    assert exit_code([], [a, b]) == 0


def test_invalid_job_is_a_failure_with_a_log(job, command):
    bad = job("bad", problems=("seed=-1: must be at least 0",))
    good = job("good")
    (failure,) = run_sweep([bad, good], Pool(1, command), View(1))
    assert failure.job is bad
    assert "seed=-1" in bad.log.read_text()
    assert state_of(good) is State.done


def test_jobs_that_share_a_missing_teacher_do_not_wait_in_slots(job, command, tmp_path):
    """The first trains it; a job with another teacher takes the second slot before those that would wait."""
    order = []

    class Ordered(Pool):
        def start(self, one):
            order.append((one.run_id, len(self.running)))
            super().start(one)

    teacher = tmp_path / "teachers" / "t"
    waiting = [job(f"w{index}", teacher=teacher) for index in range(2)]
    jobs = [*waiting, job("other", teacher=tmp_path / "teachers" / "u")]
    assert run_sweep(jobs, Ordered(2, command), View(2)) == []
    assert [name for name, _ in order] == ["w0", "other", "w1"]
    assert order[2][1] <= 1


@pytest.mark.parametrize("by", ["SIGINT", "SIGTERM"])
def test_interrupt_waits_for_the_jobs_and_leaves_them_resumable(by, job, command, capsys):
    """Ctrl-C in the terminal, and SIGTERM of a batch system."""
    long, later = job("long", long=True), job("later")

    class Interrupted(View):
        def show(self):
            if (long.folder / "pid").exists():
                os.kill(os.getpid(), getattr(signal, by))

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_sweep([long, later], Pool(1, command), Interrupted(1))
    assert signal.getsignal(signal.SIGTERM) is before
    assert long.log.read_text().endswith("interrupted\n")
    assert [state_of(long), state_of(later)] == [State.missing, State.missing]
    assert "once more kills them" in capsys.readouterr().out


def test_second_interrupt_kills(job, command):
    deaf = job("deaf", long=True)

    class Deaf(Pool):
        def interrupt(self):
            self.heard = True
            return True  # and the job never hears of it

        def poll(self):
            if getattr(self, "heard", False):
                raise KeyboardInterrupt  # the second one
            return super().poll()

    class Interrupted(View):
        def show(self):
            if (deaf.folder / "pid").exists():
                raise KeyboardInterrupt

    pool = Deaf(1, command)
    with pytest.raises(KeyboardInterrupt):
        run_sweep([deaf], pool, Interrupted(1))
    pid = int((deaf.folder / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)

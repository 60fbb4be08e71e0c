"""What a sweep shows, and how long it says that it will take."""

import io

import pytest
from rich.console import Console

from lowbit.execution.progress import Estimate, LiveTable, View, make_view, print_plan
from lowbit.execution.state import State
from lowbit.results.run_file import Attempt, Progress, write_attempt, write_progress


def test_estimate_goes_by_method_then_by_all(job, finish):
    """Seconds per step of the method's jobs, and on top what jobs take besides their steps."""
    estimate = Estimate()
    assert estimate.seconds(job("x")) is None
    fast, slow = job("fast", method="f"), job("slow", method="s")
    finish(fast, seconds=10.0, steps=10)
    finish(slow, seconds=30.0, steps=10)
    write_attempt(fast.folder, Attempt(0, 14.0, whole=True))
    write_attempt(slow.folder, Attempt(0, 500.0, whole=False))
    for one in (fast, slow):
        estimate.learn(one)
    assert estimate.seconds(job("x", method="f", steps=20)) == pytest.approx(24.0)
    assert estimate.seconds(job("x", method="s", steps=20)) == pytest.approx(64.0)
    assert estimate.seconds(job("x", method="new", steps=20)) == pytest.approx(44.0)
    half = job("half", method="f", steps=20)
    write_progress(half.folder / "stages" / "a", Progress("a", "a", 10, 20))
    assert estimate.left(half) == pytest.approx(12.0)


def test_plan_lists_states_and_time(job, finish, capsys):
    jobs = [job("a"), job("b"), job("c", problems=("seed=-1: wrong",))]
    finish(jobs[0])
    print_plan(jobs, {"a": State.done, "b": State.missing, "c": State.failed}, slots=1)
    assert capsys.readouterr().out.splitlines() == [
        "done     a  job=a  (test/accuracy 0.5000)",
        "missing  b  job=b  (about 5 s)",
        "failed   c  job=c  (config is not valid)",
        "3 jobs: 1 done, 1 failed, 1 missing; about 5 s left, one at a time, judged by 1 finished",
    ]


def test_plan_without_a_finished_job(job, capsys):
    print_plan([job("a")], {"a": State.missing}, slots=2)
    assert capsys.readouterr().out.endswith("1 job: 1 missing; no job has finished yet, so the time is not known\n")


def test_line_of_a_job_whose_teacher_is_in_training(job, tmp_path):
    a = job("a", teacher=tmp_path / "teachers" / "t")
    write_progress(tmp_path / "teachers" / "t.partial", Progress("teacher", "teacher", 5, 9, {"loss": 1.0}))
    view = View(1)
    view.begin([a], {"a": State.missing})
    view.started(a)
    assert view.line(a).phase == "teacher, step 5 of 9"
    write_progress(a.folder / "stages" / "one", Progress("one", "one:probs", 3, 9, {"loss": 1.5}))
    assert (view.line(a).phase, view.line(a).metric) == ("one:probs, step 3 of 9", "loss 1.5000")


def test_live_table_shows_running_ended_and_next_jobs(job, finish, monkeypatch):
    screen = io.StringIO()
    view = LiveTable(2, "mine")
    monkeypatch.setattr(view._live, "console", Console(file=screen, force_terminal=True, width=140))
    jobs = [job(name) for name in ("a", "b", "c")]
    view.begin(jobs, {one.run_id: State.missing for one in jobs})
    view.started(jobs[0])
    finish(jobs[0])
    view.ended(jobs[0], State.done)
    view.started(jobs[1])
    write_progress(jobs[1].folder / "stages" / "one", Progress("one", "one", 3, 9, {"loss": 1.5}))
    view.note("a sentence")
    view.end()
    last = screen.getvalue().rsplit("mine", 1)[1]
    for word in ("job=a", "done", "0.5000", "job=b", "running", "one, step 3 of 9", "loss 1.5000", "job=c", "missing"):
        assert word in last
    assert "3 jobs: 1 done, 1 running, 1 missing" in last
    assert "a sentence" in screen.getvalue()


def test_live_table_of_many_jobs_fits_a_terminal(job):
    view = LiveTable(1, "mine")
    jobs = [job(f"{index}") for index in range(90)]
    view.take(jobs, {one.run_id: State.missing for one in jobs})
    for one in jobs[:40]:
        view.ended(one, State.failed)
    view.started(jobs[40])
    shown = [one.run_id for one in view.chosen()]
    assert len(shown) == 20
    assert shown[:11] == [str(index) for index in range(31, 42)]


def test_live_table_is_for_terminals(monkeypatch):
    assert type(make_view(1, "mine", live=True)) is View  # pytest's output is no terminal
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert type(make_view(1, "mine", live=True)) is LiveTable
    assert type(make_view(1, "mine", live=False)) is View

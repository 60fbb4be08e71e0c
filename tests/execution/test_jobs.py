"""What a sweep's override lists become: one job per run, with its problems where it is not valid."""

import pytest

from lowbit.config import compose as C
from lowbit.config.problems import ConfigError
from lowbit.execution.jobs import one_job, plan

BUDGET = "budget.epochs=null"


def test_jobs_have_what_a_launcher_needs(tmp_path):
    jobs = plan(C.expand(["method=ternarybert,finetune", f"paths.outputs={tmp_path}", "budget.steps=7", BUDGET]), "s")
    ternary, plain = jobs
    assert [job.label for job in jobs] == ["method=ternarybert", "method=finetune"]
    assert ternary.folder == tmp_path / "runs" / "digits" / "ternarybert" / ternary.run_id
    assert (ternary.steps, ternary.method, ternary.devices, ternary.threads) == (7, "ternarybert", 1, None)
    assert ternary.teacher is not None
    assert ternary.teacher.parent == tmp_path / "teachers"
    assert plain.teacher is None
    assert ternary.command == f"lowbit train method=ternarybert paths.outputs={tmp_path} budget.steps=7 {BUDGET}"


def test_settings_of_the_hardware_do_not_make_another_run():
    """A pool gives its jobs threads; the run, its folder and its table cell stay the same."""
    plain, threaded = one_job(["method=ti_g"], "a"), one_job(["method=ti_g", "trainer.threads=1"], "a")
    assert threaded.run_id == plain.run_id
    assert threaded.threads == 1
    (only,) = plan([["method=ti_g"], ["method=ti_g", "trainer.threads=1"]], "s")
    assert only.run_id == plain.run_id


def test_invalid_job_is_kept_with_its_problems(tmp_path):
    jobs = plan([["seed=1"], ["seed=-1", f"paths.outputs={tmp_path}"]], "mine")
    assert [bool(job.problems) for job in jobs] == [False, True]
    assert "seed=-1" in jobs[1].problems[0]
    assert jobs[1].folder.parts[:3] == ("outputs", "sweeps", "mine")
    assert jobs[0].folder != jobs[1].folder


def test_no_valid_job_is_a_config_error():
    with pytest.raises(ConfigError) as caught:
        plan([["seed=-1"], ["seed=-2"]], "mine")
    assert len(caught.value.problems) == 2

"""A teacher that is not good enough stops a run before its students are trained."""

from pathlib import Path

import pytest
from tiny import TINY_TI

from lowbit.config.validate import load
from lowbit.results import read_run
from lowbit.training.train import train


def test_a_teacher_below_the_expected_score_stops_the_run_with_its_score(outputs: Path, capsys):
    overrides = [*TINY_TI, f"paths.outputs={outputs}", "trainer.threads=1"]
    with pytest.raises(
        ValueError, match=r"test/matthews is -?0\.\d{4}, below teacher\.min_score=0\.99; train it longer"
    ):
        train(*load([*overrides, "teacher.min_score=0.99"]))
    assert not list(outputs.glob("runs/**/run.json"))
    assert "stage intervene" not in capsys.readouterr().out
    train(*load([*overrides, "teacher.min_score=-1"]))
    assert "cached in" in capsys.readouterr().out  # the guard changes neither the teacher's id nor the run's
    (run,) = outputs.glob("runs/**/run.json")
    assert read_run(run.parent)["status"] == "finished"

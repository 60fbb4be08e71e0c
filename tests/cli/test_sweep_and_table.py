"""A sweep's jobs, its second start, its table, and what happens when one of its jobs fails."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from lowbit.cli import main
from lowbit.config import compose as C

Verb = Callable[..., int]


@pytest.fixture
def verb(tiny: list[str], outputs: Path) -> Verb:
    """Return a function that runs a verb with the tiny overrides."""

    def run(name: str, *words: str, steps: int = 62) -> int:
        return main([name, *words, *tiny, f"budget.steps={steps}", f"paths.outputs={outputs}"])

    return run


def test_sweep_runs_and_its_table_finds_the_runs(verb, outputs, runs_in, capsys):
    """What other sweeps are made of is composed in tests/config, and trained in test_run_everything."""
    name = "demo"
    jobs = len(C.expand(C.sweep_overrides(name, [])))
    assert verb("sweep", name) == 0
    assert "FAILED" not in capsys.readouterr().err
    runs = [run for run in runs_in(outputs).values() if run["sweep"] == name]
    assert len(runs) == jobs

    assert verb("table", name, "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["status"] for row in rows} == {"done"}
    assert len(rows) == jobs + len({run["teacher"]["id"] for run in runs})

    assert verb("sweep", name) == 0
    out = capsys.readouterr().out
    assert out.count("finished before") == jobs
    assert " steps\n" not in out
    assert len(runs_in(outputs)) == jobs


@pytest.mark.parametrize(
    ("format_", "first"), [("md", "| method |"), ("csv", "method,"), ("latex", "\\begin{tabular}"), (None, "demo")]
)
def test_table_formats(format_, first, verb, capsys, tmp_path):
    """The format goes before or after the overrides, and without one the table is for the terminal."""
    words = [] if format_ is None else ["--format", format_]
    assert verb("table", "demo", *words, "method=ternarybert") == 0
    before = capsys.readouterr().out
    assert first in before
    assert "ternarybert" in before
    if format_ == "md":
        assert verb("table", "demo", "method=ternarybert", *words) == 0
        assert capsys.readouterr().out == before


def test_table_into_a_file(verb, capsys, tmp_path):
    file = tmp_path / "new" / "demo.md"
    assert verb("table", "demo", "method=ti_g", "--out", str(file)) == 0
    assert capsys.readouterr().out == f"wrote {file}\n"
    assert file.read_text().startswith("| method |")
    assert verb("table", "demo", "method=ti_g", "--out", str(file), "--format", "latex") == 0
    assert "\\begin{tabular}" in file.read_text()


def test_table_names_the_command_of_a_missing_cell(verb, capsys, tmp_path):
    """The command that it prints is one that `lowbit check` accepts and that leads to the same cell."""
    assert verb("table", "demo", "seed=77", "method=ti_g") == 0
    out = capsys.readouterr().out
    (command,) = [line.strip() for line in out.splitlines() if line.strip().startswith("lowbit train ")]
    assert main(["check", *command.split()[2:]]) == 0
    (cell,) = [line for line in capsys.readouterr().out.splitlines() if line.endswith(": valid")]
    assert cell.startswith("digits/ti_g/")


def test_table_with_a_deletion(verb, capsys):
    assert verb("table", "demo", "method=ti_g", "~method.losses.hidden", "--format", "md") == 0
    assert "| ti_g |" in capsys.readouterr().out


def test_override_of_a_swept_key_replaces_its_values(verb, outputs, runs_in, capsys, few_steps):
    """Also with a setting that only the swept methods have, which Hydra cannot place before it has swept."""
    words = ["method=ti_o,ti_g", "method.stages.intervene.steps=2", "seed=9"]
    before = runs_in(outputs)
    assert verb("sweep", "demo", *words, steps=3) == 0
    assert sum(line.startswith("run digits/") for line in capsys.readouterr().out.splitlines()) == 2
    new = {id_: run for id_, run in runs_in(outputs).items() if id_ not in before}
    assert sorted(run["config"]["method"]["name"] for run in new.values()) == ["ti_g", "ti_o"]
    assert {run["stages"][0]["steps"] for run in new.values()} == {2}
    capsys.readouterr()
    assert verb("table", "demo", *words, "--format", "csv", steps=3) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["method"], row["status"]) for row in rows] == [("teacher", "done"), ("ti_o", "done"), ("ti_g", "done")]


def test_multirun_of_two_seeds(verb, outputs, runs_in, capsys):
    before = runs_in(outputs)
    assert verb("train", "-m", "method=finetune", "seed=1,2", steps=2) == 0
    new = [run for id_, run in runs_in(outputs).items() if id_ not in before]
    assert sorted(run["seeds"]["run"] for run in new) == [1, 2]


def test_failing_job_does_not_stop_the_others(verb, outputs, runs_in, capsys):
    """A pattern that fits one model only passes the config checks and fails when the model is there."""
    rule = "quantizer.rules=[{match:[no.such.layer],weight:{kind:twn}}],[{match:[query],weight:{kind:twn}}]"
    before = runs_in(outputs)
    assert verb("train", "-m", "method=ternarybert", rule, steps=2) == 1
    new = [run for id_, run in runs_in(outputs).items() if id_ not in before]
    (finished,) = new
    assert finished["config"]["quantizer"]["rules"][0]["match"] == ["query"]
    err = capsys.readouterr().err
    head, summary = err.split("1 of 2 jobs failed; the same command again retries them:")
    assert "FAILED digits/ternarybert/" in head
    assert "no.such.layer" in summary
    assert "digits/ternarybert/" in summary
    assert "Traceback" not in err


def test_invalid_job_stops_all_before_the_first(verb, outputs, runs_in, capsys):
    before = runs_in(outputs)
    assert verb("train", "-m", "method=finetune", "seed=50,-1") == 2
    assert "seed=-1" in capsys.readouterr().err
    assert runs_in(outputs) == before


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=1,2", "optimizer.lr=1e-3"],
        ["method=ti_o,ti_g", "method.stages.intervene.steps=3", "name='a, b'"],
        ["quantizer.rules=[{match:[query]}]", "logger.tags=[x,y]", "name='(x)'", "+method.losses.hidden.weight=2"],
        ["model.path=/a/b c", "paths.outputs=out", "~method.losses.hidden", "sweep=null", "name="],
        ["seed=1,2", "method=ti_m", "seed=3,4,5", "method=ti_o", "optimizer.lr=1", "optimizer.lr=2"],
        ["seed=range(1,4)", "scheduler.warmup=choice(0.0,0.1)", "optimizer.lr=${teacher.optimizer.lr}"],
    ],
    ids=str,
)
def test_hydra_gets_the_jobs_that_we_expand(overrides):
    """`lowbit table` and the checks expand by themselves; Hydra's sweeper must come to the same configs."""
    parser = OverridesParser.create()
    (batch,) = BasicSweeper.split_arguments(parser.parse_overrides(C.hydra_arguments(overrides)), max_batch_size=None)
    ours = C.expand(overrides)
    assert len(batch) == len(ours)
    for theirs, own in zip(batch, ours, strict=True):
        assert [o.value() for o in parser.parse_overrides(list(theirs))] == [
            o.value() for o in parser.parse_overrides(own)
        ]


def test_last_override_of_a_key_counts():
    assert C.expand(["seed=1,2", "method=ti_m", "seed=3"]) == [["seed=3", "method=ti_m"]]
    jobs = C.expand(C.sweep_overrides("demo", ["method=ti_o,ti_g"]))
    assert [[word for word in job if word.startswith("method")] for job in jobs] == [["method=ti_o"], ["method=ti_g"]]

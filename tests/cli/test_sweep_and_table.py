"""A sweep's jobs, its second start, its table, and what happens when one of its jobs fails."""

import csv
import io
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from lowbit.cli import main
from lowbit.config import compose as C
from lowbit.config.problems import ConfigError

Verb = Callable[..., int]


@pytest.fixture
def verb(tiny: list[str], outputs: Path) -> Verb:
    """Return a function that runs a verb with the tiny overrides, in this process."""

    def run(name: str, *words: str, steps: int = 62) -> int:
        launcher = ["--launcher", "basic"] if name == "sweep" or "-m" in words else []
        one = ["seed=1"] if "demo" in words and not any(word.startswith("seed=") for word in words) else []
        return main([name, *words, *one, *launcher, *tiny, f"budget.steps={steps}", f"paths.outputs={outputs}"])

    return run


@pytest.mark.parametrize(
    ("words", "steps"),
    [(("method=ternarybert,kd_qat", "seed=1"), 3), pytest.param(("seed=1",), 62, marks=pytest.mark.slow, id="all")],
)
def test_sweep_runs_and_its_table_finds_the_runs(words, steps, verb, outputs, runs_in, capsys):
    """What other sweeps are made of is composed in tests/config, and trained in test_run_everything."""
    name = "demo"
    jobs = len(C.expand(C.sweep_overrides(name, [*words])))
    before = runs_in(outputs)
    assert verb("sweep", name, *words, steps=steps) == 0
    assert "FAILED" not in capsys.readouterr().err
    runs = [run for id_, run in runs_in(outputs).items() if id_ not in before]
    assert len(runs) == jobs
    assert {run["sweep"] for run in runs} == {name}

    assert verb("table", name, *words, "--format", "csv", steps=steps) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["status"] for row in rows} == {"done"}
    assert len(rows) == jobs + len({run["teacher"]["id"] for run in runs})

    assert verb("sweep", name, *words, steps=steps) == 0
    out = capsys.readouterr().out
    assert out == f"{jobs} jobs: {jobs} done\n{jobs} jobs: {jobs} done\n"
    assert len(runs_in(outputs)) == len(before) + jobs


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
    head, label, reason, command, log = err.splitlines()
    assert head == "1 of 2 jobs failed; the same command again retries them:"
    assert "no.such.layer" in label
    assert "no.such.layer" in reason
    assert main(["check", *shlex.split(command)[2:]]) == 2
    assert "no.such.layer" in Path(log.split("log: ")[1]).read_text()


def test_invalid_job_does_not_stop_the_others(verb, outputs, runs_in, capsys):
    """A bad override of one job: the others finish, and the list names it with its command and log."""
    before = runs_in(outputs)
    assert verb("train", "-m", "method=finetune,nonsense", "seed=50", steps=2) == 1
    new = [run for id_, run in runs_in(outputs).items() if id_ not in before]
    assert [run["config"]["method"]["name"] for run in new] == ["finetune"]
    err = capsys.readouterr().err
    head, label, reason, command, log = err.splitlines()
    assert head == "1 of 2 jobs failed; the same command again retries them:"
    assert label == "  - method=nonsense"
    assert "no such choice" in reason
    assert command.startswith("    lowbit train method=nonsense seed=50 ")
    assert "no such choice" in Path(log.split("log: ")[1]).read_text()


def test_invalid_job_does_not_keep_the_table_back(verb, capsys):
    """What the sweep runs beside it has a row."""
    words = ["method=ternarybert,nonsense", "--format", "csv"]
    assert verb("table", "demo", *words, steps=2) == 0
    out, err = capsys.readouterr()
    assert "nonsense" not in out
    assert "ternarybert" in out
    assert "not in the table: lowbit train +sweeps=demo sweep=demo method=nonsense " in err
    assert verb("table", "demo", "method=nonsense", steps=2) == 2
    assert "no such choice" in capsys.readouterr().err


def test_nothing_runs_if_no_job_is_valid(verb, outputs, runs_in, capsys):
    before = runs_in(outputs)
    assert verb("train", "-m", "method=finetune", "seed=-1,-2") == 2
    err = capsys.readouterr().err
    assert "seed=-1" in err
    assert "seed=-2" in err
    assert runs_in(outputs) == before


def test_dry_run_lists_states_and_starts_nothing(verb, outputs, runs_in, capsys):
    before = runs_in(outputs)
    assert verb("train", "-m", "method=finetune", "seed=1,77,-1", "--dry-run", steps=2) == 0
    done, missing, failed, total = capsys.readouterr().out.splitlines()
    assert done.split()[0] == "done"
    assert done.split()[2] == "seed=1"
    assert missing.split()[0] == "missing"
    assert failed.endswith("seed=-1  (config is not valid)")
    assert total.startswith("3 jobs: 1 done, 1 failed, 1 missing; about ")
    assert runs_in(outputs) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "seed=1", "--jobs", "2"], "add -m"),
        (["sweep", "demo", "--jobs", "0"], "--jobs 0"),
        (["sweep", "demo", "--launcher", "basic", "--jobs", "2"], "one job at a time"),
        (["sweep", "demo", "--slurm", "partition=gpu"], "--launcher submitit"),
        (["sweep", "demo", "--launcher", "submitit", "--slurm", "gpu"], "--slurm gpu: give KEY=VALUE"),
        (["sweep", "demo", "hydra/launcher=joblib", "--dry-run"], "leave out --jobs"),
        (["sweep", "demo", "hydra/launcher=ray"], "run `pip install hydra-ray-launcher`"),
        (["sweep", "demo", "hydra/sweeper=optuna"], "run `pip install hydra-optuna-sweeper`"),
        (["sweep", "demo", "hydra/launcher=joblip"], "Did you mean 'joblib'?"),
        (["sweep", "search_digits"], "lowbit search"),
        (["search", "demo", "--trials", "0"], "--trials 0"),
        (["search", "demo", "method=ti_g", "seed=1", "--trials", "2"], "no override varies"),
    ],
)
def test_options_that_do_not_fit(words, told, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_launcher_without_a_process_per_job_refuses_several_devices(monkeypatch):
    from dataclasses import replace

    from lowbit.cli.launchers import refuse_several_devices
    from lowbit.execution.jobs import one_job

    one = one_job(["method=ti_g"], "")
    for launcher in ("basic", "joblib"):
        refuse_several_devices(launcher, [one])
        with pytest.raises(ConfigError, match="--launcher processes"):
            refuse_several_devices(launcher, [one, replace(one, devices=2)])
    refuse_several_devices("processes", [replace(one, devices=2)])
    with pytest.raises(ConfigError, match=r"trainer\.num_nodes=2.*torchrun or srun.*lowbit train method=ti_g"):
        refuse_several_devices("processes", [replace(one, nodes=2)])


def test_launchers_of_hydra_run_the_jobs_that_are_not_finished(tiny, outputs, runs_in, capsys):
    """A job that is not valid stops no other, and what is done is left alone."""
    words = ["method=finetune", "budget.steps=2", f"paths.outputs={outputs}", "hydra/launcher=basic"]
    for seeds, code, ran in (("60,61,-1", 1, ["60", "61"]), ("60,61,62", 0, ["62"])):
        assert main(["train", "-m", *tiny, *words, f"seed={seeds}"]) == code
        assert [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("run ")] == ran
    runs = [run for run in runs_in(outputs).values() if run["config"]["method"]["name"] == "finetune"]
    assert {run["seeds"]["run"] for run in runs} >= {60, 61, 62}


def test_failing_job_of_a_launcher_of_hydra(tiny, outputs, capsys):
    """Its error is in its log, as with any launcher, and the others run."""
    rule = "quantizer.rules=[{match:[no.such.layer],weight:{kind:twn}}],[{match:[query],weight:{kind:twn}}]"
    words = ["method=ternarybert", rule, "seed=63", "budget.steps=2", f"paths.outputs={outputs}"]
    assert main(["train", "-m", *tiny, *words, "hydra/launcher=basic"]) == 1
    head, label, reason, _, log = capsys.readouterr().err.splitlines()
    assert head == "1 of 2 jobs failed; the same command again retries them:"
    assert "no.such.layer" in label
    assert "no.such.layer" in reason
    assert "no.such.layer" in Path(log.split("log: ")[1]).read_text()


@pytest.mark.parametrize(("name", "ran"), [(None, ["ti_g", "ti_o"]), ("demo", ["ti_g", "ti_o"])])
def test_sweepers_of_hydra_choose_the_jobs(name, ran, tiny, outputs, runs_in, capsys):
    """Also with a setting that only the swept methods have, which Hydra cannot place before it has swept."""
    seed = 64 if name is None else 65
    words = ["method=ti_o,ti_g", "method.stages.intervene.steps=2", f"seed={seed}", "budget.steps=3"]
    before = runs_in(outputs)
    words = [*words, f"paths.outputs={outputs}", "hydra/sweeper=basic", "hydra.sweeper.max_batch_size=1"]
    assert main([*(["train", "-m"] if name is None else ["sweep", name]), *tiny, *words]) == 0
    new = [run for id_, run in runs_in(outputs).items() if id_ not in before]
    assert sorted(run["config"]["method"]["name"] for run in new) == ran
    assert {run["sweep"] for run in new} == {name}


def test_job_that_a_sweeper_leaves_out_has_not_failed(monkeypatch, tmp_path, capsys):
    """One that failed in another process is known by its state."""
    from lowbit.cli import sweep
    from lowbit.execution.jobs import one_job

    class Sweeper:
        def sweep(self, arguments: list[str]) -> None:
            """Choose nothing."""

    monkeypatch.setattr(sweep, "make_sweeper", lambda *_: Sweeper())
    words = ["method=ti_g", f"paths.outputs={tmp_path}"]
    command = ["train", "-m", *words, "hydra/sweeper=basic"]
    assert main(command) == 0
    job = one_job(words, "")
    job.folder.mkdir(parents=True)
    (job.folder / "error.log").touch()
    assert main(command) == 1
    assert "1 of 1 jobs failed" in capsys.readouterr().err


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
    (batch,) = BasicSweeper.split_arguments(parser.parse_overrides(C.quoted(overrides)), max_batch_size=None)
    ours = C.expand(overrides)
    assert len(batch) == len(ours)
    for theirs, own in zip(batch, ours, strict=True):
        assert [o.value() for o in parser.parse_overrides(list(theirs))] == [
            o.value() for o in parser.parse_overrides(own)
        ]


def test_last_override_of_a_key_counts():
    assert C.expand(["seed=1,2", "method=ti_m", "seed=3"]) == [["seed=3", "method=ti_m"]]
    jobs = C.expand(C.sweep_overrides("demo", ["method=ti_o,ti_g", "seed=1"]))
    assert [[word for word in job if word.startswith("method")] for job in jobs] == [["method=ti_o"], ["method=ti_g"]]

"""`lowbit train` on the fixtures of all nine GLUE tasks, and what it says about files that cannot be used."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lowbit.cli import main
from lowbit.settings.data import GlueTask

SCORES = {
    "cola": {"val/matthews"},
    "mrpc": {"val/accuracy", "val/f1", "val/accuracy_f1"},
    "qqp": {"val/accuracy", "val/f1", "val/accuracy_f1"},
    "stsb": {"val/pearson", "val/spearman", "val/pearson_spearman"},
    "mnli": {"val/accuracy", "val_mismatched/accuracy"},
}
PRIMARY = {"cola": "val/matthews", "mrpc": "val/accuracy_f1", "qqp": "val/accuracy_f1", "stsb": "val/pearson_spearman"}

Command = Callable[..., list[str]]


@pytest.fixture
def command(tiny_bert: Path, glue: Path, outputs: Path) -> Command:
    """Return a function: the arguments of a run of two steps after a teacher of two."""

    def build(task: str, *more: str, folder: Path = glue) -> list[str]:
        steps = [f"{budget}={{steps: 2, epochs: null}}" for budget in ("budget", "teacher.budget")]
        quiet = ["logger=none", "trainer.progress=false", f"paths.outputs={outputs}"]
        model = ["model=hf", f"model.path={tiny_bert}"]
        return ["train", f"data={task}", f"data.dir={folder}", "data.batch_size=4", *model, *steps, *quiet, *more]

    return build


FAST = ("cola", "stsb", "mrpc", "mnli")  # one of each score, and two evaluation sets


@pytest.mark.parametrize(
    "task", [pytest.param(task.name, marks=() if task.name in FAST else pytest.mark.slow) for task in GlueTask]
)
def test_every_task_trains_and_is_scored(task: str, command: Command, outputs: Path, runs_in):
    before = runs_in(outputs)
    assert main(command(task)) == 0
    after = runs_in(outputs)
    (new,) = set(after) - set(before)
    run = after[new]
    assert set(run["metrics"]) == SCORES.get(task, {"val/accuracy"}), "there is no test split to be scored on"
    assert run["primary_metric"] == PRIMARY.get(task, "val/accuracy")
    assert set(run["teacher"]["metrics"]) == set(run["metrics"])
    assert run["steps"] == 2


def test_an_intervened_stage_is_scored_on_both_mnli_sets(command: Command, outputs: Path, runs_in):
    before = runs_in(outputs)
    assert main([*command("mnli"), "method=ti_m", "method.stages.intervene.steps=1"]) == 0
    (new,) = set(runs_in(outputs)) - set(before)
    intervened, plain = runs_in(outputs)[new]["stages"]
    assert set(plain["metrics"]) == {"val/accuracy", "val_mismatched/accuracy"}
    assert set(intervened["metrics"]) - set(plain["metrics"]) == {
        "val_intervened/accuracy",
        "val_mismatched_intervened/accuracy",
    }


@pytest.fixture
def changed_glue(glue: Path, tmp_path: Path) -> Path:
    """A copy of the fixtures that a test may damage."""
    return Path(shutil.copytree(glue, tmp_path / "glue"))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the message of a command that must end with exit code 2."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("verb", ["train", "check"])
def test_bad_rows_stop_the_run_before_anything_is_trained(verb, command: Command, changed_glue: Path, tmp_path, capsys):
    file = changed_glue / "SST-2" / "train.tsv"
    lines = file.read_text().splitlines()
    lines[2] = "dull"
    lines[3] = "the jokes land\tmaybe"
    lines[4] = "  \t1"
    file.write_text("\n".join(lines))
    arguments = [verb, *command("sst2", folder=changed_glue)[1:], f"paths.outputs={tmp_path / 'new'}"]
    err = refused(arguments, capsys)
    assert "3 bad rows" in err
    assert f"{file}:3: 1 columns, expected 2" in err
    assert f"{file}:4: label 'maybe', expected one of 0, 1" in err
    assert f"{file}:5: sentence is empty" in err
    assert "data.on_bad_row=skip" in err
    assert not any((tmp_path / "new" / folder).exists() for folder in ("runs", "teachers"))


def test_bad_rows_are_left_out_on_request(command: Command, changed_glue: Path, outputs: Path, runs_in, capsys):
    with (changed_glue / "SST-2" / "train.tsv").open("a") as file:
        file.write("one column\n")
    before = runs_in(outputs)
    with pytest.warns(UserWarning, match="data=sst2: 1 bad rows of train are left out"):
        assert (
            main(command("sst2", "data.on_bad_row=skip", "budget={epochs: 1, steps: null}", folder=changed_glue)) == 0
        )
    assert "train.tsv:8: 1 columns, expected 2" in capsys.readouterr().out
    (new,) = set(runs_in(outputs)) - set(before)
    assert runs_in(outputs)[new]["steps"] == 2, "six good rows in batches of four"


def test_a_truncated_file_is_named_with_its_last_line(command: Command, changed_glue: Path, capsys):
    file = changed_glue / "MNLI" / "dev_mismatched.tsv"
    file.write_bytes(file.read_bytes()[:-30])
    assert f"{file}:4: " in refused(command("mnli", folder=changed_glue), capsys)


@pytest.mark.parametrize("verb", ["train", "check"])
def test_missing_files_are_named_with_their_place(verb: str, command: Command, changed_glue: Path, capsys):
    (changed_glue / "CoLA" / "dev.tsv").unlink()
    arguments = [verb, *command("cola", folder=changed_glue)[1:]]
    err = refused(arguments, capsys)
    assert f"{changed_glue / 'CoLA'} has no dev.tsv" in err
    assert f"put the official GLUE files at {changed_glue / 'CoLA' / 'train.tsv'} and" in err
    shutil.rmtree(changed_glue / "CoLA")
    assert "no folder CoLA or cola in it" in refused(arguments, capsys)
    shutil.rmtree(changed_glue)
    assert "no such folder" in refused(arguments, capsys)


def test_a_damaged_cache_is_named(command: Command, glue: Path, tmp_path: Path, capsys):
    arguments = [*command("rte", "method=finetune"), f"paths.outputs={tmp_path}"]
    assert main(arguments) == 0
    (file,) = tmp_path.glob("cache/tokens/rte-train-*")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    runs = sorted(tmp_path.glob("runs/**"))
    err = refused([*arguments, "seed=2"], capsys)
    assert f"the cache file {file} is damaged (its checksum differs): delete it" in err
    file.write_bytes(content[:40])
    assert f"the cache file {file} is damaged (" in refused([*arguments, "seed=2"], capsys)
    assert sorted(tmp_path.glob("runs/**")) == runs


def test_no_network_and_no_cache_says_what_to_do(command: Command, capsys):
    err = refused(command("rte", "data.source=hub", "data.dir=null"), capsys)
    assert "neither cached nor reachable" in err
    assert "GLUE_DIR/RTE/train.tsv and GLUE_DIR/RTE/dev.tsv" in err


@pytest.mark.parametrize("verb", ["train", "check"])
def test_tokens_without_an_embedding_stop_the_run_before_anything_is_trained(
    verb: str, command: Command, tiny_bert: Path, tmp_path: Path, capsys
):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "bert"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(folder)
    new = tmp_path / "new"
    err = refused([verb, *command("rte")[1:], f"model.path={folder}", f"paths.outputs={new}"], capsys)
    assert f"out of range: {len(tokenizer) - 1} ('more')" in err
    assert not any((new / name).exists() for name in ("runs", "teachers"))


@pytest.mark.parametrize("verb", ["train", "check"])
@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["data.train_file=one.tsv"], "data=sst2: all training rows have the label positive; give rows of others too"),
        (
            ["data.train_size=1", "data.batch_size=1"],
            "have the label positive; give rows of others too, or raise data.",
        ),
        (["data.batch_size=7"], "data.batch_size=7: sst2 has 6 training rows, and no batch could be that large"),
        (["data.name=ag_news"], "data.name=ag_news: the rows are those of sst2; set data.name=sst2, or a name of your"),
        (["data.eval_size=9"], "data.eval_size=9: sst2 has 4 such rows"),
        (["data.train_file=own.tsv"], "train.tsv:2: sentence is empty"),  # which the teacher is trained on
    ],
)
def test_what_would_teach_nothing_is_refused(verb, more, told, command: Command, changed_glue: Path, capsys, tmp_path):
    folder = changed_glue / "SST-2"
    (folder / "one.tsv").write_text("sentence\tlabel\n" + "fine\t1\n" * 4)
    if more == ["data.train_file=own.tsv"]:
        shutil.copy(folder / "train.tsv", folder / "own.tsv")
        lines = (folder / "train.tsv").read_text().splitlines()
        (folder / "train.tsv").write_text("\n".join([lines[0], " \t1", *lines[2:]]))
    new = tmp_path / "new"
    assert told in refused([verb, *command("sst2", *more, folder=changed_glue)[1:], f"paths.outputs={new}"], capsys)
    assert not any((new / name).exists() for name in ("runs", "teachers"))


def test_check_says_what_it_could_not_check(command: Command, capsys):
    """A login node may reach no hub: the settings are valid all the same, and no row was seen."""
    assert main(["check", *command("rte", "data.source=hub", "data.dir=null")[1:]]) == 0
    out = capsys.readouterr().out
    assert ": valid" in out
    assert "not checked: the rows of the data: data.source=hub: nyu-mll/glue, rte, train" in out
    assert "neither cached nor reachable" in out

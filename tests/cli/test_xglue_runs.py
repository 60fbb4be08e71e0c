"""`lowbit train` on the fixtures of the eight XGLUE tasks: trained on English, scored in two languages."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lowbit.cli import main
from lowbit.settings.data import XglueTask

PARTS = {"ner": ("precision", "recall", "entity_f1"), "wpr": ("ndcg",)}
# The others learn as any pair of sentences does; labels of words have losses of their own.
METHODS = {"ner": ["method=ternarybert"], "pos": ["method=ti_m", "method.stages.intervene.steps=1"]}

Command = Callable[..., list[str]]


@pytest.fixture
def command(tiny_bert: Path, xglue: Path, outputs: Path) -> Command:
    """Return a function: the arguments of a run of two steps."""

    def build(task: str, *more: str, folder: Path = xglue) -> list[str]:
        steps = [f"{budget}={{steps: 2, epochs: null}}" for budget in ("budget", "teacher.budget")]
        quiet = ["logger=none", "trainer.progress=false", "trainer.threads=1", f"paths.outputs={outputs}"]
        model = ["model=hf", f"model.path={tiny_bert}", "data.languages=[en,de]", "data.max_length=32"]
        return ["train", f"data={task}", f"data.dir={folder}", "data.batch_size=3", *model, *steps, *quiet, *more]

    return build


FAST = ("ner", "wpr", "pawsx")  # one of each score


@pytest.mark.parametrize(
    "task", [pytest.param(task.name, marks=() if task.name in FAST else pytest.mark.slow) for task in XglueTask]
)
def test_every_task_trains_and_is_scored_in_every_language(task: str, command: Command, outputs: Path, runs_in, capsys):
    before = runs_in(outputs)
    assert main(command(task, *METHODS.get(task, ["method=finetune"]))) == 0
    after = runs_in(outputs)
    (new,) = set(after) - set(before)
    metrics = after[new]["metrics"]
    parts = PARTS.get(task, ("accuracy",))
    assert set(metrics) == {f"{prefix}/{part}" for prefix in ("val", "val_de", "val_mean") for part in parts}
    for part in parts:
        assert metrics[f"val_mean/{part}"] == pytest.approx((metrics[f"val/{part}"] + metrics[f"val_de/{part}"]) / 2)
    assert after[new]["primary_metric"] == f"val_mean/{parts[-1]}"
    if task == "pos":
        intervened = after[new]["stages"][0]["metrics"]
        parts = (intervened[f"val{language}_intervened/accuracy"] for language in ("", "_de"))
        assert intervened["val_mean_intervened/accuracy"] == pytest.approx(sum(parts) / 2)
    out = capsys.readouterr().out
    assert "by language" in out
    assert all(head in out for head in (" en ", " de ", " mean "))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the message of a command that must end with exit code 2."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


def test_bad_rows_and_missing_languages_stop_the_run_before_anything_is_trained(
    command: Command, xglue: Path, tmp_path: Path, capsys
):
    folder = Path(shutil.copytree(xglue, tmp_path / "xglue"))
    file = folder / "NER" / "de.dev"
    file.write_text(file.read_text() + "\nKöln\n")
    for verb in ("train", "check"):
        err = refused([verb, *command("ner", folder=folder)[1:], f"paths.outputs={tmp_path / 'new'}"], capsys)
        assert f"{file}:12: line 12 has 1 cells, expected a word and its tag" in err
        assert "data.on_bad_row=skip" in err
    assert not any((tmp_path / "new" / name).exists() for name in ("runs", "teachers"))
    err = refused(command("ner", "data.languages=[en,de,nl]", "method=finetune", folder=folder), capsys)
    assert f"no NER/nl.dev, and no validation.nl.parquet or save_to_disk split in {folder / 'NER'}" in err
    assert f"put the official XGLUE file at {folder / 'NER' / 'nl.dev'}, or set data.languages" in err


def test_the_table_of_a_sweep_by_language(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _, *run = command("pawsx", f"paths.outputs={tmp_path}")
    assert main(["table", "demo", "method=finetune,qat_task", "seed=1", *run, "--languages"]) == 2
    assert "no finished run was scored in several languages" in capsys.readouterr().err
    assert main(["train", "experiment=digits/ternarybert", "sweep=demo", "method=finetune", *run]) == 0
    capsys.readouterr()
    assert main(["table", "demo", "method=finetune,qat_task", "seed=1", *run, "--languages", "--format", "md"]) == 0
    header, _, finetune, task = capsys.readouterr().out.splitlines()[:4]
    assert header == "| method | en | de | mean | status |"
    assert finetune.startswith("| finetune | ")
    assert task == "| qat_task | - | - | - | not run |"

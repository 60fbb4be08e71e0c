"""`lowbit train` on the fixtures of SQuAD, and what it says about files that cannot be used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lowbit.cli import main

Command = Callable[..., list[str]]
SCORES = {"val/exact_match", "val/f1"}


@pytest.fixture
def command(tiny_bert: Path, squad: Path, outputs: Path) -> Command:
    """Return a function: the arguments of a run of two steps after a teacher of two."""

    def build(data: str, *more: str, folder: Path = squad) -> list[str]:
        steps = [f"{budget}={{steps: 2, epochs: null}}" for budget in ("budget", "teacher.budget")]
        quiet = ["logger=none", "trainer.progress=false", "trainer.threads=1", f"paths.outputs={outputs}"]
        model = ["model=hf", f"model.path={tiny_bert}", "data.max_length=128"]
        return ["train", f"data={data}", f"data.dir={folder}", "data.batch_size=4", *model, *steps, *quiet, *more]

    return build


@pytest.mark.parametrize("data", ["squad", "squad_v2"])
def test_ternarybert_trains_and_is_scored(data: str, command: Command, outputs: Path, runs_in):
    before = runs_in(outputs)
    assert main([*command(data), "method=ternarybert"]) == 0
    (new,) = set(runs_in(outputs)) - set(before)
    run = runs_in(outputs)[new]
    assert set(run["metrics"]) == set(run["teacher"]["metrics"]) == SCORES
    assert run["primary_metric"] == "val/f1"
    assert all(0 <= value <= 1 for value in run["metrics"].values())
    assert run["size"]["bits"] == "2-2-8"
    assert run["steps"] == 2


def test_teacher_intervention_trains_both_stages(command: Command, outputs: Path, runs_in):
    before = runs_in(outputs)
    steps = ["method.stages.intervene.steps=2", "budget.steps=4"]
    assert main([*command("squad"), "method=ti_g", *steps]) == 0
    (new,) = set(runs_in(outputs)) - set(before)
    run = runs_in(outputs)[new]
    intervened, plain = run["stages"]
    assert set(plain["metrics"]) == SCORES
    assert set(intervened["metrics"]) == SCORES | {"val_intervened/exact_match", "val_intervened/f1"}
    assert (intervened["steps"], plain["steps"]) == (2, 2)


def test_labels_alone_train_a_baseline(command: Command, outputs: Path, runs_in):
    before = runs_in(outputs)
    assert main([*command("squad_v2"), "method=qat_task"]) == 0
    (new,) = set(runs_in(outputs)) - set(before)
    assert runs_in(outputs)[new]["status"] == "finished"


def test_a_model_learns_answers_by_heart(command: Command, squad: Path, outputs: Path, tmp_path: Path, runs_in):
    """Scored on its training questions, one of which has no answer; their texts are cut into several windows."""
    for part in ("train", "dev"):
        shutil.copy(squad / "train-v2.0.json", tmp_path / f"{part}-v2.0.json")
    windows = ["data.max_length=48", "data.doc_stride=16", "data.max_question_length=16", "data.batch_size=8"]
    learning = ["method=finetune", "optimizer.lr=1e-2", "budget.steps=300", "model.dropout=0", "trainer.log_every=50"]
    before = runs_in(outputs)
    assert main([*command("squad_v2", folder=tmp_path), *windows, *learning]) == 0
    (new,) = set(runs_in(outputs)) - set(before)
    assert runs_in(outputs)[new]["metrics"] == {"val/exact_match": 1, "val/f1": 1}


def test_an_epoch_is_a_pass_over_the_windows(command: Command, outputs: Path, runs_in, capsys):
    """Of windows of 40 tokens a text makes several: six questions alone would be two batches."""
    windows = ["data.max_length=40", "data.doc_stride=12", "data.max_question_length=16"]
    budget = ["method.stages.intervene.steps=2", "budget={epochs: 1, steps: null}"]
    arguments = [*command("squad"), "method=ti_g", *windows, *budget]
    assert main(["check", *arguments[1:]]) == 0
    checked = capsys.readouterr().out
    before = runs_in(outputs)
    assert main(arguments) == 0
    (new,) = set(runs_in(outputs)) - set(before)
    run = runs_in(outputs)[new]
    assert run["steps"] > 2
    assert f"stage plain: {run['steps'] - 2} steps" in checked


def test_a_budget_too_small_for_the_stages_is_found_before_anything_is_written(
    command: Command, tmp_path: Path, capsys
):
    arguments = [*command("squad"), "method=ti_m", "budget={epochs: 1, steps: null}", f"paths.outputs={tmp_path}"]
    for verb in ("train", "check"):
        assert main([verb, *arguments[1:]]) == 2
        assert "method.stages.plain is left with -58 of 2 steps" in capsys.readouterr().err
    assert not any((tmp_path / name).exists() for name in ("runs", "teachers"))


def test_bad_questions_stop_the_run_before_anything_is_trained(command: Command, squad: Path, tmp_path: Path, capsys):
    folder = Path(shutil.copytree(squad, tmp_path / "squad"))
    file = folder / "dev-v2.0.json"
    content = json.loads(file.read_text())
    content["data"][0]["paragraphs"][0]["qas"][2].pop("question")
    file.write_text(json.dumps(content))
    for verb in ("train", "check"):
        assert main([verb, *command("squad_v2", folder=folder)[1:], f"paths.outputs={tmp_path / 'new'}"]) == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert f"{file}: data[0].paragraphs[0].qas[2]: `question` is missing or empty" in err
        assert "data.on_bad_row=skip" in err
    assert not any((tmp_path / "new" / name).exists() for name in ("runs", "teachers"))
    file.write_text("{")
    assert main(command("squad_v2", folder=folder)) == 2
    assert f"{file} cannot be read as JSON" in capsys.readouterr().err


def test_no_network_and_no_cache_says_what_to_do(command: Command, capsys: pytest.CaptureFixture[str]):
    assert main([*command("squad"), "data.source=hub", "data.dir=null"]) == 2
    err = capsys.readouterr().err
    assert "rajpurkar/squad, train at revision" in err
    assert "neither cached nor reachable" in err
    assert "SQUAD_DIR/train-v1.1.json and SQUAD_DIR/dev-v1.1.json" in err

"""Teachers that plain transformers loads, and teachers that come from it: of the hub, of folders, of other sizes."""

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import TINY_TI
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

from lowbit.config import identity
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load
from lowbit.modeling.build import build_model
from lowbit.results import read_run
from lowbit.training.run import Run
from lowbit.training.setup import make_datamodule
from lowbit.training.teacher import obtain_teacher
from lowbit.training.train import train

Overrides = Callable[..., list[str]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def mrpc(tiny_bert: Path, glue: Path, shared: Path) -> Overrides:
    """Return a function: more overrides -> those of a run of two steps on MRPC."""
    steps = [f"{budget}={{steps: 2, epochs: null}}" for budget in ("budget", "teacher.budget")]
    quiet = ["logger=none", "trainer.progress=false", "trainer.threads=1", f"paths.outputs={shared}"]
    model = ["model=hf", f"model.path={tiny_bert}", "data=mrpc", f"data.dir={glue}", "data.batch_size=4"]
    return lambda *more: [*model, *steps, *quiet, "method=kd_qat", *more]


@pytest.fixture(scope="module")
def teacher_folder(mrpc: Overrides, shared: Path) -> Path:
    """Folder of a teacher that lowbit fine-tuned."""
    run = Run(*load(mrpc()))
    obtain_teacher(run)
    return shared / "teachers" / run.teacher_id


def test_plain_transformers_load_a_teacher_and_give_its_logits(teacher_folder: Path, mrpc: Overrides, tmp_path: Path):
    run = Run(*load(mrpc()))
    data, teacher = run.data, obtain_teacher(run).model
    batch = next(iter(data.val_dataloader()))
    labels = batch.pop("labels")
    teacher.save_pretrained(tmp_path)
    wanted = teacher(**batch).logits
    assert len(labels) == len(wanted)
    for folder in (teacher_folder, tmp_path):
        plain = AutoModelForSequenceClassification.from_pretrained(folder)
        assert torch.equal(plain.eval()(**batch).logits, wanted)
        assert plain.config.id2label == {0: "not_equivalent", 1: "equivalent"}
    assert AutoTokenizer.from_pretrained(teacher_folder)("The company").input_ids[0] == 2  # [CLS]


@pytest.mark.parametrize("source", ["hub", "path"])
def test_a_given_teacher_is_scored_once_and_teaches(
    source: str, teacher_folder: Path, mrpc: Overrides, capsys: pytest.CaptureFixture[str]
):
    overrides = mrpc(f"teacher={source}", f"teacher.path={teacher_folder}")
    cfg, config = load(overrides)
    left = teacher_folder.with_name(f".{identity.teacher_id(cfg)}.json.01234567.{socket.gethostname()}-{2**22 + 1}.tmp")
    left.touch()
    train(cfg, config)
    assert "scoring" in capsys.readouterr().out
    assert not left.exists(), "of a process that was killed when it wrote the score"
    run = read_run(identity.run_folder(cfg, config))
    facts = obtain_teacher(Run(*load(mrpc()))).facts
    assert run["teacher"]["metrics"] == facts["metrics"]
    assert str(teacher_folder) not in str(run["teacher"]), "a path of one machine is no name"
    train(*load([*overrides, "seed=2"]))
    assert "scoring" not in capsys.readouterr().out


def test_a_hub_model_without_a_trained_head_is_no_teacher(tiny_bert: Path, mrpc: Overrides):
    with pytest.raises(ConfigError, match=r"has no trained head \(.*\): a teacher must be fine-tuned on data=mrpc"):
        train(*load(mrpc("teacher=hub", f"teacher.path={tiny_bert}")))


@pytest.mark.parametrize("source", ["hub", "path"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("mnli", r"is \(2,.*\) in the checkpoint, but \(3,.*\) for the 3 labels of data=mnli"),
        ("qnli", r"not_equivalent, equivalent, but data=qnli has entailment, not_entailment"),
    ],
)
def test_a_teacher_of_other_labels_is_refused_with_both(
    source: str, data: str, message: str, teacher_folder: Path, mrpc: Overrides
):
    with pytest.raises(ConfigError, match=message):
        train(*load(mrpc(f"teacher={source}", f"teacher.path={teacher_folder}", f"data={data}")))


@pytest.mark.parametrize("method", ["kd_qat", "finetune"])
def test_weights_of_other_labels_stop_a_run_before_it_writes_anything(
    method: str, teacher_folder: Path, mrpc: Overrides, tmp_path: Path
):
    run = [f"model.path={teacher_folder}", "data=mnli", f"method={method}", f"paths.outputs={tmp_path}"]
    with pytest.raises(ConfigError, match=r"is \(2,.*\) in the checkpoint, but \(3,.*\) for the 3 labels of data=mnli"):
        train(*load(mrpc(*run)))
    assert not any((tmp_path / folder).exists() for folder in ("runs", "teachers"))


@pytest.mark.parametrize("theirs", [["equivalent", "not equivalent"], ["LABEL_0", "1"]])
def test_a_teacher_with_labels_in_another_order_scores_and_teaches_by_name(
    theirs: list[str], teacher_folder: Path, mrpc: Overrides, tmp_path: Path
):
    """Numbers are no names: such a head is taken to be in order."""
    model = AutoModelForSequenceClassification.from_pretrained(teacher_folder)
    model.config.id2label = dict(enumerate(theirs))
    if theirs[0] == "equivalent":
        with torch.no_grad():
            for tensor in (model.classifier.weight, model.classifier.bias):
                tensor.copy_(tensor.flip(0))
    model.save_pretrained(tmp_path)
    teacher = obtain_teacher(Run(*load(mrpc("teacher=path", f"teacher.path={tmp_path}", f"paths.outputs={tmp_path}"))))
    kept = obtain_teacher(Run(*load(mrpc())))
    assert teacher.facts["metrics"] == kept.facts["metrics"]
    assert torch.equal(teacher.model.classifier.weight, kept.model.classifier.weight)
    assert teacher.model.config.id2label == {0: "not_equivalent", 1: "equivalent"}


def test_a_student_that_starts_from_other_labels_keeps_no_old_name(teacher_folder: Path, mrpc: Overrides):
    """STS-B has no labels: a head of MRPC would be none there; its names are not carried on."""
    config = load(mrpc("method=finetune"))[1]
    info = replace(make_datamodule(config, 1).info, labels=())
    model = build_model(replace(config.model, path=str(teacher_folder)), info, 1)
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


@pytest.mark.parametrize("source", ["hub", "path"])
def test_a_given_teacher_of_another_depth_is_no_teacher_of_this_model(
    source: str, tiny_bert: Path, mrpc: Overrides, tmp_path: Path
):
    described = BertConfig.from_pretrained(tiny_bert, num_hidden_layers=1, num_labels=2)
    BertForSequenceClassification(described).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"teacher.path=.* has 1 layers of 2 heads .*, model=hf has 2 layers"):
        train(*load(mrpc(f"teacher={source}", f"teacher.path={tmp_path}")))


def test_a_student_may_be_smaller_than_its_teacher_under_logits(shared: Path):
    plain = [override for override in TINY_TI if not override.startswith("method")]
    run = [*plain, "method=qat_logits", "method.stages.qat.student=fresh", "model.num_layers=1"]
    other = ["+model@teacher.model=bert_micro", "teacher.model.hidden_size=8", "teacher.model.num_layers=2"]
    heads = [
        "teacher.model.num_heads=2",
        "teacher.model.intermediate_size=16",
        f"paths.outputs={shared}",
        "trainer.threads=1",
    ]
    cfg, config = load([*run, *other, *heads])
    train(cfg, config)
    result = read_run(identity.run_folder(cfg, config))
    same = load([*run, f"paths.outputs={shared}"])[0]
    assert identity.teacher_id(cfg) != identity.teacher_id(same)
    assert result["teacher"]["size"]["float_bytes"] < result["size"]["float_bytes"], "8 wide, not 16, and 16, not 32"


def test_what_needs_one_architecture_is_refused_with_another(shared: Path):
    with pytest.raises(ConfigError) as caught:
        load([*TINY_TI, "+model@teacher.model=bert_micro"])
    text = str(caught.value)
    assert "method.stages.intervene.student=teacher: the teacher is a bert_micro" in text
    assert "method.stages.intervene.intervention: needs a teacher of the student's architecture" in text
    assert "kind hidden needs a teacher of the student's architecture" in text


def test_two_tokenizers_are_refused(teacher_folder: Path, mrpc: Overrides, tmp_path: Path):
    model, tokenizer = BertModel.from_pretrained(teacher_folder), AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.add_tokens(["another"])
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    fresh = ["method=qat_logits", "method.stages.qat.student=fresh", "+model@teacher.model=hf"]
    with pytest.raises(ConfigError, match=r"teacher\.model=hf has another tokenizer than model=hf"):
        train(*load(mrpc(*fresh, f"teacher.model.path={tmp_path}")))
    with pytest.raises(ConfigError, match=r"teacher\.path=.* has another tokenizer than model=hf"):
        train(*load(mrpc("teacher=hub", f"teacher.path={tmp_path}")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher=hub"], "teacher.source=hub: model=bert_micro is not on the hub; use a model of kind hf or timm"),
        (["teacher.path=some/name"], "teacher.path=some/name: has no effect on teacher.source=finetune"),
        (["teacher.revision=abc"], "teacher.revision=abc: is of teacher.path under teacher.source=hub"),
        (
            ["data=digits", "model=deit_tiny", "teacher=hub", "teacher.path=deit_base", "teacher.revision=abc"],
            "teacher.revision=abc: has no effect on timm's weights; set it to null",
        ),
        (["model.revision=abc"], "model.revision=abc: only applies to a hub model (path); set it to null"),
    ],
)
def test_sources_that_make_no_sense_are_refused(overrides: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        load([*TINY_TI, *overrides])
    assert message in str(caught.value)

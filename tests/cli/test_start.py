"""Models and devices that `lowbit train` cannot use are refused by `lowbit check` too, in the same words, exit 2."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, DistilBertConfig, DistilBertModel

from lowbit.cli import main

Change = Callable[[Path], object]
TEXT = [
    "data=mrpc",
    "data.dir={glue}",
    "data.batch_size=2",
    "model=hf",
    "model.path={bert}",
    "method=kd_qat",
    "quantizer=w2a8",
]
IMAGES = ["data=digits", "model=timm", "method=finetune", "model.pretrained=false"]


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"][0] = torch.nan
    save_file(weights, folder / "model.safetensors")


def of_another_class(folder: Path) -> None:
    DistilBertModel(DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16)).save_pretrained(folder)


def of_other_labels(folder: Path) -> None:
    described = BertConfig.from_pretrained(folder, id2label={0: "bad", 1: "good"})
    BertForSequenceClassification(described).save_pretrained(folder)


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


def whole(_: Path) -> None:
    """Change nothing."""


CASES = [
    (pointer, TEXT, ["model.safetensors: a Git LFS pointer", "git lfs pull"]),
    (cut, TEXT, ["model.safetensors is damaged or cut off", "copy or download it again"]),
    (
        not_finite,
        TEXT,
        ["model.safetensors holds weights that are not", "bert.encoder.layer.0.output.dense.bias for example"],
    ),
    (gone, TEXT, ["model.path={bert}: no such folder"]),
    (of_another_class, TEXT, ["model.path={bert}: no model family for DistilBertForSequenceClassification"]),
    (of_other_labels, TEXT, ["labels bad, good, but data=mrpc has not_equivalent, equivalent"]),
    (whole, [*TEXT, "teacher=path", "teacher.path={bert}"], ["teacher.path={bert} has no trained head"]),
    (whole, [*TEXT, "teacher=path", "teacher.path={bert}/no"], ["teacher.path={bert}/no: no such folder"]),
    (whole, [*IMAGES, "model.timm_name=resnet18"], ["model.timm_name=resnet18: no model family for ResNet"]),
    (whole, [*IMAGES, "model.timm_name=swinv2_tiny_window8_256"], ["no model family for SwinTransformerV2"]),
    (whole, [*IMAGES, "model.timm_name=deit_tinny"], ["model.timm_name=deit_tinny: Unknown model", "timm.list_models"]),
    (
        whole,
        ["data=digits", "model=vit_micro", "trainer.accelerator=gpu"],
        ["trainer.accelerator=gpu, trainer.devices=1: torch sees none here; set trainer.accelerator to auto or cpu, "],
    ),
    (
        whole,
        ["data=digits", "model=vit_micro", "trainer.accelerator=mps"],
        ["trainer.accelerator=mps, trainer.devices=1: torch sees none here; set trainer.accelerator to auto or cpu, "],
    ),
    (
        whole,
        ["data=digits", "trainer.accelerator=tpu"],
        ["trainer.accelerator=tpu, trainer.devices=1: torch sees"],
    ),
    (whole, ["data=digits", "model.patch_size=9"], ["model.patch_size=9: images of data=digits are 8 pixels wide"]),
    (whole, ["data=digits", "data.eval_size=201"], ["data.eval_size=201: digits has 200 such rows"]),
]


@pytest.mark.parametrize(("change", "overrides", "messages"), CASES)
def test_what_a_run_cannot_begin_with_is_refused_before_anything_is_read_or_written(
    change: Change, overrides, messages, tiny_bert: Path, glue: Path, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "bert"))
    change(folder)
    arguments = [override.format(bert=folder, glue=glue) for override in overrides]
    for verb in ("check", "train"):
        assert main([verb, *arguments, f"paths.outputs={tmp_path / 'outputs'}", "logger=none"]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        for message in messages:
            assert message.format(bert=folder) in error
    assert not (tmp_path / "outputs").exists()


def test_a_model_of_the_hub_that_is_not_here_is_not_checked(glue: Path, capsys):
    assert main(["check", *(override.format(bert="some/model", glue=glue) for override in TEXT)]) == 0
    out = capsys.readouterr().out
    assert ": valid" in out
    assert "not checked: the models, the stages and rules: model.path=some/model: " in out
    assert "run `lowbit fetch model=hf model.path=some/model`" in out

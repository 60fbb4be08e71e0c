"""Distillation and training of word tags: only the first piece of each word counts, whatever stands elsewhere."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lowbit.config.validate import load
from lowbit.losses import soft_cross_entropy
from lowbit.modeling import Trace
from lowbit.recipes import build_recipe
from lowbit.training.modules import DistillationModule
from lowbit.training.setup import make_datamodule, make_instrument, make_metric, make_model

Batch = dict[str, Tensor]


@pytest.fixture(scope="module")
def tagger(tiny_bert: Path, xglue: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DistillationModule, Batch]:
    """A module of one student with logits and labels as its losses, its teacher of other weights, a training batch."""
    files = [f"model.path={tiny_bert}", f"data.dir={xglue}", f"paths.outputs={tmp_path_factory.mktemp('outputs')}"]
    run = ["method=qat_logits", "+method.losses.task={kind: task, weight: 1.0}", "quantizer=none"]
    settings = ["budget={steps: 4, epochs: null}", "data.languages=[en]", "model.dropout=0", "data.batch_size=4"]
    _, config = load(["data=ner", "model=hf", *files, *run, *settings])
    data = make_datamodule(config, 1)
    (stage,) = build_recipe(config, data.steps_per_epoch).stages
    student, teacher = (make_instrument(make_model(config, data.info, seed)) for seed in (1, 2))
    module = DistillationModule(student, teacher, stage, make_metric(data), seed=1)
    return module, next(iter(data.train_dataloader()))


def test_losses_are_those_of_the_labelled_tokens(tagger: tuple[DistillationModule, Batch]):
    module, batch = tagger
    _, terms = module.losses(batch, 0)
    student, teacher = module.traces(batch, 0)
    words_BL = batch["labels"] >= 0
    assert student.logits.shape == (4, batch["labels"].shape[1], 9)
    assert 0 < words_BL.sum() < words_BL.numel()
    assert terms["logits"].item() == soft_cross_entropy(student.logits[words_BL], teacher.logits[words_BL]).item()
    output = module.student(
        **{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "labels")}
    )
    assert terms["task"].item() == pytest.approx(output.loss.item(), rel=1e-5), "as transformers computes it"


def test_other_tokens_do_not_count(tagger: tuple[DistillationModule, Batch], monkeypatch: pytest.MonkeyPatch):
    module, batch = tagger
    traces: Callable[..., Any] = module.traces

    def changed(where_BL: Tensor) -> tuple[float, float]:
        def run(batch: Batch, step: int) -> tuple[Trace, Trace]:
            student, teacher = traces(batch, step)
            return replace(student, logits=student.logits + 7 * where_BL[..., None] * torch.arange(9)), teacher

        monkeypatch.setattr(module, "traces", run)
        _, terms = module.losses(batch, 0)
        return terms["logits"].item(), terms["task"].item()

    words_BL = batch["labels"] >= 0
    plain = changed(torch.zeros_like(words_BL))
    assert changed(~words_BL) == plain, "padding, special tokens and other pieces"
    one_word_BL = words_BL & (words_BL.cumsum(1) == 1)
    assert all(new != old for new, old in zip(changed(one_word_BL), plain, strict=True))


def test_more_padding_changes_nothing(tagger: tuple[DistillationModule, Batch]):
    module, batch = tagger
    module.student.eval()
    fill = {"labels": -100, "word_starts": False}
    wide = {key: torch.nn.functional.pad(value, (0, 5), value=fill.get(key, 0)) for key, value in batch.items()}
    _, terms = module.losses(batch, 0)
    _, wider = module.losses(wide, 0)
    for name in terms:
        assert wider[name].item() == pytest.approx(terms[name].item(), rel=1e-5)

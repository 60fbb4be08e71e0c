"""The published defects of BinaryBERT are absent: spec/xtc_sdq_bit_binarybert.md, section 4.8, T1 to T8."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.modeling import Instrument, prepare
from lowbit.modeling.sizes import model_size
from lowbit.modeling.surgery import narrow, split_ternary
from lowbit.quantizers import begin_step, build_quantizer, end_step, quantizers_of, weight_sites
from lowbit.recipes import Stage
from lowbit.settings.recipe import OptimizerKind
from lowbit.settings.run import Config
from lowbit.training.handover import Student, take_over_halves

ROOT = Path(__file__).resolve().parents[2]
Batch = dict[str, Tensor]
Stages = Callable[..., tuple[Stage, ...]]
Students = Callable[[Stage, nn.Module], Instrument]
Berts = Callable[..., nn.Module]
Distil = Callable[..., Any]
BINARYBERT = ("method=binarybert", "quantizer=binarybert")


def test_regression_trains_the_binary_stage(stages_of: Stages, distil: Distil, bert: Berts, batch: Batch):
    """Defect T1: on STS-B the last stage's loss was 0, and weights only decayed."""
    _, _, binary = stages_of(*BINARYBERT)
    module = distil(binary, split_ternary(narrow(bert(labels=1))), narrow(bert(labels=1, seed=1)))
    total, terms = module.losses(batch, 0)
    total.backward()
    assert terms["logits"].item() > 1e-3
    untrained = {name for name, p in module.student.named_parameters() if p.grad is None}
    assert untrained == set()
    assert module.student.classifier.weight.grad.any()


def test_every_stage_distils_without_a_flag(stages_of: Stages):
    """Defect T2: `joint_kd` set neither of its two flags and trained on hard labels."""
    stages = stages_of(*BINARYBERT)
    assert [sorted(stage.losses) for stage in stages] == [["hidden", "logits"]] + 2 * [["hidden", "logits", "scores"]]
    assert all(stage.teacher for stage in stages)
    assert [stage.supervisor for stage in stages] == ["teacher", "narrow", "narrow"]


def test_rows_of_one_sign_and_rows_without_zeros_are_split_exactly(
    stages_of: Stages, student_of: Students, bert: Berts, batch: Batch
):
    """Defect T3: alpha was the largest ternary weight, 0 for a row of negative ones; a row without zeros gave 0/0.

    And only keys beginning with `bert` were split: here pooler and every layer are, whatever the model's name.
    """
    _, ternary, binary = stages_of(*BINARYBERT, "quantizer.activation.kind=none")
    model = narrow(bert().double())
    with torch.no_grad():
        table = model.bert.embeddings.word_embeddings.weight
        table[1:10] = -table[1:10].abs() - 0.5 * (torch.arange(16) < 4)  # kept weights all negative
        table[10:20] = 1.0 - 2.0 * (torch.arange(16) % 2)  # nothing is dropped
    student = student_of(ternary, model)
    expected = student.run(batch).logits
    plain = student.restore()
    split = split_ternary(plain)
    again = student_of(binary, split)
    assert torch.allclose(again.run(batch).logits, expected, rtol=1e-10, atol=1e-10)
    quantized = {name.rsplit(".", 2)[0] for name in quantizers_of(split)}
    assert any("pooler" in name for name in quantized)


def test_the_usual_optimizer_has_one_clip_and_bias_correction(config_of: Callable[..., Config]):
    """Defect T4: clipping per parameter and no bias correction. Here only where `optimizer=bert_adam` asks for them."""
    assert config_of(*BINARYBERT).optimizer.kind is OptimizerKind.adamw
    assert config_of(*BINARYBERT, "optimizer=bert_adam").optimizer.kind is OptimizerKind.bert_adam


def test_a_plain_bert_can_be_narrowed_and_split(stages_of: Stages, student_of: Students, bert: Berts, batch: Batch):
    """Defect T5: `dyna_hidden_size` had to come from a DynaBERT config; a plain one failed."""
    half = narrow(bert())
    assert half.bert.encoder.layer[0].attention.self.query.out_features == 8
    assert half.bert.encoder.layer[0].intermediate.dense.out_features == 12
    assert student_of(stages_of(*BINARYBERT)[2], split_ternary(half)).run(batch).logits.shape == (3, 3)


def test_the_reported_size_is_that_of_packed_bits(stages_of: Stages, student_of: Students, bert: Berts):
    """Defect T6: weights stayed float32 on disk and nobody could tell how one bit is stored.

    What is trained stays latent here too; run.json says the size of the packed model, bit by bit.
    """
    student = student_of(stages_of(*BINARYBERT)[2], split_ternary(narrow(bert())))
    size = model_size(student)
    assert size.bits == "1-1-8"
    sites = list(weight_sites(student.model))
    binary, scales = sum(site.weight.numel() for site in sites), sum(site.quantizer.groups for site in sites)
    others = sum(parameter.numel() for parameter in student.model.parameters()) - binary
    assert size.simulated_bytes == binary // 8 + 4 * (scales + others)


def test_clip_values_are_part_of_the_saved_state(stages_of: Stages, student_of: Students, bert: Berts, batch: Batch):
    """Defect T6: `clip_val` keys were reported missing at load."""
    _, ternary, binary = stages_of(*BINARYBERT)
    student = student_of(ternary, narrow(bert()))
    with torch.no_grad():
        for quantizer in quantizers_of(student.model).values():
            if hasattr(quantizer, "high"):
                quantizer.high.fill_(1.5)
    state = {key: value.clone() for key, value in student.quantizer_state().items()}
    incomplete = {key: value for key, value in state.items() if not key.endswith("query.input_quantizer.high")}
    with pytest.raises(ValueError, match="quantizer state of 2 tensors does not fit"):
        student.load_quantizer_state(incomplete)
    previous = Student(student.restore(), state, ternary.rules)
    split = prepare(split_ternary(previous.model), binary.rules)
    take_over_halves(split, previous)
    highs = [q.high.item() for q in quantizers_of(split.model).values() if hasattr(q, "high")]
    assert set(highs) == {1.5}, "both halves go on with the learned clip"


def test_the_documented_choices_exist():
    """Defect T7: the README named a folder `Ternary_W2A8` for 4 bits and a script `terarny_*`."""
    pages = [page for page in sorted((ROOT / "docs").rglob("*.md")) if not page.name.startswith("add-")]  # makes them
    commands = [
        line.split("#")[0]
        for page in pages
        for line in page.read_text(encoding="utf-8").splitlines()
        if "lowbit train " in line
    ]
    words = {
        word for command in commands for word in re.findall(r"(?<![\w.+~])([a-z_]+=[a-z_0-9/]+)(?![\w.])", command)
    }
    choices = {word for word in words if (ROOT / "conf" / word.split("=")[0]).is_dir()}
    missing = {word for word in choices if not (ROOT / "conf" / f"{word.replace('=', '/', 1)}.yaml").is_file()}
    assert len(choices) > 15
    assert missing == set()


def test_a_step_size_that_falls_below_zero_comes_back(
    stages_of: Stages, bert: Berts, batch: Batch, student_of: Students
):
    """Defect T8: the code asserted alpha > 0 and nothing kept it there."""
    student = student_of(stages_of("method=variation_aware", "quantizer=lsq_w4a4")[0], bert())
    dense = student.model.bert.encoder.layer[0].intermediate.dense
    with torch.no_grad():
        dense.weight_quantizer.step_size.fill_(-0.3)
    begin_step(student.model, 0)
    assert student.run(batch).logits.isfinite().all()
    end_step(student.model)
    assert dense.weight_quantizer.step_size.item() == pytest.approx(1e-4)
    spec = stages_of(*BINARYBERT)[2].rules[0].weight
    assert build_quantizer(spec)(torch.tensor([[-0.5, 1.5]])).tolist() == [[-1.0, 1.0]]

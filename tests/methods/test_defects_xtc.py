"""The published defects of XTC are absent: spec/xtc_sdq_bit_binarybert.md, section 1.8, D1 to D12.

The index in docs/methods names the tests of D9, which other defects share.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.modeling import Instrument, Rule, prepare
from lowbit.quantizers import QuantizerSpec, build_quantizer
from lowbit.recipes import Stage

BITS = ["xtc_w1a8", "xtc_w2a8"]
Batch = dict[str, Tensor]
Stages = Callable[..., tuple[Stage, ...]]
Students = Callable[[Stage, nn.Module], Instrument]
Berts = Callable[..., nn.Module]
Distil = Callable[..., Any]


def test_the_score_loss_does_not_read_padding(
    stages_of: Stages, distil: Distil, bert: Berts, padded: Callable[[int], Batch]
):
    """Defect D1: -10000 was added to padded scores and nothing zeroed, so padding dominated the loss."""
    (stage,) = stages_of("method=xtc", "quantizer=xtc_w1a8")
    module = distil(stage, bert(), bert(seed=1))
    scores = [module.losses(padded(more), 0)[1]["scores"].item() for more in (0, 7)]
    assert scores[0] > 1e-3
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)


def test_a_grid_that_keeps_the_maximum_can_be_chosen(stages_of: Stages):
    """Defect D2: the grid clips the positive maximum by a step. Published default; `minmax_symmetric` keeps it."""
    x, largest = torch.tensor([[1.0, -1.0, 0.5, 0.1]]), {}
    for kind in ("xtc", "minmax_symmetric", "minmax_asymmetric"):
        (stage,) = stages_of("method=xtc", "quantizer=xtc_w1a8", f"quantizer.activation.kind={kind}")
        largest[kind] = build_quantizer(stage.rules[0].input)(x).max().item()
    assert largest["xtc"] == pytest.approx(127 / 128)
    assert largest["minmax_symmetric"] == 1
    assert largest["minmax_asymmetric"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("quantizer", BITS)
def test_all_zero_groups_give_numbers(quantizer: str, stages_of: Stages, distil: Distil, bert: Berts, batch: Batch):
    """Defect D3: a group of zeros was divided by its zero scale."""
    model = bert()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[3] = 0
        for name in ("weight", "bias"):
            getattr(model.bert.encoder.layer[0].intermediate.dense, name).zero_()
    module = distil(stages_of("method=xtc", f"quantizer={quantizer}")[0], model, bert(seed=1))
    total, _ = module.losses(batch, 0)
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_zero_has_a_sign_and_a_ternary_matrix_is_never_empty(stages_of: Stages):
    """Defect D4: sign(0) = 0 was a third level of a binary weight, and a mask without elements gave NaN."""
    binary, ternary = (build_quantizer(stages_of("method=xtc", f"quantizer={q}")[0].rules[0].weight) for q in BITS)
    assert binary(torch.tensor([[0.0, 1.0], [-1.0, -2.0]])).flatten().tolist() == [1, 1, -1, -1]
    for w in (torch.zeros(2, 2), torch.full((2, 2), 0.5), torch.full((2, 2), 1e-38)):
        assert ternary(w).isfinite().all()
    assert ternary(torch.full((2, 2), 0.5)).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_latent_weights_can_be_kept_from_drifting(stages_of: Stages):
    """Defect D5: no straight-through clip. Published default (identity); `estimator=value_clipped_ste` is one."""
    gradients = {}
    for estimator in ("published", "value_clipped_ste"):
        (stage,) = stages_of("method=xtc", "quantizer=xtc_w1a8", f"estimator={estimator}")
        w = torch.tensor([[0.5, -9.0]], requires_grad=True)
        build_quantizer(stage.rules[0].weight)(w).sum().backward()
        gradients[estimator] = w.grad.flatten().tolist()
    assert gradients == {"published": [1.0, 1.0], "value_clipped_ste": [1.0, 0.0]}


@pytest.mark.parametrize("quantizer", BITS)
def test_an_embedding_row_has_its_scale_in_every_precision(quantizer: str, stages_of: Stages, bert: Berts):
    """Defect D6: half precision took `quantize_groups` for the embedding, full precision its rows."""
    for dtype in (torch.float32, torch.bfloat16):
        model = bert().to(dtype)
        prepare(model, stages_of("method=xtc", f"quantizer={quantizer}")[0].rules)
        table = model.bert.embeddings.word_embeddings
        quantized = table.weight_quantizer(table.weight)
        largest = table.weight.detach().float().abs().mean(1)
        assert quantized.dtype is dtype
        assert quantized.abs().amax(1).unique().numel() > 20, "30 rows, some of which coincide in bfloat16"
        if quantizer == "xtc_w1a8":
            assert torch.allclose(quantized.abs().amax(1).float(), largest, rtol=1e-2)


@pytest.mark.parametrize("quantizer", BITS)
def test_a_prepared_model_is_quantized_from_its_first_evaluation(
    quantizer: str, stages_of: Stages, student_of: Students, bert: Berts, batch: Batch
):
    """Defect D7: only the training engine's scheduler switched quantization on; evaluation elsewhere was plain."""
    student = student_of(stages_of("method=xtc", f"quantizer={quantizer}")[0], bert())
    seen: list[int] = []
    for name, module in student.model.named_modules():
        if name.endswith("dense.weight_quantizer"):
            module.register_forward_hook(lambda _, __, output: seen.append(output.unique().numel()))
    evaluated = student.run(batch).logits
    assert seen == [2 if quantizer == "xtc_w1a8" else 3] * 6, "three dense matrices in each of two layers"
    assert not torch.equal(evaluated, prepare(bert()).run(batch).logits)
    student.model.train()
    assert torch.equal(student.run(batch).logits, evaluated), "no dropout: training computes the same"


def test_embeddings_are_compared_with_embeddings_unless_told(
    stages_of: Stages, distil: Distil, bert: Berts, batch: Batch
):
    """Defect D8: the 5-layer map compared the student's embeddings with a later layer's output."""
    distance = {}
    for target in ("null", "0"):
        stage = stages_of(
            "method=xtc_layers", "quantizer=xtc_w1a8", "method.layer_map=[1]", f"method.embedding_target={target}"
        )[0]
        stage = replace(stage, rules=())
        module = distil(stage, bert(layers=1), bert(layers=3, seed=1))
        module.student.bert.embeddings.load_state_dict(module.teacher.bert.embeddings.state_dict())
        student, target_trace = module.traces(batch, 0)
        distance[target] = (student.embeddings - target_trace.embeddings).abs().max().item()
    assert distance["null"] == 0
    assert distance["0"] > 0.1


def test_the_last_teacher_layer_can_supervise(stages_of: Stages, distil: Distil, bert: Berts, batch: Batch):
    """Defect D8: in the 5-layer map the teacher's last layer supervised nothing. Any map may name it."""
    stage = stages_of("method=xtc_layers", "quantizer=xtc_w1a8", "method.layer_map=[0,3]")[0]
    module = distil(stage, bert(layers=2), bert(layers=4, seed=1))
    _, supervising = module.traces(batch, 0)
    with torch.no_grad():
        every = module._teacher_instrument.run(batch, ["hidden"]).layers
    first, last = supervising.layers
    assert torch.equal(first.hidden, every[0].hidden)
    assert torch.equal(last.hidden, every[3].hidden)


def test_regression_compares_outputs_by_their_squares(stages_of: Stages, distil: Distil, bert: Berts, batch: Batch):
    """Note D10: right in the published code, wrong in BinaryBERT's and BiT's."""
    module = distil(stages_of("method=xtc", "quantizer=xtc_w1a8")[0], bert(labels=1), bert(labels=1, seed=1))
    _, terms = module.losses(batch, 0)
    student, teacher = module.traces(batch, 0)
    a, b = student.logits.flatten().tolist(), teacher.logits.flatten().tolist()
    assert terms["logits"].item() == pytest.approx(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 3, rel=1e-5)


def test_evaluation_builds_no_graph(two_stage_run: Any):
    """Defect D11: `do_eval` ran with gradients on; its remapping of labels was computed and thrown away.

    Here labels are class indices from the data set to the loss, and nothing remaps them.
    """
    assert len(two_stage_run.evaluated) > 4
    assert not any(requires_grad for _, _, requires_grad in two_stage_run.evaluated)


def test_a_module_that_two_rules_match_has_the_later_ones_settings(bert: Berts):
    """Defect D12: a module that matched twice within a method raised an error."""
    model = bert()
    first, later = QuantizerSpec("bwn"), QuantizerSpec("twn")
    prepare(model, (Rule(("*dense", "ffn_in"), weight=first), Rule(("ffn_in",), weight=later)))
    layer = model.bert.encoder.layer[0]
    assert layer.intermediate.dense.weight_quantizer.spec == later
    assert layer.output.dense.weight_quantizer.spec == first

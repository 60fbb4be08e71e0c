"""The published defects of BiT are absent: spec/xtc_sdq_bit_binarybert.md, section 3.8, B1 to B12."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowbit.files import write_json
from lowbit.modeling import Instrument, prepare
from lowbit.quantizers import QuantizerSpec, build_quantizer, calibrate
from lowbit.recipes import Stage
from lowbit.results import Cell, collect
from lowbit.training.handover import Student, take_over

Batch = dict[str, Tensor]
Stages = Callable[..., tuple[Stage, ...]]
Students = Callable[[Stage, nn.Module], Instrument]
Berts = Callable[..., nn.Module]
Distil = Callable[..., Any]
W1A1 = ("method=bit", "quantizer=bit_w1a1")
W1A2 = ("method=bit", "quantizer=bit_w1a2")


def attention(model: nn.Module) -> nn.Module:
    return model.bert.encoder.layer[0].attention.self


@pytest.mark.parametrize("operand", ["q_bmm_quantizer", "k_bmm_quantizer", "v_bmm_quantizer"])
def test_the_shift_of_query_key_and_value_is_used(
    operand: str, stages_of: Stages, distil: Distil, bert: Berts, batch: Batch
):
    """Defect B1: the shifted query was overwritten by the unshifted one, so Q, K and V had no learned threshold."""
    module = distil(stages_of(*W1A2)[0], bert(), bert(seed=1))
    shift = attention(module.student).get_submodule(operand).shift
    module.losses(batch, 0)[0].backward()
    assert shift.grad.any()
    before = module.evaluate(batch, "plain")
    with torch.no_grad():
        shift += 0.5 * torch.randn(shift.shape, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(module.evaluate(batch, "plain"), before)


def test_regression_reaches_pooler_and_classifier(stages_of: Stages, distil: Distil, bert: Berts, batch: Batch):
    """Defect B2: the soft cross-entropy of a single logit is 0, so STS-B trained neither."""
    module = distil(stages_of(*W1A1)[0], bert(labels=1), bert(labels=1, seed=1))
    total, terms = module.losses(batch, 0)
    total.backward()
    assert terms["logits"].item() > 1e-3
    assert module.student.classifier.weight.grad.any()
    assert module.student.bert.pooler.dense.weight.grad.any()


def test_initialized_is_saved_copied_and_replicated(
    stages_of: Stages, student_of: Students, bert: Berts, batch: Batch, replica: Callable[[nn.Module], nn.Module]
):
    """Defect B3: a Python attribute: not saved, missing on replicas, and `deepcopy` of a layer raised a TypeError."""
    (stage,) = stages_of(*W1A1)
    student = student_of(stage, bert())
    state = student.quantizer_state()
    assert all(value for key, value in state.items() if key.endswith("initialized"))
    again = prepare(copy.deepcopy(bert()), stage.rules, initialize=False)
    again.load_quantizer_state(state)
    assert torch.equal(again.run(batch).logits, student.run(batch).logits), "loaded, not initialised anew"
    layer, x = attention(student.model).query, torch.randn(2, 16)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert torch.equal(replica(layer)(x), layer(x))


def test_a_change_of_width_starts_the_step_anew(stages_of: Stages, student_of: Students, bert: Berts, batch: Batch):
    """Defect B4: the 2-bit step was carried over as the 1-bit alpha; the unsigned one is sqrt(3) times larger."""
    first, second = stages_of("method=bit_chain", "quantizer=bit_chain")
    model = bert()
    before = student_of(first, model)
    learned = {key: value.clone() for key, value in before.quantizer_state().items()}
    with torch.no_grad():
        for key, value in learned.items():
            if key.endswith("step_size"):
                value.mul_(7)  # as if training had moved it
            elif key.endswith("shift"):
                value.add_(0.01)
    previous = Student(before.restore(), learned, first.rules)
    after = prepare(copy.deepcopy(previous.model), second.rules)
    take_over(after, previous)
    calibrate(after.model, [batch], after.run)
    own = attention(after.model)
    assert torch.equal(own.q_bmm_quantizer.shift, learned[key_of("q_bmm_quantizer.shift")])
    # mean rule: 4 E|p| / sqrt(Qp), Qp = 1 at one bit; E|p| of a softmax over 5 keys is 1/5
    assert own.p_bmm_quantizer.step_size.item() == pytest.approx(4 / 5, rel=1e-5)
    two_bits = learned[key_of("p_bmm_quantizer.step_size")].item() / 7
    assert own.p_bmm_quantizer.step_size.item() / two_bits == pytest.approx(math.sqrt(3), rel=1e-5)


def key_of(name: str) -> str:
    return f"bert.encoder.layer.0.attention.self.{name}"


def test_scales_start_without_dropout_from_as_many_batches_as_wanted(
    stages_of: Stages, bert: Berts, padded: Callable[[int], Batch]
):
    """Defect B5: they started from the first training batch alone, dropout active.

    What remains, as published: alpha of attention maps is 4 / keys, padded keys included (`init: paper` avoids it).
    """
    (stage,) = stages_of(*W1A1)
    steps = {}
    for dropout in (0.0, 0.5):
        student = prepare(bert(dropout=dropout), stage.rules)
        student.model.train()
        calibrate(student.model, [padded(0)], student.run)
        assert all(module.training for module in student.model.modules())
        steps[dropout] = student.quantizer_state()
    assert all(torch.equal(steps[0.0][key], steps[0.5][key]) for key in steps[0.0])
    student = prepare(bert(), stage.rules)
    calibrate(student.model, [padded(0), padded(5)], student.run)
    mean = (4 / 5 + 4 / 10) / 2
    assert attention(student.model).p_bmm_quantizer.step_size.item() == pytest.approx(mean, rel=1e-5)


def test_zeros_are_no_third_level(stages_of: Stages, student_of: Students, bert: Berts, batch: Batch):
    """Defect B6: sign(0) = 0, so what dropout had zeroed was a third level of a 1-bit input."""
    student = student_of(stages_of(*W1A1)[0], bert())
    quantizer = attention(student.model).query.input_quantizer
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    x[:, ::3] = 0
    alpha = quantizer.step_size.item()
    assert quantizer(x).unique().tolist() == pytest.approx([-alpha, alpha])
    assert (quantizer(x)[:, ::3] > 0).all()
    published = build_quantizer(QuantizerSpec("elastic", bits=1, sign_of_zero=0))
    published.observe(x)
    published.mark_ready()
    assert published(x).unique().numel() == 3, "the published code's levels, on request"


def test_the_student_is_evaluated_at_the_end_without_its_teacher(two_stage_run: Any):
    """Defects B7 and B11: no evaluation branch, teacher None; and the last step could go unevaluated."""
    assert {"test/matthews", "val/matthews"} <= two_stage_run.result["metrics"].keys()
    last = {step for name, step, _ in two_stage_run.evaluated if name == "plain"}
    assert 9 in last, "the stage's own last step, which is no multiple of eval_every=4"


def test_the_weights_kept_are_the_last_ones_and_not_the_best_on_validation(two_stage_run: Any):
    """Defect B11: checkpoints were chosen, and numbers published, on the development set."""
    validated = two_stage_run.result["stages"][1]["metrics"]["val/matthews"]
    logged = [row["val/matthews"] for row in two_stage_run.rows if row["val/matthews"]]
    assert float(logged[-1]) == pytest.approx(validated, abs=1e-6)
    assert sorted(path.name for path in (two_stage_run.folder / "stages" / "plain").iterdir()) == [
        "metrics.csv",
        "model.safetensors",
        "stage.json",
    ]


def test_draws_depend_on_the_runs_seed_alone(stages_of: Stages):
    """Defect B11: numpy's seed was not set."""
    stage = stages_of("method=ti_stochastic")[0]
    drawn = []
    for seed in (0, 1):
        np.random.seed(seed)  # the global generator is the point
        drawn.append([stage.intervention_at(step, seed=3) for step in range(30)])
    assert drawn[0] == drawn[1]
    assert drawn[0] != [stage.intervention_at(step, seed=4) for step in range(30)]


def test_the_teacher_gives_the_same_targets_twice(stages_of: Stages, distil: Distil, bert: Berts, batch: Batch):
    """Defect B8 (BinaryBERT's T4 too): a teacher in train mode has dropout in its targets."""
    teacher = bert(seed=1, dropout=0.5).train()
    module = distil(stages_of(*W1A1)[0], bert(), teacher)
    targets = [module.traces(batch, 0)[1].logits for _ in range(2)]
    assert torch.equal(*targets)
    assert not teacher.training


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_weight_of_the_logits_need_not_depend_on_the_classes(reduction: str, stages_of: Stages):
    """Defect B9: the mean divides by the number of classes. Published default; `reduction=sum` does not."""
    (stage,) = stages_of(*W1A1, f"method.losses.logits.reduction={reduction}")
    term = stage.losses["logits"]

    def loss(classes: int) -> float:
        """Return the loss of two equal logits under a sure teacher; further classes are impossible for both."""
        student, teacher = torch.full((1, classes), -1e3), torch.full((1, classes), -1e3)
        student[:, :2], teacher[:, 0] = 0.0, 0.0
        return term(*(SimpleNamespace(logits=z, layers=(), key_mask=None) for z in (student, teacher)), None).item()

    assert loss(2) == pytest.approx(math.log(2) / (2 if reduction == "mean" else 1))
    assert loss(4) == pytest.approx(math.log(2) / (4 if reduction == "mean" else 1))


def test_predictions_do_not_depend_on_the_rest_of_the_batch(
    stages_of: Stages, student_of: Students, bert: Berts, batch: Batch
):
    """Defect B10: at two bits the batch's minimum was subtracted from unsigned inputs. `subtract_minimum=true` does."""
    change = {}
    for name, override in {"shipped": (), "published": ("quantizer.activation.subtract_minimum=true",)}.items():
        stage = stages_of(*W1A2, *override)[0]
        student = student_of(stage, bert())
        with torch.no_grad():  # without zeros in them, the minima tell batches apart
            for layer in student.model.bert.encoder.layer:
                layer.output.dense.input_quantizer.shift += 0.3 + torch.arange(24) / 100
        assert layer.output.dense.input_quantizer.spec.signed is False
        alone = {key: value[:1] for key, value in batch.items()}
        change[name] = (student.run(batch).logits[0] - student.run(alone).logits[0]).abs().max().item()
    assert change["shipped"] < 1e-5
    assert change["published"] > 1e-3


def test_metrics_at_and_below_zero_are_reported(tmp_path: Path, two_stage_run: Any):
    """Defect B12: `result_to_file` dropped metrics that were not positive."""
    for value in (0.0, -0.25):
        result = {**two_stage_run.result, "metrics": {"test/matthews": value}, "teacher": None}
        write_json(tmp_path / "run.json", result)
        rows = collect([Cell(tmp_path, {}, "")])
        assert [row.values for row in rows] == [[value]]

"""LossTerm: which fields it reads, what it sums, how its weight moves, what it refuses."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lowbit.losses import (
    attention_map_kl,
    hidden_mse,
    logit_mse,
    score_mse,
    soft_cross_entropy,
    task_loss,
)
from lowbit.settings.losses import Ramp
from tests.helpers.losses import loss_of

FIELDS = {
    "logits": set(),
    "task": set(),
    "hidden": {"embeddings", "hidden"},
    "scores": {"scores"},
    "maps": {"probs"},
    "attn_block": {"attn_block"},
    "attn_out": {"attn_out"},
}
MASK = torch.tensor([[True, True, True], [True, False, False]])


def trace(seed: int, classes: int = 3, depth: int = 2) -> Any:
    g = torch.Generator().manual_seed(seed)
    shapes = {"scores": (2, 2, 3, 3), "hidden": (2, 3, 4), "attn_block": (2, 3, 4), "attn_out": (2, 3, 4)}
    layers = tuple(
        SimpleNamespace(
            probs=torch.rand(2, 2, 3, 3, generator=g).softmax(-1),
            **{name: torch.randn(shape, generator=g) for name, shape in shapes.items()},
        )
        for _ in range(depth)
    )
    return SimpleNamespace(
        logits=torch.randn(2, classes, generator=g),
        layers=layers,
        embeddings=torch.randn(2, 3, 4, generator=g),
        key_mask=MASK,
    )


STUDENT, TEACHER = trace(0), trace(1)


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_that_a_term_reads(kind: str):
    assert loss_of(kind).fields == FIELDS[kind]


@pytest.mark.parametrize("mask", ["full", "valid"])
@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("scores", lambda s, t, rule: score_mse(s.scores, t.scores, MASK, rule=rule)),
        ("maps", lambda s, t, rule: attention_map_kl(s.probs, t.probs, MASK)),
        ("attn_block", lambda s, t, rule: hidden_mse(s.attn_block, t.attn_block, MASK, rule=rule)),
        ("attn_out", lambda s, t, rule: hidden_mse(s.attn_out, t.attn_out, MASK, rule=rule)),
    ],
)
def test_layer_terms_sum_over_layers(kind: str, loss: Any, mask: str):
    expected = sum(loss(s, t, mask).item() for s, t in zip(STUDENT.layers, TEACHER.layers, strict=True))
    assert loss_of(kind, mask=mask)(STUDENT, TEACHER, None).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mask", ["full", "valid"])
def test_hidden_sums_the_embeddings_and_every_layer(mask: str):
    pairs = [(STUDENT.embeddings, TEACHER.embeddings)]
    pairs += [(s.hidden, t.hidden) for s, t in zip(STUDENT.layers, TEACHER.layers, strict=True)]
    expected = sum(hidden_mse(s, t, MASK, rule=mask).item() for s, t in pairs)
    assert loss_of("hidden", mask=mask)(STUDENT, TEACHER, None).item() == pytest.approx(expected, rel=1e-6)


def test_logits_pass_reduction_and_temperature_on():
    term = loss_of("logits", reduction="mean", temperature=3.0)
    expected = soft_cross_entropy(STUDENT.logits, TEACHER.logits, reduction="mean", temperature=3.0)
    assert torch.equal(term(STUDENT, TEACHER, None), expected)
    assert torch.equal(loss_of("logits")(STUDENT, TEACHER, None), soft_cross_entropy(STUDENT.logits, TEACHER.logits))


def test_logits_of_a_regression_task_take_the_squared_error():
    student, teacher = trace(0, classes=1), trace(1, classes=1)
    assert torch.equal(loss_of("logits")(student, teacher, None), logit_mse(student.logits, teacher.logits))


def test_task_needs_no_teacher():
    labels = torch.tensor([0, 2])
    assert torch.equal(loss_of("task")(STUDENT, None, labels), task_loss(STUDENT.logits, labels))


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="loss 'task' needs labels"):
        loss_of("task")(STUDENT, TEACHER, None)
    with pytest.raises(ValueError, match=r"loss 'scores' needs a teacher: set the stage's `teacher: true`"):
        loss_of("scores")(STUDENT, None, torch.tensor([0, 1]))


def test_networks_of_different_depth_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        loss_of("scores")(STUDENT, trace(1, depth=1), None)


# --- weights --------------------------------------------------------------------------------------------------------


def test_a_constant_weight_does_not_move():
    assert [loss_of("scores", weight=0.3).settings.weight_at(step, 10) for step in (0, 5, 9)] == [0.3] * 3


def test_a_linear_ramp_reaches_its_end_at_the_last_step():
    term = loss_of("scores", weight=1.0, weight_end=3.0, ramp="linear")
    assert [term.settings.weight_at(step, 5) for step in range(5)] == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert term.settings.weight_at(99, 5) == 3.0


def test_a_cosine_ramp_is_flat_at_both_ends():
    term = loss_of("scores", weight=2.0, weight_end=0.0, ramp="cosine")
    weights = [term.settings.weight_at(step, 5) for step in range(5)]
    assert weights == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0])


@pytest.mark.parametrize("ramp", ["linear", "cosine"])
def test_a_stage_of_one_step_has_the_first_weight(ramp: str):
    assert loss_of("scores", weight=2.0, weight_end=0.0, ramp=ramp).settings.weight_at(0, 1) == 2.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cosine"}, "kind=cosine: allowed are logits, hidden, scores"),
        ({"kind": "score"}, "did you mean scores?"),
        ({"kind": "no_such_module.Loss"}, "no module no_such_module; put no_such_module.py beside conf/"),
        ({"kind": "math.Loss"}, "the module math has no Loss"),
        ({"kind": "math.sqrt"}, "is not a subclass of lowbit.losses.Loss"),
        ({"kind": "task", "ramp": Ramp.linear}, "loss task: .* go together"),
        ({"kind": "task", "weight_end": 0.0}, "loss task: .* go together"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        loss_of(**settings)

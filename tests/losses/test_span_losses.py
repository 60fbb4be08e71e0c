"""Losses of spans on windows small enough for pencil and paper: the numbers are worked out in the comments.

ln 2 = 0.6931471806, ln 4/3 = 0.2876820724; 3/4 ln 4 + 1/4 ln 4/3 = 1.1116412889.
"""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lowbit.losses import soft_cross_entropy, span_soft_cross_entropy
from tests.helpers.losses import loss_of

LN3 = math.log(3)


def wide(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# One window of two tokens. Start: teacher (3/4, 1/4), student (1/4, 3/4). End: both (1/2, 1/2).
TEACHER, STUDENT = [[[LN3, 0], [0, 0]]], [[[0, LN3], [0, 0]]]
CASES = [
    # 1.1116412889 + ln 2; the mean over the two positions halves it.
    ({}, 1, 1.8047884695),
    ({"reduction": "mean"}, 1, 0.9023942348),
    # Twice these logits at temperature 2 are the same distributions, and the loss is multiplied by 4.
    ({"temperature": 2.0}, 2, 7.2191538779),
    ({"reduction": "mean", "temperature": 2.0}, 2, 3.6095769390),
]


@pytest.mark.parametrize(("settings", "scale", "expected"), CASES)
def test_both_ends_are_added(settings: dict[str, Any], scale: float, expected: float):
    student, teacher = (SimpleNamespace(logits=scale * wide(logits)) for logits in (STUDENT, TEACHER))
    term = loss_of("logits", **settings)
    assert term(student, teacher, None).item() == pytest.approx(expected, rel=1e-9)


def test_windows_are_averaged():
    """A second window, (1/2, 1/2) everywhere, has 2 ln 2: (1.8047884695 + 1.3862943611) / 2."""
    even = [[[0, 0], [0, 0]]]
    value = span_soft_cross_entropy(wide(STUDENT + even), wide(TEACHER + even))
    assert value.item() == pytest.approx(1.5955414153, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "factor"),
    [({}, 1), ({"reduction": "mean"}, 0.5), ({"temperature": 2.0}, 2), ({"reduction": "mean", "temperature": 2.0}, 1)],
)
def test_gradient_is_the_difference_of_the_probabilities(settings: dict[str, Any], factor: float):
    """Softmax of the student minus that of the teacher: (1/4 - 3/4, 3/4 - 1/4) and nothing; times T, per position."""
    scale = settings.get("temperature", 1.0)
    student = (scale * wide(STUDENT)).requires_grad_()
    span_soft_cross_entropy(student, scale * wide(TEACHER), **settings).backward()
    assert torch.allclose(student.grad, factor * wide([[[-0.5, 0.5], [0, 0]]]))
    assert torch.autograd.gradcheck(lambda x: span_soft_cross_entropy(x, wide(TEACHER), **settings), student)


def test_an_end_is_a_classification_over_the_positions():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 2, 5, generator=generator) for _ in range(2))
    for reduction in ("sum", "mean"):
        ends = [soft_cross_entropy(student[:, i], teacher[:, i], reduction=reduction) for i in (0, 1)]
        assert torch.equal(span_soft_cross_entropy(student, teacher, reduction=reduction), ends[0] + ends[1])


def test_task_is_the_mean_of_both_ends():
    """Start on token 1: ln 4/3; end on token 0: ln 2; their mean, as in BERT. With a second window (1, 1): 4 values."""
    task = loss_of("task")
    assert task(SimpleNamespace(logits=wide(STUDENT)), None, torch.tensor([[1, 0]])).item() == pytest.approx(
        0.4904146265
    )
    two = SimpleNamespace(logits=wide([*STUDENT, [[0, LN3], [0, LN3]]]))
    value = task(two, None, torch.tensor([[1, 0], [1, 1]])).item()
    assert value == pytest.approx((3 * 0.2876820724 + 0.6931471806) / 4)


def test_task_equals_the_loss_of_transformers():
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForQuestionAnswering(BertConfig(vocab_size=9, max_position_embeddings=8, **sizes)).eval()
    labels = torch.tensor([[2, 4], [0, 0], [1, 1]])
    ids = torch.randint(9, (3, 6))
    output = model(input_ids=ids, start_positions=labels[:, 0], end_positions=labels[:, 1])
    logits = torch.stack([output.start_logits, output.end_logits], 1)
    assert torch.allclose(loss_of("task")(SimpleNamespace(logits=logits), None, labels), output.loss)

"""Loss functions by hand, their masks, and that each of them can be minimised."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lowbit.losses import attention_map_kl, hidden_mse, logit_mse, score_mse, soft_cross_entropy, task_loss

MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- logits and labels ----------------------------------------------------------------------------------------------


def test_soft_cross_entropy_by_hand():
    teacher = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # (3/4, 1/4), (1/2, 1/2)
    student = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    first = math.log(2)
    second = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    assert soft_cross_entropy(student, teacher).item() == pytest.approx((first + second) / 2, rel=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_mean_over_classes_is_smaller_by_their_number(classes: int):
    student, teacher = rand(5, classes), rand(5, classes, seed=1)
    total = soft_cross_entropy(student, teacher, reduction="sum")
    mean = soft_cross_entropy(student, teacher, reduction="mean")
    assert total.item() == pytest.approx(classes * mean.item(), rel=1e-12)


def test_the_temperature_divides_both_logits_and_is_squared_back():
    student, teacher = rand(5, 3), rand(5, 3, seed=1)
    expected = 4.0 * soft_cross_entropy(student / 2, teacher / 2)
    assert soft_cross_entropy(student, teacher, temperature=2.0).item() == pytest.approx(expected.item(), rel=1e-12)


def test_soft_cross_entropy_is_least_at_the_teacher():
    teacher = rand(4, 3)
    entropy = -(teacher.softmax(-1) * teacher.log_softmax(-1)).sum(-1).mean()
    assert soft_cross_entropy(teacher, teacher).item() == pytest.approx(entropy.item(), rel=1e-12)
    assert soft_cross_entropy(teacher + rand(4, 3, seed=1), teacher) > entropy


def test_logit_mse_by_hand():
    assert logit_mse(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]])).item() == 2.5


def test_task_loss_of_classes_and_of_numbers():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert task_loss(logits, torch.tensor([1, 0])).item() == pytest.approx(expected, rel=1e-6)
    assert task_loss(torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 4.0])).item() == 2.5
    assert task_loss(torch.zeros(2, 1, dtype=torch.float64), torch.tensor([1.0, 1.0])).dtype is torch.float64


# --- hidden states --------------------------------------------------------------------------------------------------


def test_hidden_mse_full_counts_padding_and_valid_does_not():
    student, teacher = torch.zeros(2, 4, 2), torch.zeros(2, 4, 2)
    student[0, 0] = torch.tensor([1.0, 3.0])  # a real token: squares 1 and 9
    student[1, 3] = 10.0  # padding: 100 and 100
    assert hidden_mse(student, teacher, MASK, rule="full").item() == pytest.approx(210 / 16)
    assert hidden_mse(student, teacher, None).item() == pytest.approx(210 / 16)
    assert hidden_mse(student, teacher, MASK, rule="valid").item() == pytest.approx(10 / 12)
    assert hidden_mse(student, teacher, None, rule="valid").item() == pytest.approx(210 / 16)


# --- scores ---------------------------------------------------------------------------------------------------------


def test_score_mse_by_hand():
    student, teacher = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert score_mse(student, teacher).item() == 7.5
    mask = torch.tensor([[True, False]])
    assert score_mse(student, teacher, mask, rule="full").item() == 2.5  # (1 + 9) / 4: padded queries count
    assert score_mse(student, teacher, mask, rule="valid").item() == 1.0  # the one pair of real tokens


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_padded_keys_contribute_exactly_nothing(network: str):
    tensors = {"student": rand(2, 3, 4, 4), "teacher": rand(2, 3, 4, 4, seed=1)}
    before = score_mse(**{f"{k}_BHLL": v for k, v in tensors.items()}, mask_BL=MASK)
    tensors[network][1, :, :, 2:] = 99.0
    student = tensors["student"].requires_grad_()
    after = score_mse(student, tensors["teacher"], MASK)
    assert after.item() == before.item()
    after.backward()
    assert not student.grad[1, :, :, 2:].any()
    assert student.grad[1, :, 2:, :2].all()  # padded queries are published to count
    assert student.grad[0].all()


@pytest.mark.parametrize("padded", [-1e2, -1e4, float("-inf"), torch.finfo(torch.float32).min])
def test_scores_at_or_below_minus_100_become_zero_in_both_networks(padded: float):
    student, teacher = torch.tensor([[[[padded, 1.0]]]]), torch.tensor([[[[3.0, padded]]]])
    assert score_mse(student, teacher).item() == 5.0
    assert score_mse(student, student.clone()).item() == 0.0
    assert score_mse(torch.tensor([[[[-99.5]]]]), torch.zeros(1, 1, 1, 1)).item() == pytest.approx(99.5**2)


def test_valid_scores_weigh_every_pair_alike():
    student, teacher = rand(2, 3, 4, 4), rand(2, 3, 4, 4, seed=1)
    squares = (student - teacher).square()
    expected = (squares[0].sum() + squares[1, :, :2, :2].sum()) / (3 * (16 + 4))
    assert score_mse(student, teacher, MASK, rule="valid").item() == pytest.approx(expected.item(), rel=1e-12)


# --- maps -----------------------------------------------------------------------------------------------------------


def test_map_kl_of_two_tokens_by_hand():
    teacher = torch.tensor([[[[0.75, 0.25], [0.5, 0.5]]]], dtype=torch.float64)
    student = torch.tensor([[[[0.5, 0.5], [0.25, 0.75]]]], dtype=torch.float64)
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    second = 0.5 * math.log(2.0) + 0.5 * math.log(2 / 3)
    for mask in (None, torch.tensor([[True, True]])):
        assert attention_map_kl(student, teacher, mask).item() == pytest.approx((first + second) / 2, rel=1e-12)


def test_map_kl_of_identical_maps_is_zero():
    maps = rand(2, 3, 4, 4).softmax(-1)
    assert attention_map_kl(maps, maps, MASK).item() == 0.0
    assert attention_map_kl(maps, maps).item() == 0.0


def test_map_kl_does_not_depend_on_the_pad_length():
    short = {name: rand(1, 3, 2, 2, seed=seed).softmax(-1) for seed, name in enumerate(("student", "teacher"))}
    long = {name: torch.zeros(1, 3, 5, 5, dtype=torch.float64) for name in short}
    for name, maps in long.items():
        maps[:, :, :2, :2] = short[name]
        maps[:, :, 2:, :2] = torch.tensor([0.9, 0.1] if name == "student" else [0.2, 0.8])  # padded queries
    padded = attention_map_kl(long["student"], long["teacher"], torch.tensor([[True, True, False, False, False]]))
    assert padded.item() == pytest.approx(attention_map_kl(short["student"], short["teacher"]).item(), rel=1e-12)
    assert padded.item() > 1e-3


def test_map_kl_averages_sentences_of_different_length_alike():
    student, teacher = rand(2, 3, 4, 4).softmax(-1), rand(2, 3, 4, 4, seed=1).softmax(-1)
    terms = teacher * (teacher / student).log()
    expected = (terms[0].sum() / 4 + terms[1, :, :2, :2].sum() / 2) / (3 * 2)
    assert attention_map_kl(student, teacher, MASK).item() == pytest.approx(expected.item(), rel=1e-12)


def test_map_kl_stands_zero_probabilities():
    student = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]], requires_grad=True)
    teacher = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
    loss = attention_map_kl(student, teacher)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


# --- every loss can be minimised ------------------------------------------------------------------------------------

LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "soft_cross_entropy": (soft_cross_entropy, (4, 3)),
    "logit_mse": (logit_mse, (4, 1)),
    "hidden full": (lambda s, t: hidden_mse(s, t, MASK), (2, 4, 5)),
    "hidden valid": (lambda s, t: hidden_mse(s, t, MASK, rule="valid"), (2, 4, 5)),
    "scores full": (lambda s, t: score_mse(s, t, MASK), (2, 3, 4, 4)),
    "scores valid": (lambda s, t: score_mse(s, t, MASK, rule="valid"), (2, 3, 4, 4)),
    "maps": (lambda s, t: attention_map_kl(s.softmax(-1), t.softmax(-1), MASK), (2, 3, 4, 4)),
    "task": (lambda s, t: task_loss(s, t.argmax(-1)), (4, 3)),
}


@pytest.mark.parametrize(("loss", "shape"), LOSSES.values(), ids=list(LOSSES))
def test_every_loss_falls_over_20_steps(loss: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]):
    student, teacher = rand(*shape).requires_grad_(), rand(*shape, seed=1).requires_grad_()
    optimizer = torch.optim.SGD([student], lr=0.5)
    values = []
    for _ in range(21):
        value = loss(student, teacher)
        assert value.shape == ()
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert all(later < earlier for earlier, later in pairwise(values))

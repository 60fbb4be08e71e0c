"""OBR against hand-computed values and the formula of the specification; soft labels and map distances."""

import math

import pytest
import torch
from torch import nn

from lowbit.losses import (
    attention_map_mse,
    bin_regularization,
    oscillation_aware_regularization,
    soft_label_loss,
)
from lowbit.quantizers import QuantizerSpec, QuantLinear, weight_sites
from tests.helpers.losses import loss_of

LSQ = QuantizerSpec("lsq", bits=2, grad_scale="none")


def site_of(weight: torch.Tensor, step: float, spec: QuantizerSpec = LSQ):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
    layer = QuantLinear.from_float(linear, spec, None)
    with torch.no_grad():
        layer.weight_quantizer.step_size.fill_(step)
    (site,) = weight_sites(layer)
    return site


W = torch.tensor([[0.9, 1.1, 0.2, -0.1], [-1.0, -5.0, 0.4, 3.0]], dtype=torch.float64)
# step 1, codes clamp(round(w), -2, 1): 1 1 0 0 / -1 -2 0 1; clipped weights .9 1 .2 -.1 / -1 -2 .4 1
SQUARES = [0.01, 0.0, 0.04, 0.01, 0.0, 0.0, 0.16, 0.0]
VARIANCES = [  # bin 1: .9 1 1; bin 0: .2 -.1 .4; bins -1 and -2 hold one weight
    sum((v - 2.9 / 3) ** 2 for v in (0.9, 1.0, 1.0)) / 2,
    sum((v - 0.5 / 3) ** 2 for v in (0.2, -0.1, 0.4)) / 2,
]


@pytest.mark.parametrize(
    ("aggregation", "distance"),
    [("mean", sum(SQUARES) / 8), ("sum", sum(SQUARES)), ("norm", math.sqrt(sum(SQUARES)))],
)
def test_the_value_is_the_hand_computed_one(aggregation: str, distance: float):
    value = oscillation_aware_regularization([site_of(W, 1.0)], aggregation=aggregation)
    assert value.item() == pytest.approx(distance + sum(VARIANCES), rel=1e-12)


def test_clipped_weights_get_no_gradient_and_the_step_none_if_detached():
    site = site_of(W, 1.0)
    oscillation_aware_regularization([site], aggregation="sum").backward()
    outside = (W < -2) | (W > 1)
    assert torch.equal(site.parameter.grad == 0, outside | (site.parameter.grad == 0))
    assert (site.parameter.grad[outside] == 0).all()
    assert (site.parameter.grad[~outside] != 0).any()
    assert site.quantizer.step_size.grad is None


def test_the_step_gets_the_gradient_of_clipped_weights_if_asked():
    site = site_of(W, 1.0)
    value = oscillation_aware_regularization([site], aggregation="sum", detach_step=False)
    (gradient,) = torch.autograd.grad(value, site.quantizer.step_size)
    step = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    kept = (W / step).clamp(-2, 1) * step
    codes = torch.tensor([[1.0, 1, 0, 0], [-1, -2, 0, 1]], dtype=torch.float64)
    value = bin_regularization(kept, codes, codes, low=-2, high=1, aggregation="sum")
    (expected,) = torch.autograd.grad(value, step)
    assert gradient.item() == pytest.approx(expected.item(), rel=1e-12)
    assert gradient.item() != 0


def test_bins_are_integers_where_floats_would_miss_them():
    """Defect 8: (q * alpha) / alpha == q fails for some alpha; every weight must count."""
    w = torch.randn(64, 192, dtype=torch.float64) * 0.02
    for step in torch.linspace(0.004, 0.009, 40, dtype=torch.float64).tolist():
        site = site_of(w, step, QuantizerSpec("lsq", bits=4, grad_scale="none"))
        codes = (w / step).clamp(-8, 7).round()
        kept = (w / step).clamp(-8, 7) * step
        variances = sum(kept[codes == k].var() for k in range(-8, 8) if (codes == k).sum() > 1)
        expected = (kept - codes * step).square().mean() + variances
        assert oscillation_aware_regularization([site]).item() == pytest.approx(expected.item(), rel=1e-10)


def test_wide_layers_can_be_left_out():
    low, high = site_of(W, 1.0), site_of(W, 0.013, QuantizerSpec("lsq", bits=8, grad_scale="none"))
    both = oscillation_aware_regularization([low, high])
    assert oscillation_aware_regularization([low, high], max_bits=4).item() < both.item()
    assert oscillation_aware_regularization([low, high], max_bits=4) == oscillation_aware_regularization([low])
    with pytest.raises(ValueError, match="at most 4 bits"):
        oscillation_aware_regularization([high], max_bits=4)


def test_the_weight_rises_along_a_cosine_from_its_start():
    term = loss_of("obr", weight=0.0, weight_end=0.01, ramp="cosine", start=0.25)
    assert [term.settings.weight_at(step, 101) for step in (0, 25)] == [0.0, 0.0]
    assert term.settings.weight_at(100, 101) == pytest.approx(0.01)
    first = 0.25 * 101
    halfway = (1 - math.cos(math.pi * (60 - first) / (100 - first))) / 2 * 0.01
    assert term.settings.weight_at(60, 101) == pytest.approx(halfway)


def test_soft_labels_are_cross_entropy_under_stored_probabilities():
    logits, p = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    expected = (0.5 * math.log(4) + 0.5 * math.log(4 / 3) + math.log(2)) / 2
    assert soft_label_loss(logits, p).item() == pytest.approx(expected)


def test_map_distance_counts_pairs_of_real_tokens_only():
    student, teacher = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    student[0, 0, 0, 0], student[0, 1, 0, 0], student[0, 0, 1, 1] = 0.5, 0.1, 9.0
    mask = torch.tensor([[True, False]])
    assert attention_map_mse(student, teacher, mask).item() == pytest.approx((0.25 + 0.01) / 2)
    assert attention_map_mse(teacher, teacher).item() == 0


@pytest.mark.parametrize(
    "spec",
    [
        QuantizerSpec("statsq", bits=2),
        QuantizerSpec("seq", bits=2),
        QuantizerSpec("seq", bits=1.58, granularity="row"),
        QuantizerSpec("bwn"),
        QuantizerSpec("twn"),
        QuantizerSpec("minmax_symmetric", bits=3),
        QuantizerSpec("minmax_asymmetric", bits=2),
        QuantizerSpec("lsq", bits=3, offset=True),
    ],
    ids=str,
)
def test_on_any_grid_weights_on_their_levels_cost_nothing_and_others_do(spec: QuantizerSpec):
    w = torch.randn(12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    linear = nn.Linear(16, 12, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(w)
    (site,) = weight_sites(QuantLinear.from_float(linear, spec, None))
    assert oscillation_aware_regularization([site]).item() > 1e-3
    levels = site.quantized()
    codes = site.quantizer.codes(w)
    low, high = int(codes.min()), int(codes.max())
    per_scale = levels if spec.granularity == "tensor" else levels / levels.abs().amax(1, keepdim=True)
    assert bin_regularization(per_scale, codes, per_scale, low=low, high=high).item() == pytest.approx(0, abs=1e-20)


def test_a_quantizer_without_a_learned_step_cannot_give_it_a_gradient():
    (site,) = weight_sites(QuantLinear.from_float(nn.Linear(4, 4), QuantizerSpec("bitnet"), None))
    with pytest.raises(ValueError, match="detach_step=true"):
        oscillation_aware_regularization([site], detach_step=False)

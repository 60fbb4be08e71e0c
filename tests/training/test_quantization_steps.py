"""What happens around a step: the order of corrections and clipping, and the learning rate of scales."""

import itertools

import pytest
import torch
from torch import nn

from lowbit.modeling import Rule
from lowbit.quantizers import Cage, Dampening, QuantizerSpec, QuantLinear
from lowbit.recipes import Stage
from lowbit.settings.recipe import OptimizerConfig, SchedulerConfig
from lowbit.training.optimizers import build_optimizer, parameter_groups
from lowbit.training.quantization import QuantizationSteps

LSQ = QuantizerSpec("lsq", bits=3)
ADAMW = OptimizerConfig("adamw", 0.1, weight_decay=0.0)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(QuantLinear.from_float(nn.Linear(6, 5), LSQ, None), nn.Linear(5, 2))


def stage(correction: object) -> Stage:
    rules = (Rule(("query",), weight=LSQ),)
    return Stage(
        "qat", 10, 0, "teacher", True, rules, {}, None, ADAMW, SchedulerConfig("constant", 0.0), correction=correction
    )  # type: ignore[arg-type]


def test_scales_have_their_own_learning_rate_and_no_decay():
    network = model()
    groups = parameter_groups(network, 0.01, scale_lr=1e-4)
    (scales,) = [group for group in groups if group.get("lr") == 1e-4]
    assert [id(p) for p in scales["params"]] == [id(network[0].weight_quantizer.step_size)]
    assert scales["weight_decay"] == 0.0
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    together = parameter_groups(network, 0.01)
    assert not any("lr" in group for group in together)


@pytest.mark.parametrize("kind", ["adamw", "bert_adam"])
def test_a_step_moves_scales_at_their_own_rate(kind: str):
    moved = []
    for scale_lr in (None, 1e-4):
        network = model()
        before = network[0].weight_quantizer.step_size.detach().clone()
        settings = OptimizerConfig(kind, 1e-2, weight_decay=0.0, max_grad_norm=None, scale_lr=scale_lr)
        optimizer, _ = build_optimizer(network, settings, lambda _: 1.0, fused=False)
        network(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
        moved.append(float((network[0].weight_quantizer.step_size.detach() - before).abs()))
    assert moved[1] == pytest.approx(moved[0] / 100, rel=0.01)


@pytest.mark.parametrize("kind", ["adamw", "bert_adam"])
def test_the_gradient_factor_of_scales_cancels_under_adam_and_counts_under_sgd(kind: str):
    """Specification of variation-aware quantization, section 5: gradient scaling is a no-op under AdamW."""
    moved: dict[str, list[float]] = {"same": [], "sgd": []}
    for update, factor in itertools.product(moved, (1.0, 0.01)):
        network = model()
        step_size = network[0].weight_quantizer.step_size
        before = step_size.detach().clone()
        settings = OptimizerConfig(
            kind, 1e-2, weight_decay=0.0, eps=1e-12, max_grad_norm=None, scale_lr=1e-3, scale_update=update
        )
        optimizer, _ = build_optimizer(network, settings, lambda _: 0.5, fused=False)
        network(torch.ones(8, 6)).square().sum().backward()
        step_size.grad.mul_(factor)
        gradient = step_size.grad.clone()
        optimizer.step()
        torch.testing.assert_close(step_size.grad, gradient)
        moved[update].append(float((step_size.detach() - before).abs()))
        if update == "sgd":  # p - lr * schedule * gradient
            torch.testing.assert_close(step_size.detach(), before - 1e-3 * 0.5 * gradient)
            assert not optimizer.state[step_size].get("exp_avg", torch.zeros(1)).any()
    assert moved["same"][0] == pytest.approx(moved["same"][1], rel=1e-3)
    assert moved["sgd"][0] == pytest.approx(100 * moved["sgd"][1], rel=1e-3)


@pytest.mark.parametrize("kind", ["adamw", "bert_adam"])
def test_gradients_of_plain_groups_are_zeroed_by_the_closure_too(kind: str):
    """Lightning zeroes gradients inside the closure; a group that it did not find there would add them up."""
    network = model()
    step_size = network[0].weight_quantizer.step_size
    settings = OptimizerConfig(kind, 1e-2, weight_decay=0.0, max_grad_norm=None, scale_lr=1e-3, scale_update="sgd")
    optimizer, _ = build_optimizer(network, settings, lambda _: 1.0, fused=False)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = network(torch.ones(8, 6)).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        before = [p.detach().clone() for p in network.parameters()]
        (expected,) = torch.autograd.grad(network(torch.ones(8, 6)).square().sum(), [step_size])
        loss = optimizer.step(closure)
        torch.testing.assert_close(step_size.grad, expected)
        assert float(loss.detach()) > 0
        assert all((p != old).any() for p, old in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("correction", "clipped"), [(Cage(5.0, 0.0, "constant", coupled=True), False), (Dampening(0.1, 0.0), True)]
)
def test_a_loss_is_clipped_with_the_others_and_a_coupled_pull_is_not(correction: object, clipped: bool):
    network = model()
    steps = QuantizationSteps(network, stage(correction))
    weight = network[0].weight
    weight.grad = torch.zeros_like(weight)
    steps.before_clipping(5)
    assert bool(weight.grad.abs().sum() > 0) == clipped
    steps.before_update(5)
    assert weight.grad.abs().sum() > 0

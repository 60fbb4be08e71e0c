"""BertAdam against the published update rule, written out one parameter at a time."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lowbit.settings.recipe import OptimizerConfig, SchedulerConfig
from lowbit.training.optimizers import BertAdam, build_optimizer, parameter_groups
from lowbit.training.schedules import build_schedule, linear

STEPS, WARMUP, LR = 20, 0.1, 1e-2
SETTINGS = OptimizerConfig("bert_adam", LR, eps=1e-6)


def schedule(step: float) -> float:
    return linear(step, STEPS, WARMUP)


def reference_step(p: Tensor, grad: Tensor | None, state: dict[str, object], decay: float) -> Tensor:
    """Return the parameter after one published update; a None gradient skips it."""
    if grad is None:
        return p
    grad = grad * min(1.0, 1.0 / (float(grad.norm()) + 1e-6))
    m = 0.9 * state.get("m", torch.zeros_like(p)) + 0.1 * grad
    v = 0.999 * state.get("v", torch.zeros_like(p)) + 0.001 * grad**2
    t = state.get("t", 0)
    progress = t / STEPS
    factor = progress / WARMUP if progress < WARMUP else max((progress - 1) / (WARMUP - 1), 0)
    state.update(m=m, v=v, t=t + 1)
    return p - LR * factor * (m / (v.sqrt() + 1e-6) + decay * p)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3)).double()


def random_grads(net: nn.Module, step: int) -> None:
    """Gradients of norms below and above 1; the linear weight has none in steps 3 to 7."""
    generator = torch.Generator().manual_seed(step)
    for index, (name, p) in enumerate(net.named_parameters()):
        frozen = name == "1.weight" and 3 <= step <= 7
        p.grad = None if frozen else torch.randn(p.shape, generator=generator, dtype=p.dtype) * (0.05 + index)


def test_equals_the_published_rule_with_a_frozen_parameter() -> None:
    net = model()
    expected = {name: p.detach().clone() for name, p in net.named_parameters()}
    states: dict[str, dict[str, object]] = {name: {} for name in expected}
    optimizer, scheduler = build_optimizer(net, SETTINGS, build_schedule(SchedulerConfig("linear", WARMUP), STEPS))
    assert scheduler is None
    for step in range(STEPS):
        random_grads(net, step)
        for name, p in net.named_parameters():
            decay = 0.01 if p.ndim >= 2 else 0.0
            expected[name] = reference_step(expected[name], p.grad, states[name], decay)
        optimizer.step()
        for name, p in net.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-14)
    assert states["1.weight"]["t"] == STEPS - 5


def test_first_update_has_learning_rate_zero() -> None:
    net = model()
    before = copy.deepcopy(net.state_dict())
    random_grads(net, 0)
    build_optimizer(net, SETTINGS, schedule)[0].step()
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize(("counter", "late"), [("parameter", True), ("shared", False)])
def test_step_counter_decides_whether_a_frozen_parameter_warms_up_late(counter: str, late: bool) -> None:
    weight = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer = BertAdam([weight], LR, schedule, weight_decay=0.0, step_counter=counter)
    for _ in range(3):
        optimizer.step()
    weight.grad = torch.full_like(weight, 0.1)
    optimizer.step()
    assert bool((weight == 1).all()) is late


def test_only_matrices_and_embeddings_are_decayed() -> None:
    groups = parameter_groups(model(), 0.01)
    assert [(g["weight_decay"], [tuple(p.shape) for p in g["params"]]) for g in groups] == [
        (0.01, [(5, 4), (3, 4)]),
        (0.0, [(3,), (3,), (3,)]),
    ]


def test_state_survives_saving() -> None:
    straight, resumed = model(), model()
    a, b = (build_optimizer(net, SETTINGS, schedule)[0] for net in (straight, resumed))
    for step in range(8):
        for net, optimizer in ((straight, a), (resumed, b)):
            random_grads(net, step)
            optimizer.step()
        if step == 4:
            state = copy.deepcopy(b.state_dict())
            b = build_optimizer(resumed, SETTINGS, schedule)[0]
            b.load_state_dict(state)
    for p, q in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        ("linear", {0: 0, 1: 0.5, 2: 1, 11: 0.5, 20: 0}),
        ("cosine", {0: 0, 1: 0.5, 2: 1, 11: 0.5, 20: 0}),
        ("constant", {0: 0, 1: 0.5, 2: 1, 11: 1, 20: 1}),
    ],
)
def test_schedules(kind: str, at: dict[int, float]) -> None:
    factor = build_schedule(SchedulerConfig(kind, WARMUP), STEPS)
    assert {step: factor(step) for step in at} == pytest.approx(at)


def test_no_warmup_starts_at_the_peak() -> None:
    assert build_schedule(SchedulerConfig("linear", 0.0), STEPS)(0) == 1

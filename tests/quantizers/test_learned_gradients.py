"""Gradients of learned scales, offsets and clip values against numerical derivatives of the straight-through surrogate.

The surrogate holds the rounding residual r = q - clamp(v) fixed:

    y = (clamp(v) + r) * alpha + offset,  v = (x - offset) / alpha.

Its derivative inside the grid is q - v, outside it the end level.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lowbit.quantizers.functional import elastic_signed, elastic_unsigned, lsq, pact, seq
from lowbit.quantizers.functional.core import SMALLEST_SCALE

STEP = 1e-6
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Surrogate:
    """clamp bounds of v, and how many codes one unit of v holds (n of SEQ) with their shift."""

    low: float
    high: float
    n: float = 1.0
    shift: float = 0.0

    def clamped(self, x: Tensor, p: Parameters) -> Tensor:
        return ((x - p.get("offset", 0)) / p["alpha"]).clamp(self.low, self.high)

    def residual(self, x: Tensor, p: Parameters) -> Tensor:
        kept = self.clamped(x, p)
        return (torch.round(kept * self.n - self.shift) + self.shift) / self.n - kept

    def __call__(self, x: Tensor, p: Parameters, residual: Tensor) -> Tensor:
        return (self.clamped(x, p) + residual) * p["alpha"] + p.get("offset", 0)


def numerical(loss: Callable[[Parameters], Tensor], parameters: Parameters) -> Parameters:
    """Return central differences of a scalar loss by every element of every parameter."""
    result = {}
    for name, tensor in parameters.items():
        grad = torch.zeros_like(tensor)
        for index in range(tensor.numel()):
            shift = torch.zeros_like(tensor)
            shift.view(-1)[index] = STEP
            above, below = ({**parameters, name: tensor + s} for s in (shift, -shift))
            grad.view(-1)[index] = (loss(above) - loss(below)) / (2 * STEP)
        result[name] = grad
    return result


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def agree(function: Callable[..., Tensor], x: Tensor, surrogate: Surrogate, p: Parameters, multiplier: float) -> None:
    upstream, residual = sample(*x.shape, seed=9), surrogate.residual(x, p)
    expected = numerical(lambda q: (surrogate(x, q, residual) * upstream).sum(), p)
    learned = {name: tensor.clone().requires_grad_() for name, tensor in p.items()}
    latent = x.clone().requires_grad_()
    y = function(latent, **learned)
    torch.testing.assert_close(y.detach(), surrogate(x, p, residual))
    y.backward(upstream)
    for name, tensor in learned.items():
        factor = multiplier if name == "alpha" else 1.0
        assert tensor.grad.abs().max() > 0
        torch.testing.assert_close(tensor.grad, expected[name] * factor, rtol=1e-6, atol=1e-8)
    v = (x - p.get("offset", 0)) / p["alpha"]
    inside = (v >= surrogate.low) & (v <= surrogate.high)
    assert 0 < inside.sum() < inside.numel()
    assert torch.equal(latent.grad, upstream * inside)


def scales(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.linspace(low, high, math.prod(shape), dtype=torch.float64).reshape(shape)


SHAPES = pytest.mark.parametrize(
    ("shape", "groups"),
    [((6, 20), (1,)), ((6, 20), (6, 1)), ((3, 4, 5, 6), (1, 4, 1, 1)), ((4, 5, 6), (4, 1, 1)), ((5, 4, 6), (1, 4, 1))],
    ids=["tensor", "row", "operand heads", "weight heads", "column heads"],
)


@SHAPES
@pytest.mark.parametrize("grad_scale", ["lsq", "l1", "none"])
@pytest.mark.parametrize("with_offset", [False, True], ids=["", "offset"])
@pytest.mark.parametrize(("bits", "signed"), [(2, True), (3, True), (4, True), (1, False), (2, False), (4, False)])
def test_lsq(shape: tuple, groups: tuple, grad_scale: str, with_offset: bool, bits: int, signed: bool):
    x = sample(*shape)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    p = {"alpha": scales(groups, 0.8, 1.3) / high}
    if with_offset:
        p["offset"] = scales(groups, -0.4, 0.3)
    factor = {"lsq": x.numel() * high, "l1": x.abs().sum().item() * high, "none": 1.0}[grad_scale]

    def function(x: Tensor, **learned: Tensor) -> Tensor:
        return lsq(x, bits=bits, signed=signed, grad_scale=grad_scale, **learned)

    agree(function, x, Surrogate(low, high), p, 1 / math.sqrt(factor))


@pytest.mark.parametrize("granularity", ["row", "tensor"])
@pytest.mark.parametrize(
    ("bits", "n", "shift", "levels"), [(1.58, 1.5, 0, 1), (2, 2, 0.5, 1), (3, 4, 0.5, 3), (4, 8, 0.5, 7)]
)
def test_seq(granularity: str, bits: float, n: float, shift: float, levels: int):
    x = sample(6, 20)
    p = {"alpha": scales((6, 1) if granularity == "row" else (1,), 0.8, 1.4)}

    def function(w: Tensor, alpha: Tensor) -> Tensor:
        return seq(w, alpha, bits=bits, granularity=granularity)

    agree(function, x, Surrogate(-0.99, 0.99, n, shift), p, 1 / math.sqrt(x.numel() * levels))


@SHAPES
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_elastic_signed(shape: tuple, groups: tuple, bits: int):
    x, high = sample(*shape), 2 ** (bits - 1) - 1
    p = {"alpha": scales(groups, 0.8, 1.3) / high}
    factor = 1 / math.sqrt(x.numel() * high)
    agree(lambda x, alpha: elastic_signed(x, alpha, bits=bits), x, Surrogate(-high - 1, high), p, factor)


@SHAPES
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_elastic_unsigned(shape: tuple, groups: tuple, bits: int):
    x, high = sample(*shape), 2**bits - 1
    p = {"alpha": scales(groups, 0.8, 1.3) / high}

    def function(x: Tensor, alpha: Tensor) -> Tensor:
        return elastic_unsigned(x, alpha, bits=bits, subtract_minimum=False)

    agree(function, x, Surrogate(0, high), p, 1 / math.sqrt(x.numel() * high))


@pytest.mark.parametrize("bits", [2, 4])
def test_elastic_unsigned_above_its_minimum(bits: int):
    x, high = sample(6, 20), 2**bits - 1
    lowest = x.min()

    def above(x: Tensor, alpha: Tensor) -> Tensor:
        return elastic_unsigned(x + lowest, alpha, bits=bits) - lowest

    p = {"alpha": scales((1,), 2.0, 2.0) / high}
    agree(above, x - lowest, Surrogate(0, high), p, 1 / math.sqrt(x.numel() * high))


def test_one_signed_bit_learns_by_signs():
    x, g, alpha = sample(6, 20), sample(6, 20, seed=9), torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
    latent = x.clone().requires_grad_()
    elastic_signed(latent, alpha, bits=1).backward(g)
    torch.testing.assert_close(alpha.grad, (x.sign() * g).sum().reshape(1) / math.sqrt(x.numel()))
    assert torch.equal(latent.grad, g * (x.abs() <= 0.8))


@pytest.mark.parametrize("function", [elastic_signed, elastic_unsigned])
@pytest.mark.parametrize("bits", [1, 2])
def test_the_shift_gets_the_gradient_of_the_input(function: Callable[..., Tensor], bits: int):
    x, g, alpha = sample(6, 20), sample(6, 20, seed=9), torch.tensor([0.8], dtype=torch.float64)
    latent, shift = x.clone().requires_grad_(), scales((20,), -0.2, 0.2).requires_grad_()
    y = function(latent, alpha, bits=bits, shift=shift)
    assert torch.equal(y, function(x + shift.detach(), alpha, bits=bits))
    y.backward(g)
    torch.testing.assert_close(shift.grad, latent.grad.sum(0))


@pytest.mark.parametrize("symmetric", [True, False])
def test_pact_learns_both_ends_of_its_range(symmetric: bool):
    x, g = sample(6, 20), sample(6, 20, seed=9)
    p = {"low": torch.tensor([-0.9], dtype=torch.float64), "high": torch.tensor([1.1], dtype=torch.float64)}
    expected = numerical(lambda q: (x.clamp(q["low"], q["high"]) * g).sum(), p)
    latent, learned = x.clone().requires_grad_(), {k: v.clone().requires_grad_() for k, v in p.items()}
    pact(latent, learned["low"], learned["high"], bits=4, symmetric=symmetric).backward(g)
    for name, tensor in learned.items():
        torch.testing.assert_close(tensor.grad, expected[name], rtol=1e-6, atol=1e-8)
    assert torch.equal(latent.grad, g * ((x > -0.9) & (x < 1.1)))


def test_a_scale_below_its_floor_still_gets_a_gradient():
    for function in (
        lambda x, a: lsq(x, a, bits=2, grad_scale="none"),
        lambda x, a: elastic_signed(x, a, bits=2),
        lambda x, a: seq(x, a, bits=2, granularity="tensor"),
    ):
        alpha = torch.tensor([-1.0], requires_grad=True)
        y = function(torch.tensor([[0.5, 0.7]]), alpha)
        assert torch.equal(y.detach(), function(torch.tensor([[0.5, 0.7]]), torch.tensor([SMALLEST_SCALE])))
        (1e-8 * y).sum().backward()
        assert alpha.grad.item() > 0


# --- masks at the exact boundary ------------------------------------------------------------------------------------


def mask(function: Callable[[Tensor], Tensor], values: list[float], dtype: torch.dtype) -> list[float]:
    x = torch.tensor(values, dtype=dtype, requires_grad=True)
    function(x).sum().backward()
    return x.grad.tolist()


def around(edge: float, dtype: torch.dtype) -> list[float]:
    """Return the neighbour towards zero, the edge and the neighbour beyond it."""
    point = torch.tensor(edge, dtype=dtype)
    return [torch.nextafter(point, point * k).item() for k in (0, 1, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("edge", [-2.0, 1.0])
def test_lsq_and_elastic_grids_include_their_ends(edge: float, dtype: torch.dtype):
    alpha = torch.tensor([0.5], dtype=dtype)
    for function in (
        lambda x: lsq(x, alpha, bits=2, grad_scale="none"),
        lambda x: lsq(x + 0.25, alpha, bits=2, grad_scale="none", offset=alpha / 2),
        lambda x: elastic_signed(x, alpha, bits=2),
    ):
        assert mask(function, around(edge / 2, dtype), dtype)[:2] == [1.0, 1.0]
    assert mask(lambda x: lsq(x, alpha, bits=2, grad_scale="none"), around(edge / 2, dtype), dtype)[2] == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unsigned_and_one_bit_grids_include_their_ends(dtype: torch.dtype):
    alpha = torch.tensor([0.5], dtype=dtype)
    for function, edge in (
        (lambda x: lsq(x, alpha, bits=2, signed=False, grad_scale="none"), 1.5),
        (lambda x: elastic_unsigned(x, alpha, bits=1), 0.5),
        (lambda x: elastic_signed(x, alpha, bits=1), 0.5),
    ):
        assert mask(function, around(edge, dtype), dtype) == [1.0, 1.0, 0.0]
    for function in (
        lambda x: lsq(x, alpha, bits=2, signed=False, grad_scale="none"),
        lambda x: elastic_unsigned(x, alpha, bits=2, subtract_minimum=False),
    ):
        assert mask(function, [-1e-3, -0.0, 0.0, 1e-30], dtype) == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_lower_end_is_exact_to_the_last_bit(dtype: torch.dtype):
    alpha = torch.tensor([0.5], dtype=dtype)
    assert mask(lambda x: elastic_signed(x, alpha, bits=1), around(-0.5, dtype), dtype) == [1.0, 1.0, 0.0]
    for function in (
        lambda x: lsq(x, alpha, bits=2, signed=False, grad_scale="none"),
        lambda x: elastic_unsigned(x, alpha, bits=1),
    ):
        assert mask(function, [-1e-20, 0.0, 1e-20], dtype) == [0.0, 1.0, 1.0]


def test_pact_excludes_its_ends():
    low, high = torch.tensor(-0.5), torch.tensor(1.0)
    values = [*around(-0.5, torch.float32), *around(1.0, torch.float32)]
    assert mask(lambda x: pact(x, low, high, bits=4), values, torch.float32) == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def test_elements_at_the_ends_of_pact_teach_its_clip_values():
    low, high = (torch.tensor([v], requires_grad=True) for v in (-0.5, 1.0))
    x = torch.tensor([-0.5, 1.0, 0.0, -2.0, 3.0])
    pact(x, low, high, bits=4).backward(torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0]))
    assert (low.grad.item(), high.grad.item()) == (1001.0, 10010.0)


# --- published table, optimizer -------------------------------------------------------------------------------------


def test_the_published_table_of_bit():
    x = torch.tensor([-0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    for index, term in enumerate([0, -0.375, 0.375, 1]):
        latent, alpha = x.clone().requires_grad_(), torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
        y = elastic_unsigned(latent, alpha, bits=1)
        assert y.tolist() == pytest.approx([0, 0, 0.8, 0.8])
        y[index].backward()
        assert alpha.grad.item() * math.sqrt(4) == pytest.approx(term)
        assert latent.grad.sum().item() == [0, 1, 1, 0][index]
    latent = torch.tensor([-1, -0.3, 0, 0.5], dtype=torch.float64, requires_grad=True)
    y = elastic_signed(latent, torch.tensor([0.8], dtype=torch.float64), bits=1, sign_of_zero=0)
    assert y.tolist() == pytest.approx([-0.8, -0.8, 0, 0.8])
    y.sum().backward()
    assert latent.grad.tolist() == [0, 1, 1, 1]


def trajectory(grad_scale: str, optimizer: type[torch.optim.Optimizer], **settings: float) -> Tensor:
    w, target = sample(6, 20).requires_grad_(), sample(6, 20, seed=3)
    alpha = torch.tensor([0.9], dtype=torch.float64, requires_grad=True)
    updates, seen = optimizer([w, alpha], lr=1e-2, **settings), []
    for _ in range(40):
        updates.zero_grad()
        (lsq(w, alpha, bits=2, grad_scale=grad_scale) - target).square().sum().backward()
        updates.step()
        seen.append(alpha.detach().clone())
    return torch.cat(seen)


def test_adamw_cancels_the_multiplier_of_the_gradient():
    plain = trajectory("none", torch.optim.AdamW, eps=1e-30)
    assert (plain.diff().abs() > 1e-5).all()
    torch.testing.assert_close(trajectory("lsq", torch.optim.AdamW, eps=1e-30), plain, rtol=1e-9, atol=0)


def test_sgd_does_not():
    plain, scaled = (trajectory(g, torch.optim.SGD) for g in ("none", "lsq"))
    assert (plain - scaled).abs().max() > 1e-2

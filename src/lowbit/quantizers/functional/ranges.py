"""Grids over a range that is given: learned clipping (PACT), and static ranges kept by a running average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit.quantizers.estimators import ClippedSTE, Estimator, zero_outside_
from lowbit.quantizers.functional.core import Formula, fake_quantize
from lowbit.quantizers.functional.dynamic import MinMaxAsymmetric, MinMaxSymmetric, check_bits
from lowbit.quantizers.grid import HALF, Grid, reduction_dims

_TINY = 1e-30
_ROUNDING = 1 + 1e-6  # on the bounds: the end of the range divided by the step may exceed the number of steps


def pact(
    x: Tensor, low: Tensor, high: Tensor, *, bits: int, granularity: str = "tensor", symmetric: bool = True
) -> Tensor:
    """Clip to a learned range, then round to a dynamic grid of what is left.

    The grid is `minmax_symmetric`'s or `minmax_asymmetric`'s of the clipped tensor. Gradients: x where low < x < high;
    `high` the sum of dL/dy over x >= high, `low` that over x <= low. Other estimators are not defined: the mask is
    where the clip values learn.

    Args:
        x: weights or activations.
        low: learned scalar, the lower clip value.
        high: learned scalar, the upper one.
        bits: 2 to 16.
        granularity: of the dynamic grid.
        symmetric: which grid.

    Source: BinaryBERT (arXiv 2012.15701), published code, `uniform` quantizer; Choi et al. 2018 (PACT).

    >>> x = torch.tensor([-3.0, 0.4, 1.0, 2.0], requires_grad=True)
    >>> low, high = torch.tensor(-1.5, requires_grad=True), torch.tensor(1.5, requires_grad=True)
    >>> y = pact(x, low, high, bits=3)
    >>> y.tolist()
    [-1.5, 0.5, 1.0, 1.5]
    >>> y.sum().backward()
    >>> x.grad.tolist(), low.grad.item(), high.grad.item()
    ([0.0, 1.0, 1.0, 0.0], 1.0, 1.0)
    """
    formula = Pact(reduction_dims(x, granularity), bits, symmetric)
    if x.dtype in HALF:
        return _Pact.apply(x.float(), low, high, formula).to(x.dtype)  # type: ignore[no-any-return]
    return _Pact.apply(x, low, high, formula)  # type: ignore[no-any-return]


def static_range(
    x: Tensor, low: Tensor, high: Tensor, *, bits: int, symmetric: bool = False, estimator: Estimator | None = None
) -> Tensor:
    """Round to a grid over a fixed range; what lies outside is clipped.

    Asymmetric: 2^bits levels from low to high. Symmetric: n = 2^(bits-1) - 1 positive levels up to
    max(|low|, |high|). A range of one value gives that value. Gradient: identity inside the range, zero outside.

    Args:
        x: weights or activations.
        low: lower end of the range, broadcastable to x; no gradient.
        high: upper end.
        bits: 2 to 16.
        symmetric: which grid.
        estimator: in place of the mask.

    Source: static ranges of DeepSpeed Compression (`QuantAct`) and fairseq's scalar Quant-Noise, on grids that keep
    their own maximum.

    >>> x = torch.tensor([-2.0, 0.1, 0.4, 1.0], requires_grad=True)
    >>> y = static_range(x, torch.tensor(-1.0), torch.tensor(0.5), bits=2)
    >>> y.tolist()
    [-1.0, 0.0, 0.5, 0.5]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0, 1.0, 0.0]
    """
    return fake_quantize(x, StaticRange(bits, symmetric), estimator, scale=low.detach(), offset=high.detach())


@dataclass(frozen=True)
class StaticRange(Formula):
    """`static_range`; low and high travel in the places of scale and offset."""

    bits: int
    symmetric: bool = False

    def __post_init__(self) -> None:
        check_bits(self.bits, minimum=2)

    @property
    def published(self) -> Estimator:
        """The mask of the range."""
        return ClippedSTE()

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Clamp and round."""
        assert scale is not None
        assert offset is not None
        low, high = scale, offset
        if self.symmetric:
            levels = 2 ** (self.bits - 1) - 1
            limit = torch.maximum(low.abs(), high.abs())
            step = torch.where(limit > _TINY, limit / levels, 1.0)
            y = (x / step).round_().clamp_(-levels, levels).mul_(limit / levels)
            return y, Grid(step, -levels * _ROUNDING, levels * _ROUNDING)
        levels = 2**self.bits - 1
        step = torch.where(high > low, (high - low) / levels, 1.0)
        y = (x - low).div_(step).round_().clamp_(0, levels).mul_((high - low) / levels).add_(low)
        return y, Grid(step, 0, levels * _ROUNDING, offset=low)


@dataclass(frozen=True)
class Pact(Formula):
    """`pact`: the dynamic grid of a clipped tensor; the clip values travel in the places of scale and offset."""

    dims: tuple[int, ...]
    bits: int
    symmetric: bool = True

    def __post_init__(self) -> None:
        check_bits(self.bits, minimum=2)

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Clip, then round to a grid of what is left."""
        formula = (MinMaxSymmetric if self.symmetric else MinMaxAsymmetric)(self.dims, self.bits)
        return formula.quantize(torch.clamp(x, scale, offset), None, None)


class _Pact(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, formula: Pact) -> Tensor:
        ctx.save_for_backward(x, low, high)
        y, _ = formula.quantize(x, low, high)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, low, high = ctx.saved_tensors
        below = zero_outside_(grad.clone(), x <= low).sum_to_size(low.shape)
        above = zero_outside_(grad.clone(), x >= high).sum_to_size(high.shape)
        inside = (x > low).logical_and_(x < high)  # before the clone: both masks and it would be too much at a time
        input_grad = zero_outside_(grad.clone(), inside)
        return input_grad, below, above, None

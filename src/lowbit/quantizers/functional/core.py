"""The one autograd function: a formula puts a tensor on a grid, an estimator and LSQ's rule give the gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowbit.quantizers.estimators import STE, Estimator, zero_outside_
from lowbit.quantizers.grid import HALF, Grid

SMALLEST_SCALE = 1e-20
"""Floor of learned scales: far below those of any model, so that formulas scale with their input, and large enough
that neither the quotient nor the gradient of a scale leaves float32."""


@dataclass(frozen=True)
class Formula(ABC):
    """One published forward pass: tensor in, tensor on a grid out.

    Attributes:
        uniform: whether thresholds lie half-way between levels; estimators that read distances need it.
        sign_scale: the scale's gradient is sum(g * level), without the term of the distance (1-bit sign quantizers).
    """

    uniform: ClassVar[bool] = True

    @property
    def published(self) -> Estimator:
        """The published gradient of the input."""
        return STE()

    @property
    def sign_scale(self) -> bool:
        """Whether the scale's gradient leaves out the distance to the grid."""
        return False

    @abstractmethod
    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Return x on the grid, in a new tensor, and the grid. Runs without autograd."""

    def positive(self, scale: Tensor) -> Tensor:
        """Return the scale with the formula's floor, so that nothing divides by zero or a negative number."""
        return scale

    def scale_multiplier(self, x: Tensor) -> Tensor | float:
        """Return the factor on the scale's gradient."""
        return 1.0


def fake_quantize(
    x: Tensor,
    formula: Formula,
    estimator: Estimator | None = None,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Quantize `x` by a formula, under its published gradient or another estimator.

    Half-precision inputs are computed in float32, so that their scales are float32.

    Raises:
        ValueError: the estimator is not defined for the formula.
    """
    chosen = formula.published if estimator is None else estimator
    if chosen.uniform_only and not formula.uniform:
        raise ValueError(
            f"{type(chosen).__name__} needs thresholds half-way between the levels, which "
            f"{type(formula).__name__} does not have: use STE, ClippedSTE or ValueClippedSTE"
        )
    if x.dtype in HALF:
        return _FakeQuantize.apply(x.float(), scale, offset, formula, chosen).to(x.dtype)  # type: ignore[no-any-return]
    return _FakeQuantize.apply(x, scale, offset, formula, chosen)  # type: ignore[no-any-return]


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor | None, offset: Tensor | None, formula: Formula, estimator: Estimator
    ) -> Tensor:
        y, grid = formula.quantize(x, scale, offset)
        learned = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.formula, ctx.estimator = formula, estimator
        ctx.limits = (grid.low, grid.high, grid.shift)
        if learned or "y" in estimator.reads:
            ctx.save_for_backward(x, y, grid.step, grid.offset, grid.origin, scale, offset)
        elif "x" in estimator.reads:
            ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        formula, estimator, saved = ctx.formula, ctx.estimator, ctx.saved_tensors
        if len(saved) < 2:
            x = saved[0] if saved else grad
            return estimator.input_gradient(grad, x, x, None, None), None, None, None, None
        x, y, step, level_offset, origin, scale, offset = saved
        low, high, shift = ctx.limits
        grid = Grid(step, low, high, shift, level_offset, origin)
        inside = grid.inside(x)
        scale_grad = offset_grad = None
        # The temporaries of each line are freed before the next: at most one float tensor beside the mask.
        if ctx.needs_input_grad[1]:
            scale_grad = _scale_gradient(grad, x, y, grid, inside, formula, scale)
        if ctx.needs_input_grad[2]:
            offset_grad = _offset_gradient(grad, inside, offset)
        input_grad = estimator.input_gradient(grad, x, y, grid, inside) if ctx.needs_input_grad[0] else None
        return input_grad, scale_grad, offset_grad, None, None


def _offset_gradient(grad: Tensor, inside: Tensor | None, offset: Tensor) -> Tensor:
    """Return the sum of dL/dy over what the grid clips."""
    if inside is None:
        return torch.zeros_like(offset)
    clipped = zero_outside_(grad.clone(), inside.logical_not_()).sum_to_size(offset.shape)
    inside.logical_not_()  # the caller's mask again: a second one would be a quarter of the memory of a gradient
    return clipped


def _scale_gradient(
    grad: Tensor, x: Tensor, y: Tensor, grid: Grid, inside: Tensor | None, formula: Formula, scale: Tensor
) -> Tensor:
    """Return g * sum(dL/dy * (level - v * inside)), level and v in units of the scale (LSQ, equation 3)."""
    if formula.sign_scale:
        terms = grad * y
    else:
        distance = x.clone() if grid.zero is None else x - grid.zero
        if inside is not None:
            zero_outside_(distance, inside)
        distance.sub_(y)
        if grid.offset is not None:
            distance.add_(grid.offset)
        terms = distance.mul_(grad).neg_()
    floored = formula.positive(scale)
    return (terms.sum_to_size(scale.shape) / floored).mul_(formula.scale_multiplier(x))

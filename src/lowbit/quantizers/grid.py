"""Which elements share a scale, and the grid that a quantizer has put a tensor on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
"""Types whose inputs are quantized in float32 and whose models keep wider scales."""
Granularity = Literal["tensor", "row", "token", "head"]


def reduction_dims(x: Tensor, granularity: str) -> tuple[int, ...]:
    """Return the dimensions over which one scale is shared.

    `tensor`: all; `row`: all but the first; `token`: the last; `head`: the last two of a BHLD tensor.

    Raises:
        ValueError: unknown granularity, or one that the tensor's shape does not have.
    """
    if granularity == "tensor":
        return tuple(range(x.ndim))
    if granularity == "row" and x.ndim >= 2:
        return tuple(range(1, x.ndim))
    if granularity == "token":
        return (x.ndim - 1,)
    if granularity == "head" and x.ndim == 4:
        return (2, 3)
    allowed = ", ".join(get_args(Granularity))
    raise ValueError(
        f"granularity={granularity!r} does not fit a tensor of shape {tuple(x.shape)}: allowed are {allowed}; "
        "'row' needs two dimensions or more, 'head' a 4-D tensor (batch, heads, tokens, width)"
    )


@dataclass(frozen=True)
class Grid:
    """The levels of one fake quantization: y = (code + shift) * step + offset.

    An element's coordinate is t = (x - origin) / step - shift, in units of one step; a uniform quantizer rounds it to
    its code, so thresholds lie at half-integers.

    Attributes:
        step: distance of two levels, positive, broadcastable to x.
        low, high: closed bounds of the coordinate inside which the straight-through gradient passes.
        shift: 0 for a grid with a level at the offset, 0.5 for one whose levels straddle it.
        offset: of the levels; None for 0.
        origin: of the input, where it differs from the offset (centred binarization); None for the offset.
    """

    step: Tensor
    low: float = -math.inf
    high: float = math.inf
    shift: float = 0.0
    offset: Tensor | None = None
    origin: Tensor | None = None

    @property
    def zero(self) -> Tensor | None:
        """The input that has the coordinate -shift; None for 0."""
        return self.offset if self.origin is None else self.origin

    def coordinate(self, x: Tensor) -> Tensor:
        """Return t of every element, in a new tensor."""
        t = self._in_steps(x)
        return t.sub_(self.shift) if self.shift else t

    def codes(self, y: Tensor) -> Tensor:
        """Return the integer codes (as floats) of a quantized tensor."""
        codes = y / self.step if self.offset is None else (y - self.offset).div_(self.step)
        return codes.sub_(self.shift).round_()

    def levels(self, codes: Tensor) -> Tensor:
        """Return the level of each code, or the point of the line through them of each fraction."""
        levels = (codes + self.shift if self.shift else codes) * self.step
        return levels if self.offset is None else levels + self.offset

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """Return t - q in a new tensor, at most half a step: beyond lies what is outside, or rounding."""
        residual = torch.sub(x, y)
        if self.origin is not None:
            residual.sub_(self.origin if self.offset is None else self.origin - self.offset)
        return residual.div_(self.step).clamp_(-0.5, 0.5)

    def inside(self, x: Tensor) -> Tensor | None:
        """Return the mask low <= t <= high, or None where nothing can lie outside."""
        if math.isinf(self.low) and math.isinf(self.high):
            return None
        # Compared without the shift, and without centring: additions would round a bound's last bits away.
        t = self._in_steps(x)
        return t.masked_fill_(t < self.low + self.shift, math.inf) <= self.high + self.shift

    def _in_steps(self, x: Tensor) -> Tensor:
        return x / self.step if self.zero is None else (x - self.zero).div_(self.step)

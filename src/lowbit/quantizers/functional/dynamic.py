"""Dynamic grids: the range is read from the tensor at every call and carries no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.quantizers.estimators import STE, Estimator, ValueClippedSTE
from lowbit.quantizers.functional.core import Formula, fake_quantize
from lowbit.quantizers.grid import Grid, reduction_dims

_RANGE_ADDED = 1e-8  # to the range by the published asymmetric quantizer, whatever the size of the range
_SHARE_ADDED = 1e-6  # of the range, at most
_TINY = 1e-30  # at or below it the scale would overflow float32; such a tensor becomes zero
_SLACK = 0.25  # of a step: rounding must not put the extreme itself outside its own grid


def minmax_symmetric(
    x: Tensor, *, bits: int, granularity: str, clip: float | None = None, estimator: Estimator | None = None
) -> Tensor:
    """Round to a dynamic grid that is symmetric around zero, with n = 2^(bits-1) - 1 positive levels.

    s = n / max|clamp(x)|, y = round(clamp(x) * s) / s, ties to even. An all-zero tensor stays zero.
    Published gradient: identity inside (-clip, clip), zero outside, equality included.

    Source: `SymQuantizer` of TernaryBERT (arXiv 2009.12812) and Teacher Intervention (arXiv 2302.11812).

    >>> x = torch.tensor([-3.0, 0.3, 1.0, 2.0], requires_grad=True)
    >>> y = minmax_symmetric(x, bits=2, granularity="tensor", clip=2.5)
    >>> y.tolist()
    [-2.5, 0.0, 0.0, 2.5]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0, 1.0, 1.0]
    """
    return fake_quantize(x, MinMaxSymmetric(reduction_dims(x, granularity), bits, clip), estimator)


def minmax_asymmetric(
    x: Tensor, *, bits: int, granularity: str, clip: float | None = None, estimator: Estimator | None = None
) -> Tensor:
    """Round to a dynamic grid of 2^bits levels from the minimum to the maximum.

    With c = clamp(x), lo = min c, r = max c - lo + 1e-8, n = 2^bits - 1: y = round((c - lo) / r * n) / n * r + lo.
    In place of 1e-8, ranges below 0.01 get a millionth of themselves. A constant tensor stays what it is. Gradient as
    `minmax_symmetric`.

    Source: `AsymQuantizer` of TernaryBERT (arXiv 2009.12812), the activation quantizer of the paper.

    >>> x = torch.tensor([-1.0, 0.2, 0.6, 2.0], requires_grad=True)
    >>> y = minmax_asymmetric(x, bits=2, granularity="tensor", clip=2.0)
    >>> [round(v, 4) for v in y.tolist()]
    [-1.0, 0.0, 1.0, 2.0]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [1.0, 1.0, 1.0, 0.0]
    """
    return fake_quantize(x, MinMaxAsymmetric(reduction_dims(x, granularity), bits, clip), estimator)


def xtc_symmetric(x: Tensor, *, bits: int, granularity: str, estimator: Estimator | None = None) -> Tensor:
    """Round to XTC's dynamic grid: step 2 max|x| / 2^bits, codes -2^(bits-1) .. 2^(bits-1) - 1.

    The positive maximum is clipped by one step (defect D2 of the published grid; `minmax_symmetric` keeps it).
    Published gradient: identity everywhere. An all-zero tensor stays zero.

    Source: `SymQuantizer` of DeepSpeed Compression, used by XTC (arXiv 2206.01859).

    >>> x = torch.tensor([1.0, -1.0, 0.5, 0.1], requires_grad=True)
    >>> y = xtc_symmetric(x, bits=4, granularity="tensor")
    >>> y.tolist()
    [0.875, -1.0, 0.5, 0.125]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    return fake_quantize(x, XtcSymmetric(reduction_dims(x, granularity), bits), estimator)


@dataclass(frozen=True)
class _MinMax(Formula):
    dims: tuple[int, ...]
    bits: int
    clip: float | None = None
    fewest_bits: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_bits(self.bits, minimum=self.fewest_bits)

    @property
    def published(self) -> Estimator:
        """Identity, inside the clip if there is one."""
        return STE() if self.clip is None else ValueClippedSTE(self.clip)


@dataclass(frozen=True)
class MinMaxSymmetric(_MinMax):
    """`minmax_symmetric`."""

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Multiply by levels / limit and divide by it again, in the published order."""
        levels = 2 ** (self.bits - 1) - 1
        limit = largest_magnitude(x, self.dims)
        if self.clip is not None:
            limit = limit.clamp(max=self.clip)
        inverse = torch.where(limit > _TINY, levels / limit, 1.0)
        # Clamping the codes equals clamping the input first: where the clip is active it is the scale's limit.
        y = (x * inverse).round_().clamp_(-levels, levels).div_(inverse)
        return y, Grid(1 / inverse, -levels - _SLACK, levels + _SLACK)


@dataclass(frozen=True)
class MinMaxAsymmetric(_MinMax):
    """`minmax_asymmetric`."""

    fewest_bits: ClassVar[int] = 1

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Map the range to 0 .. levels and back."""
        levels = 2**self.bits - 1
        low, high = minimum_and_maximum(x, self.dims)
        if self.clip is not None:
            low, high = low.clamp(-self.clip, self.clip), high.clamp(-self.clip, self.clip)
        width = high - low
        width += torch.where(width > _TINY, width * _SHARE_ADDED, _RANGE_ADDED).clamp_(max=_RANGE_ADDED)
        codes = torch.clamp(x, low, high).sub_(low).div_(width).mul_(levels).round_()
        y = codes.div_(levels).mul_(width).add_(low)
        return y, Grid(width / levels, -_SLACK, levels + _SLACK, offset=low)


@dataclass(frozen=True)
class XtcSymmetric(_MinMax):
    """`xtc_symmetric`."""

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Round to multiples of 2 max / 2^bits."""
        half = 2 ** (self.bits - 1)
        limit = largest_magnitude(x, self.dims)
        step = torch.where(limit > _TINY, limit / half, 1.0)
        y = (x / step).round_().clamp_(-half, half - 1).mul_(step)
        return y, Grid(step, -half - _SLACK, half - 1)


def check_bits(bits: float, *, minimum: int, maximum: int = 16) -> None:
    """Refuse a width that the grid does not have.

    Raises:
        ValueError: outside minimum .. maximum, or not a whole number.
    """
    if not minimum <= bits <= maximum or bits != int(bits):
        raise ValueError(f"bits={bits:g}: this grid takes {minimum} to {maximum} bits; ternary weights are kind 'twn'")


def largest_magnitude(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return max|x| over `dims`, kept broadcastable, without a tensor of magnitudes."""
    low, high = minimum_and_maximum(x, dims)
    return torch.maximum(-low, high)


def minimum_and_maximum(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum over `dims`, kept broadcastable."""
    if len(dims) == x.ndim:
        low, high = torch.aminmax(x)
        return low.reshape([1] * x.ndim), high.reshape([1] * x.ndim)
    if len(dims) == 1:
        low, high = torch.aminmax(x, dim=dims[0], keepdim=True)
        return low, high
    return x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)

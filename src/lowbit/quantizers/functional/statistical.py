"""Weight quantizers whose scale is a statistic of the weights: TWN, BWN, StatsQ, BitNet b1.58."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.quantizers.estimators import STE, Estimator, ValueClippedSTE, zero_outside_
from lowbit.quantizers.functional.core import Formula, fake_quantize
from lowbit.quantizers.functional.dynamic import check_bits
from lowbit.quantizers.grid import Grid, reduction_dims

_TINY = 1e-30  # scales at or below it belong to all-zero groups


def twn_ternarize(
    w: Tensor,
    *,
    granularity: str,
    threshold: float = 0.7,
    clip: float | None = None,
    estimator: Estimator | None = None,
) -> Tensor:
    """Ternarize weights to {-alpha, 0, +alpha} by the Ternary Weight Networks rule.

    With c = clamp(w, -clip, clip): Delta = threshold * mean|c|, alpha = mean of |c| over |c| > Delta.
    An all-zero tensor or row stays zero. Published gradient: identity inside (-clip, clip), zero outside.

    Source: Li et al. 2016 (arXiv 1605.04711), equations 5-6; `TwnQuantizer` of TernaryBERT (arXiv 2009.12812).

    >>> w = torch.tensor([[-0.9, 0.1, 0.7, -0.2], [3.0, -0.5, 0.0, 0.1]], requires_grad=True)
    >>> y = twn_ternarize(w, granularity="row", clip=2.5)
    >>> [[round(v, 4) for v in row] for row in y.tolist()]
    [[-0.8, 0.0, 0.8, 0.0], [2.5, 0.0, 0.0, 0.0]]
    >>> y.sum().backward()
    >>> w.grad.tolist()
    [[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]]
    """
    return fake_quantize(w, Twn(reduction_dims(w, granularity), threshold, clip), estimator)


def bwn_binarize(
    w: Tensor, *, granularity: str, center: bool = False, sign_of_zero: int = 1, estimator: Estimator | None = None
) -> Tensor:
    """Binarize weights to {-alpha, +alpha}, alpha = mean|w|: alpha * sign(w), or alpha * sign(w - mean(w)) if centred.

    The mean that `center` subtracts is that of the whole tensor, whatever the granularity; the scale is that of the
    uncentred weights. sign(0) is +1; `sign_of_zero=0` gives 0, as published. Published gradient: identity.

    Source: Rastegari et al. 2016 (BWN); XTC (arXiv 2206.01859); centred: BiT (arXiv 2205.13016), published code.

    >>> w = torch.tensor([0.1, -0.2, 0.3, -0.4], requires_grad=True)
    >>> y = bwn_binarize(w, granularity="tensor")
    >>> y.tolist()
    [0.25, -0.25, 0.25, -0.25]
    >>> y.sum().backward()
    >>> w.grad.tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    return fake_quantize(w, Bwn(reduction_dims(w, granularity), center, sign_of_zero), estimator)


def statsq(w: Tensor, *, bits: int, granularity: str = "row", estimator: Estimator | None = None) -> Tensor:
    """Round to a symmetric grid without zero whose scale is S = 2 mean|w|: 2^bits levels, (k + 1/2) S / 2^(bits-1).

    Published gradient: identity, without a clip mask; none through S. An all-zero row stays zero.

    Source: OFQ (Liu et al., ICML 2023, arXiv 2302.02210), StatsQ.

    >>> w = torch.tensor([[0.6, -0.4, 0.1, -0.9]], requires_grad=True)
    >>> y = statsq(w, bits=2)
    >>> y.tolist()
    [[0.75, -0.25, 0.25, -0.75]]
    >>> y.sum().backward()
    >>> w.grad.tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """
    return fake_quantize(w, StatsQ(reduction_dims(w, granularity), bits), estimator)


def bitnet_ternarize(w: Tensor, *, granularity: str = "tensor", estimator: Estimator | None = None) -> Tensor:
    """Ternarize weights to gamma * clamp(round(w / gamma), -1, 1), gamma = mean|w|. An all-zero tensor stays zero.

    Published gradient: identity, without a clip mask.

    Source: BitNet b1.58 (arXiv 2402.17764), equations 1-3, without the 1e-5 that is added to gamma there.

    >>> w = torch.tensor([0.1, 0.2, 0.3, -1.0], requires_grad=True)
    >>> y = bitnet_ternarize(w, granularity="tensor")
    >>> [round(v, 4) for v in y.tolist()]
    [0.0, 0.0, 0.4, -0.4]
    >>> y.sum().backward()
    >>> w.grad.tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    return fake_quantize(w, BitNet(reduction_dims(w, granularity)), estimator)


@dataclass(frozen=True)
class Twn(Formula):
    """`twn_ternarize`; its thresholds lie at 0.7 mean|w|, not half-way between the levels."""

    dims: tuple[int, ...]
    threshold: float = 0.7
    clip: float | None = None
    uniform: ClassVar[bool] = False

    @property
    def published(self) -> Estimator:
        """Identity, inside the clip if there is one."""
        return STE() if self.clip is None else ValueClippedSTE(self.clip)

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Compute threshold, codes and scale."""
        magnitude = x.abs() if self.clip is None else x.abs().clamp_(max=self.clip)
        delta = magnitude.mean(self.dims, keepdim=True).mul_(self.threshold)
        kept = magnitude > delta
        alpha = zero_outside_(magnitude, kept).sum(self.dims, keepdim=True)
        del magnitude  # before the sum of a boolean mask, which copies it to integers on the CPU
        alpha.div_(kept.sum(self.dims, keepdim=True).clamp_(min=1))
        del kept
        # Codes as bytes: a quarter of the memory traffic of float masks, and no negative zeros in the output.
        positive, negative = x > delta, x < -delta
        codes = positive.view(torch.int8).sub_(negative.view(torch.int8))
        del positive, negative
        return codes * alpha, Grid(_nonzero(alpha), -1, 1)


@dataclass(frozen=True)
class Bwn(Formula):
    """`bwn_binarize`: two levels, so a uniform grid of step 2 alpha whose threshold lies half-way."""

    dims: tuple[int, ...]
    center: bool = False
    sign_of_zero: int = 1

    def __post_init__(self) -> None:
        check_sign_of_zero(self.sign_of_zero)

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Multiply the sign by the mean magnitude."""
        alpha = mean_magnitude(x, self.dims)
        mean = x.mean() if self.center else None
        y = signed(x, alpha, mean, self.sign_of_zero)
        origin = None if mean is None else mean.reshape([1] * x.ndim)
        return y, Grid(_nonzero(2 * alpha), -1, 0, shift=0.5, origin=origin)


@dataclass(frozen=True)
class StatsQ(Formula):
    """`statsq`."""

    dims: tuple[int, ...]
    bits: int

    def __post_init__(self) -> None:
        check_bits(self.bits, minimum=2, maximum=8)

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Round half a step off the integers."""
        half = 2 ** (self.bits - 1)
        statistic = 2 * mean_magnitude(x, self.dims)
        divisor = _nonzero(statistic)
        codes = (x / divisor).clamp_(-1, 1 - 1e-6).mul_(half).sub_(0.5).round_()
        y = codes.add_(0.5).div_(half).mul_(statistic)
        return y, Grid(divisor / half, -half - 0.5, half - 0.5, shift=0.5)


@dataclass(frozen=True)
class BitNet(Formula):
    """`bitnet_ternarize`."""

    dims: tuple[int, ...]

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Round to -1, 0, 1 times the mean magnitude."""
        gamma = _nonzero(mean_magnitude(x, self.dims))
        return (x / gamma).round_().clamp_(-1, 1).mul_(gamma), Grid(gamma, -1, 1)


def mean_magnitude(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return mean|x| over `dims`, kept broadcastable, without a tensor of magnitudes."""
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    return torch.linalg.vector_norm(x, 1, dim=dims, keepdim=True).div_(count)  # type: ignore[no-any-return]


def signed(x: Tensor, alpha: Tensor, threshold: Tensor | None, sign_of_zero: int) -> Tensor:
    """Return alpha * sign(x - threshold)."""
    if sign_of_zero == 0:
        return (torch.sign(x) if threshold is None else (x - threshold).sign_()).mul_(alpha)
    return torch.where(x >= (0 if threshold is None else threshold), alpha, -alpha)


def check_sign_of_zero(value: int) -> None:
    """Refuse anything but 1 and 0.

    Raises:
        ValueError: another value.
    """
    if value not in (0, 1):
        raise ValueError(f"sign_of_zero={value}: allowed are 1, and 0 as in the published code")


def _nonzero(step: Tensor) -> Tensor:
    return torch.where(step > _TINY, step, 1.0)

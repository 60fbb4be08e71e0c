"""Quantizers with a learned step size: LSQ, LSQ+, ParetoQ's SEQ and BiT's elastic grids.

All share LSQ's gradient of the scale, sum of dL/dy * (level - v * inside), with v = x / alpha: what straight-through
estimation gives when alpha is a parameter. `alpha` broadcasts to the input; its gradient has its shape.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.quantizers.estimators import ClippedSTE, Estimator
from lowbit.quantizers.functional.core import SMALLEST_SCALE, Formula, fake_quantize
from lowbit.quantizers.functional.dynamic import check_bits
from lowbit.quantizers.functional.statistical import check_sign_of_zero, signed
from lowbit.quantizers.grid import Grid

GRAD_SCALES = ("lsq", "l1", "vvtq_act", "none")
SEQ_BITS = (1.58, 2, 3, 4)


def lsq(
    x: Tensor,
    alpha: Tensor,
    *,
    bits: int,
    signed: bool = True,
    offset: Tensor | None = None,
    grad_scale: str,
    estimator: Estimator | None = None,
) -> Tensor:
    """Learned step size quantization: y = round(clamp((x - offset) / alpha, Qn, Qp)) * alpha + offset.

    Signed: Qn = -2^(bits-1), Qp = 2^(bits-1) - 1; unsigned: 0 and 2^bits - 1. With an offset this is LSQ+; its
    gradient is the sum over clipped elements. alpha counts as at least `SMALLEST_SCALE` (published code: 1e-4).
    Published gradient of x: identity inside the grid, zero outside.

    Args:
        x: weights or activations.
        alpha: step size, broadcastable to x.
        bits: 2 to 8, or 1 unsigned.
        signed: whether the grid has negative levels.
        offset: learned offset, broadcastable to x.
        grad_scale: factor on alpha's gradient: `lsq` 1/sqrt(numel Qp), `l1` 1/sqrt(Qp sum|x|) (published code of
            variation-aware quantization), `vvtq_act` 1/(sqrt(numel) Qp) (its activations), `none` 1. Adam cancels any
            constant.
        estimator: in place of the published gradient of x.

    Source: Esser et al. 2020 (arXiv 1902.08153), equations 1-5; LSQ+: Bhalgat et al. 2020 (arXiv 2004.09576).

    >>> w = torch.tensor([-3.0, 0.3, 0.6], requires_grad=True)
    >>> alpha = torch.tensor([1.0], requires_grad=True)
    >>> y = lsq(w, alpha, bits=2, grad_scale="none")
    >>> y.tolist()
    [-2.0, 0.0, 1.0]
    >>> y.sum().backward()
    >>> w.grad.tolist(), [round(g, 4) for g in alpha.grad.tolist()]  # -2, 0 - 0.3 and 1 - 0.6
    ([0.0, 1.0, 1.0], [-1.9])
    """
    return fake_quantize(x, Lsq(bits, signed, grad_scale), estimator, alpha, offset)


def seq(
    w: Tensor, alpha: Tensor, *, bits: float, granularity: str = "row", estimator: Estimator | None = None
) -> Tensor:
    """Stretched elastic quantization: levels (k + shift) alpha / n, symmetric around zero; alpha is the range.

    n = 1.5 and shift 0 at 1.58 bits (ternary), else n = 2^(bits-1) and shift 1/2. v = w / alpha is clamped to
    [-0.99, 0.99]. alpha counts as at least `SMALLEST_SCALE` (published code: 1e-5); its gradient carries
    1/sqrt(numel Qp), and outside the range the true end level (the published code takes 1 instead of 2/3 at 1.58 bits).
    Published gradient of w: identity where |v| <= 0.99.

    Args:
        w: weights.
        alpha: range, one per row (shape rows x 1) or one for the tensor.
        bits: 1.58, 2, 3 or 4.
        granularity: what alpha belongs to; checked against its number of elements.
        estimator: in place of the published gradient of w.

    Raises:
        ValueError: another width, or an alpha that does not fit the granularity.

    Source: ParetoQ (arXiv 2502.02631), section 3; its code, `StretchedElasticQuant`.

    >>> w = torch.tensor([[1.0, -0.2, 0.6, 0.1]], requires_grad=True)
    >>> alpha = torch.tensor([[1.0]], requires_grad=True)
    >>> y = seq(w, alpha, bits=2)
    >>> y.tolist()
    [[0.75, -0.25, 0.75, 0.25]]
    >>> y.sum().backward()
    >>> w.grad.tolist(), [round(g, 4) for g in alpha.grad[0].tolist()]  # (0.75 - 0.05 + 0.15 + 0.15) / sqrt(4)
    ([[0.0, 1.0, 1.0, 1.0]], [0.5])
    """
    groups = {"tensor": 1, "row": w.shape[0]}.get(granularity)
    if groups is None or alpha.numel() != groups:
        raise ValueError(
            f"alpha has {alpha.numel()} elements, weights of shape {tuple(w.shape)} with granularity={granularity!r} "
            f"need {groups if groups is not None else 'granularity tensor or row'}"
        )
    return fake_quantize(w, Seq(bits), estimator, alpha)


def elastic_signed(
    x: Tensor,
    alpha: Tensor,
    *,
    bits: int,
    shift: Tensor | None = None,
    sign_of_zero: int = 1,
    estimator: Estimator | None = None,
) -> Tensor:
    """BiT's grid for activations of both signs: alpha sign(x) at 1 bit, else alpha clamp(round(x / alpha), Qn, Qp).

    alpha counts as at least `SMALLEST_SCALE` (published code: 1e-5); its gradient carries 1/sqrt(numel Qp) and at 1 bit
    is the sum of dL/dy sign(x). sign(0) is +1; `sign_of_zero=0` gives 0 as in the published code. Published gradient
    of x: identity where Qn <= x / alpha <= Qp (1 bit: |x| <= alpha).

    Args:
        x: activations.
        alpha: learned step size.
        bits: 1 to 8.
        shift: learned vector added to x first (BiT's move layers), broadcastable to x.
        sign_of_zero: 1, or 0.
        estimator: in place of the published gradient of x.

    Source: BiT (arXiv 2205.13016), section 3.2; its code, `ElasticQuantBinarizerSigned`.

    >>> x = torch.tensor([-1.0, -0.3, 0.0, 0.5], requires_grad=True)
    >>> alpha = torch.tensor([0.8], requires_grad=True)
    >>> y = elastic_signed(x, alpha, bits=1)
    >>> [round(v, 4) for v in y.tolist()]
    [-0.8, -0.8, 0.8, 0.8]
    >>> y.sum().backward()
    >>> x.grad.tolist(), alpha.grad.tolist()
    ([0.0, 1.0, 1.0, 1.0], [0.0])
    """
    x = x if shift is None else x + shift
    return fake_quantize(x, ElasticSigned(bits, sign_of_zero), estimator, alpha)


def elastic_unsigned(
    x: Tensor,
    alpha: Tensor,
    *,
    bits: int,
    shift: Tensor | None = None,
    subtract_minimum: bool = True,
    estimator: Estimator | None = None,
) -> Tensor:
    """BiT's grid for non-negative activations: alpha clamp(round(x / alpha), 0, 2^bits - 1).

    Above 1 bit the published code first subtracts the tensor's minimum and adds it back, which makes the result depend
    on the batch; `subtract_minimum=False` does not. alpha counts as at least `SMALLEST_SCALE` (published code: 1e-5);
    its gradient is LSQ's with 1/sqrt(numel Qp). Published gradient of x: identity where 0 <= x / alpha <= Qp.

    Args:
        x: activations, such as attention maps.
        alpha: learned step size.
        bits: 1 to 8.
        shift: learned vector added to x first, broadcastable to x.
        subtract_minimum: as published, above 1 bit.
        estimator: in place of the published gradient of x.

    Source: BiT (arXiv 2205.13016), section 3.2; its code, `ElasticQuantBinarizerUnsigned`.

    >>> x = torch.tensor([0.0, 0.3, 0.5, 0.9], requires_grad=True)
    >>> alpha = torch.tensor([0.8], requires_grad=True)
    >>> y = elastic_unsigned(x, alpha, bits=1)
    >>> [round(v, 4) for v in y.tolist()]
    [0.0, 0.0, 0.8, 0.8]
    >>> y.sum().backward()  # alpha: (0 - 0.375 + 0.375 + 1) / sqrt(4)
    >>> x.grad.tolist(), [round(g, 4) for g in alpha.grad.tolist()]
    ([1.0, 1.0, 1.0, 0.0], [0.5])
    """
    x = x if shift is None else x + shift
    return fake_quantize(x, ElasticUnsigned(bits, subtract_minimum), estimator, alpha)


@dataclass(frozen=True)
class Learned(Formula):
    """What the formulas with a learned scale share: a floor, a gradient multiplier, the mask of the grid.

    Attributes:
        bits: width.
        count: elements of the whole tensor where only some of its rows are quantized; None for those of the input.
    """

    bits: float
    count: int | None = field(default=None, kw_only=True)

    @property
    def published(self) -> Estimator:
        """The mask of the grid."""
        return ClippedSTE()

    @property
    @abstractmethod
    def positive_levels(self) -> int:
        """Qp, the largest code."""

    def positive(self, scale: Tensor) -> Tensor:
        """Floor the scale; its gradient still reaches the parameter."""
        return scale.clamp(min=SMALLEST_SCALE)

    def scale_multiplier(self, x: Tensor) -> Tensor | float:
        """Return 1/sqrt(numel Qp)."""
        return 1 / math.sqrt((self.count or x.numel()) * self.positive_levels)


@dataclass(frozen=True)
class Lsq(Learned):
    """`lsq`."""

    signed: bool = True
    grad_scale: str = "lsq"

    def __post_init__(self) -> None:
        check_bits(self.bits, minimum=2 if self.signed else 1)
        if self.grad_scale not in GRAD_SCALES:
            raise ValueError(f"grad_scale={self.grad_scale!r}: allowed are {', '.join(GRAD_SCALES)}")

    @property
    def positive_levels(self) -> int:
        """Qp."""
        return int(2 ** (self.bits - self.signed) - 1)

    @property
    def negative_levels(self) -> int:
        """-Qn."""
        return int(2 ** (self.bits - 1)) if self.signed else 0

    def scale_multiplier(self, x: Tensor) -> Tensor | float:
        """Return LSQ's factor, that of the variation-aware code, or 1."""
        if self.grad_scale == "none":
            return 1.0
        if self.grad_scale == "lsq":
            return super().scale_multiplier(x)
        if self.grad_scale == "vvtq_act":
            return 1 / (math.sqrt(self.count or x.numel()) * self.positive_levels)
        return (torch.linalg.vector_norm(x, 1) * self.positive_levels).clamp(min=1e-30).rsqrt()  # type: ignore[no-any-return]

    def ends(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return Qn alpha and Qp alpha."""
        alpha = self.positive(scale)
        return -self.negative_levels * alpha, self.positive_levels * alpha

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Divide by the step, clamp, round, multiply."""
        assert scale is not None
        alpha = self.positive(scale)
        low, high = -self.negative_levels, self.positive_levels
        v = x / alpha if offset is None else (x - offset).div_(alpha)
        y = v.clamp_(low, high).round_().mul_(alpha)
        return (y if offset is None else y.add_(offset)), Grid(alpha, low, high, offset=offset)


@dataclass(frozen=True)
class Seq(Learned):
    """`seq`."""

    limit: ClassVar[float] = 0.99

    def __post_init__(self) -> None:
        if self.bits not in SEQ_BITS:
            raise ValueError(f"bits={self.bits:g}: seq takes {', '.join(f'{b:g}' for b in SEQ_BITS)}")

    @property
    def positive_levels(self) -> int:
        """Qp of the published gradient multiplier."""
        return 1 if self.bits < 2 else int(2 ** (self.bits - 1) - 1)

    def ends(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return the range, -alpha and alpha."""
        alpha = self.positive(scale)
        return -alpha, alpha

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Stretch the range over n steps."""
        assert scale is not None
        n, shift = (1.5, 0.0) if self.bits < 2 else (2 ** (self.bits - 1), 0.5)
        alpha = self.positive(scale)
        codes = (x / alpha).clamp_(-self.limit, self.limit).mul_(n).sub_(shift).round_()
        y = codes.add_(shift).div_(n).mul_(alpha)
        return y, Grid(alpha / n, -self.limit * n - shift, self.limit * n - shift, shift=shift)


@dataclass(frozen=True)
class ElasticSigned(Learned):
    """`elastic_signed`."""

    sign_of_zero: int = 1

    def __post_init__(self) -> None:
        check_bits(self.bits, minimum=1)
        check_sign_of_zero(self.sign_of_zero)

    @property
    def positive_levels(self) -> int:
        """Qp, 1 at 1 bit."""
        return max(int(2 ** (self.bits - 1)) - 1, 1)

    @property
    def sign_scale(self) -> bool:
        """At 1 bit the level is the sign."""
        return self.bits == 1

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Take signs, or round."""
        assert scale is not None
        alpha = self.positive(scale)
        if self.bits == 1:
            return signed(x, alpha, None, self.sign_of_zero), Grid(2 * alpha, -1, 0, shift=0.5)
        low, high = -int(2 ** (self.bits - 1)), self.positive_levels
        return (x / alpha).round_().clamp_(low, high).mul_(alpha), Grid(alpha, low, high)


@dataclass(frozen=True)
class ElasticUnsigned(Learned):
    """`elastic_unsigned`."""

    subtract_minimum: bool = True

    def __post_init__(self) -> None:
        check_bits(self.bits, minimum=1)

    @property
    def positive_levels(self) -> int:
        """Qp."""
        return int(2**self.bits - 1)

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Round above zero, or above the tensor's minimum."""
        assert scale is not None
        alpha = self.positive(scale)
        high = self.positive_levels
        if self.bits == 1 or not self.subtract_minimum:
            return (x / alpha).round_().clamp_(0, high).mul_(alpha), Grid(alpha, 0, high)
        lowest = x.min().reshape([1] * x.ndim)
        y = (x - lowest).div_(alpha).round_().clamp_(0, high).mul_(alpha).add_(lowest)
        return y, Grid(alpha, 0, high, offset=lowest)


__all__ = [
    "GRAD_SCALES",
    "SEQ_BITS",
    "ElasticSigned",
    "ElasticUnsigned",
    "Lsq",
    "Seq",
    "elastic_signed",
    "elastic_unsigned",
    "lsq",
    "seq",
]

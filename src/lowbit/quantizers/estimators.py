"""Gradient estimators: what an input's gradient becomes where the quantizer's own derivative is zero.

An estimator is independent of the quantizer: any function of `lowbit.quantizers.functional` takes one as `estimator=`,
in place of its published gradient. All share one form, dL/dx = g * inside * h(t, q, g): t is the coordinate in units of
one step, q its code, `inside` the bounds of the grid. Gradients of scales and offsets are not touched.

Caveat (arXiv 2405.05171): for small learning rates many weight-gradient estimators train like the plain one. Give every
arm its own learning-rate search, the plain one included.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.quantizers.grid import Grid

LARGEST_AMPLITUDE = 1 / (math.sqrt(2) * math.pi)
"""StableQAT's slope at a bin's centre is zero here and negative beyond (estimators.md, section 4.4)."""
_PIECE, _MOST_PIECES = 2**13, 128  # elements, and pieces of a tensor: see `zero_outside_`


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield tensors of one shape by pieces on the CPU, so that temporaries of their elements stay small; else whole."""
    first = tensors[0]
    count = min(first.numel() // _PIECE, _MOST_PIECES)
    wide = next((dim for dim, size in enumerate(first.shape) if size >= count), None)
    if count < 2 or wide is None or not first.is_cpu or torch.compiler.is_compiling():
        yield tensors
    else:
        yield from zip(*(tensor.tensor_split(count, wide) for tensor in tensors), strict=True)


def zero_outside_(x: Tensor, inside: Tensor) -> Tensor:
    """Multiply by a boolean mask, in place.

    The CPU copies the mask to floats for it (and branches per element in `where` and `masked_fill`, at a quarter of the
    speed), so it goes by pieces.
    """
    for piece, mask in pieces(x, inside):
        piece.mul_(mask)
    return x


@dataclass(frozen=True)
class Estimator(ABC):
    """Base: the rule that turns the gradient of the output into that of the input.

    Attributes:
        reads: what the rule needs in the backward: nothing, the input, or input, output and grid.
        uniform_only: whether thresholds must lie half-way between levels, which TWN's do not.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"x", "y"})
    uniform_only: ClassVar[bool] = False

    @abstractmethod
    def input_gradient(self, grad: Tensor, x: Tensor, y: Tensor, grid: Grid, inside: Tensor | None) -> Tensor:
        """Return dL/dx given dL/dy; `inside` is `grid.inside(x)`."""


@dataclass(frozen=True)
class STE(Estimator):
    """Straight-through estimator: the gradient passes unchanged, everywhere.

    Source: Bengio et al. 2013 (arXiv 1308.3432).

    >>> from lowbit.quantizers.functional import lsq
    >>> w = torch.tensor([-9.0, 0.3], requires_grad=True)
    >>> lsq(w, torch.tensor(1.0), bits=2, grad_scale="none", estimator=STE()).sum().backward()
    >>> w.grad.tolist()
    [1.0, 1.0]
    """

    reads: ClassVar[frozenset[str]] = frozenset()

    def input_gradient(self, grad: Tensor, x: Tensor, y: Tensor, grid: Grid, inside: Tensor | None) -> Tensor:
        """Return the gradient itself."""
        return grad


@dataclass(frozen=True)
class ValueClippedSTE(Estimator):
    """Straight-through inside the open interval (-bound, bound) of the input's values; zero outside, bounds included.

    Source: published code of TernaryBERT and Teacher Intervention, with bound 2.5.

    >>> from lowbit.quantizers.functional import bwn_binarize
    >>> w = torch.tensor([-2.0, 0.3], requires_grad=True)
    >>> bwn_binarize(w, granularity="tensor", estimator=ValueClippedSTE(2.0)).sum().backward()
    >>> w.grad.tolist()
    [0.0, 1.0]
    """

    bound: float
    reads: ClassVar[frozenset[str]] = frozenset({"x"})

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"bound={self.bound}: must be greater than 0")

    def input_gradient(self, grad: Tensor, x: Tensor, y: Tensor, grid: Grid, inside: Tensor | None) -> Tensor:
        """Mask in one pass: hardtanh's backward is exactly this strict mask."""
        return torch.ops.aten.hardtanh_backward(grad, x, -self.bound, self.bound)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ClippedSTE(Estimator):
    """Straight-through inside the bounds of the quantizer's grid, zero outside: the mask of LSQ.

    Source: Esser et al. 2020 (LSQ), equation 5; for binary weights the unit mask |w| <= alpha.

    >>> from lowbit.quantizers.functional import bwn_binarize
    >>> w = torch.tensor([-2.0, 0.3, 0.1], requires_grad=True)  # alpha = 0.8
    >>> bwn_binarize(w, granularity="tensor", estimator=ClippedSTE()).sum().backward()
    >>> w.grad.tolist()
    [0.0, 1.0, 1.0]
    """

    def input_gradient(self, grad: Tensor, x: Tensor, y: Tensor, grid: Grid, inside: Tensor | None) -> Tensor:
        """Mask the gradient."""
        return grad if inside is None else zero_outside_(grad.clone(), inside)


@dataclass(frozen=True)
class EWGS(Estimator):
    """Element-wise gradient scaling: g * (1 + delta * sign(g) * (t - q)), zero outside the grid.

    `delta` is in units of one step; the paper's, on a grid normalised to [0, 1] with L levels, is delta * (L - 1).

    Source: Lee et al., CVPR 2021 (arXiv 2104.00903), equation 4.

    >>> from lowbit.quantizers.functional import lsq
    >>> w = torch.tensor([0.75, -0.75, 9.0], requires_grad=True)
    >>> lsq(w, torch.tensor(1.0), bits=3, grad_scale="none", estimator=EWGS(0.4)).sum().backward()
    >>> [round(g, 4) for g in w.grad.tolist()]
    [0.9, 1.1, 0.0]
    """

    delta: float = 1e-3
    uniform_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.delta <= 2:
            raise ValueError(
                f"delta={self.delta}: must be at least 0 and at most 2, beyond which gradients change sign"
            )

    def input_gradient(self, grad: Tensor, x: Tensor, y: Tensor, grid: Grid, inside: Tensor | None) -> Tensor:
        """Scale each element by its distance from the grid."""
        residual = grid.residual(x, y).mul_(self.delta)
        for distance, g in pieces(residual, grad):
            distance.mul_(g.abs()).add_(g)
        return residual if inside is None else zero_outside_(residual, inside)


@dataclass(frozen=True)
class StableQAT(Estimator):
    """Slope of a Fourier approximation of the staircase: h = (1 - c) / (1 + c), c = sqrt(2) pi S(t + q).

    S(u) = sum over m of a_m cos((2m + 1) pi u), a_m = amplitude * (-1)^m / (2m + 1), m = 0 .. terms. Small at a bin's
    centre, 1 at its thresholds, zero outside the grid. amplitude = 0 is the clipped straight-through estimator.

    Args:
        amplitude: of the first term; 0.21 is the paper's.
        terms: further terms M; the paper uses 0.
        amplitudes: a_m in place of the formula, signs included.

    Raises:
        ValueError: the slope would turn negative somewhere, so that updates would go uphill.

    Source: arXiv 2601.19320, section 4.

    >>> from lowbit.quantizers.functional import lsq
    >>> w = torch.tensor([1.0, 0.25, 0.5], requires_grad=True)
    >>> lsq(w, torch.tensor(1.0), bits=3, grad_scale="none", estimator=StableQAT()).sum().backward()
    >>> [round(g, 3) for g in w.grad.tolist()]
    [0.035, 0.205, 1.0]
    """

    amplitude: float = 0.21
    terms: int = 0
    amplitudes: tuple[float, ...] = field(default=())
    uniform_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "amplitudes", tuple(float(a) for a in self.amplitudes))  # hashable, from any sequence
        if self.terms < 0:
            raise ValueError(f"terms={self.terms}: must be at least 0")
        values = [self._series(k / 2000) for k in range(1001)]  # from the bin's centre to the threshold
        if not all(-LARGEST_AMPLITUDE < value <= LARGEST_AMPLITUDE * (1 + 1e-9) for value in values):
            raise ValueError(
                f"StableQAT amplitudes {self.coefficients}: the slope turns negative or infinite where |S| exceeds "
                f"1/(sqrt(2) pi) = {LARGEST_AMPLITUDE:.4f}, and S lies between {min(values):.4f} and "
                f"{max(values):.4f}; take amplitude=0.21"
            )

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The a_m."""
        return self.amplitudes or tuple(self.amplitude * (-1) ** m / (2 * m + 1) for m in range(self.terms + 1))

    def _series(self, offset: float) -> float:
        return sum(a * math.cos((2 * m + 1) * math.pi * offset) for m, a in enumerate(self.coefficients))

    def input_gradient(self, grad: Tensor, x: Tensor, y: Tensor, grid: Grid, inside: Tensor | None) -> Tensor:
        """Evaluate h = 2 / (1 + c) - 1 in one buffer; t + q differs from t - q by an even number, so either serves."""
        angle = grid.residual(x, y).mul_(math.pi)
        coefficients = [math.sqrt(2) * math.pi * a for a in self.coefficients]
        if len(coefficients) == 1:
            c = angle.cos_().mul_(coefficients[0])
        else:
            c = sum(torch.cos(angle * (2 * m + 1)).mul_(a) for m, a in enumerate(coefficients))  # type: ignore[assignment]
        slope = c.add_(1).reciprocal_().mul_(2).sub_(1).mul_(grad)
        return slope if inside is None else zero_outside_(slope, inside)

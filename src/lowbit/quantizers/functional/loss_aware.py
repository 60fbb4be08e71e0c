"""Loss-aware ternarization (LAT): the levels minimise the loss's quadratic model, not the distance to the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.quantizers.estimators import Estimator
from lowbit.quantizers.functional.core import Formula, fake_quantize
from lowbit.quantizers.functional.statistical import Twn
from lowbit.quantizers.grid import Grid, reduction_dims

VARIANTS = ("approximate", "exact")
_EPS = 1e-8  # added to sqrt(v) by the published code


def lat_ternarize(
    w: Tensor,
    second_moment: Tensor,
    *,
    granularity: str,
    variant: str = "approximate",
    iterations: int = 10,
    estimator: Estimator | None = None,
) -> Tensor:
    """Ternarize weights to alpha * b, minimising sum D (w - alpha b)^2 with curvature D = sqrt(v) + 1e-8.

    `approximate` alternates alpha = sum D|b w| / sum D|b| with b = sign(w) [|w| > alpha / 2], at most `iterations`
    times, from TWN's codes (the published code starts from those of the last step; this keeps the forward a function
    of its inputs). `exact` searches the sorted magnitudes for the global optimum. A group of zeros stays zero.
    Gradient: identity.

    Args:
        w: latent weights.
        second_moment: Adam's running average of squared gradients of w; same shape.
        granularity: `tensor` or `row`.
        variant: `approximate` (LATa) or `exact` (LATe).
        iterations: limit of the alternation.
        estimator: in place of the identity.

    Raises:
        ValueError: unknown variant, or a second moment of another shape.

    Source: Hou and Kwok 2018 (arXiv 1802.08635), sections 3.2-3.3; `FNN/laq.py` of its code.

    >>> w = torch.tensor([0.9, -0.4, 0.3, 0.1], requires_grad=True)
    >>> v = torch.tensor([1.0, 4.0, 0.0, 0.0])
    >>> y = lat_ternarize(w, v, granularity="tensor")
    >>> [round(x, 4) for x in y.tolist()]  # alpha = (0.9 + 2 * 0.4 + 0) / 3
    [0.5667, -0.5667, 0.5667, 0.0]
    >>> y.sum().backward()
    >>> w.grad.tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    if second_moment.shape != w.shape:
        raise ValueError(f"second_moment has shape {tuple(second_moment.shape)}, the weights {tuple(w.shape)}")
    formula = Lat(reduction_dims(w, granularity), variant, iterations)
    return fake_quantize(w, formula, estimator, scale=second_moment.detach())


@dataclass(frozen=True)
class Lat(Formula):
    """`lat_ternarize`; the second moment travels in the place of a scale and gets no gradient."""

    dims: tuple[int, ...]
    variant: str = "approximate"
    iterations: int = 10

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant={self.variant!r}: allowed are {', '.join(VARIANTS)}")

    def quantize(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Grid]:
        """Find alpha, then take the nearest of its three levels."""
        assert scale is not None
        curvature = scale.to(x.dtype).sqrt().add_(_EPS)
        find = self._approximate if self.variant == "approximate" else self._exact
        alpha = find(x, curvature)
        step = torch.where(alpha > 0, alpha, 1.0)
        codes = torch.sign(x).mul_(x.abs() > alpha / 2)
        return codes.mul_(alpha).add_(0.0), Grid(step, -1, 1)

    def _approximate(self, x: Tensor, curvature: Tensor) -> Tensor:
        start, _ = Twn(self.dims).quantize(x, None, None)
        kept = start != 0
        magnitude = x.abs()
        weighted = curvature * magnitude
        for _ in range(self.iterations):  # a fixed number: converged groups no longer move, and nothing waits
            mass = (curvature * kept).sum(self.dims, keepdim=True)
            alpha = (weighted * kept).sum(self.dims, keepdim=True) / torch.where(mass > 0, mass, 1.0)
            kept = magnitude > alpha / 2
        return alpha

    def _exact(self, x: Tensor, curvature: Tensor) -> Tensor:
        groups = math.prod([n for d, n in enumerate(x.shape) if d not in self.dims])
        shape = [1 if d in self.dims else n for d, n in enumerate(x.shape)]
        magnitude, order = x.abs().reshape(groups, -1).sort(dim=1, descending=True)
        sorted_curvature = curvature.reshape(groups, -1).gather(1, order).double()
        mass = sorted_curvature.cumsum(1)
        alphas = (sorted_curvature * magnitude).cumsum(1) / mass
        # Keeping the j largest is the optimum for its own alpha if alpha / 2 separates them from the rest; the loss
        # falls by alpha^2 * mass, so the best of all j is such a fixed point.
        best = (alphas.square() * mass).argmax(1, keepdim=True)
        return alphas.gather(1, best).to(x.dtype).reshape(shape)

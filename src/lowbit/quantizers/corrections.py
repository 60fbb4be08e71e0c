"""Corrections that pull latent weights towards their grid, beside the loss: CAGE and dampening.

Both act on the given sites only, and leave alone what the optimizer leaves alone: a Parameter whose gradient is None in
this step. So gradients must be cleared to None, as `zero_grad()` does, and only after `after_step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lowbit.quantizers.state import WeightSite

Rates = Callable[[nn.Parameter], float] | Mapping[nn.Parameter, float]
"""The learning rate of the optimizer step just taken, by Parameter."""
CageSchedule = Literal["linear_ramp", "constant"]
Aggregation = Literal["sum", "mean", "kernel_mean"]


@dataclass(frozen=True)
class Correction:
    """Base of the corrections; `step` is 0-based within the stage, `steps` the stage's length.

    `is_loss`: whether `before_step` adds the gradient of a loss, which is clipped together with the others.
    """

    is_loss: ClassVar[bool] = False

    def before_step(self, sites: Sequence[WeightSite], step: int, steps: int) -> None:
        """Change gradients: after the backward, on unscaled gradients."""

    def after_step(self, sites: Sequence[WeightSite], step: int, steps: int, lr: Rates) -> None:
        """Change weights: after the optimizer's step, before its gradients are cleared."""


@dataclass(frozen=True)
class Cage(Correction):
    """Pull each weight towards its own quantized value by lambda_t (w - Q(w)), clipped weights included.

    Decoupled, as AdamW's decay: w <- w - lr lambda_t (w - Q(w)) after the optimizer's step, Q of the new w and without
    noise. Coupled: the same term on the gradient, so it goes through the optimizer's preconditioner.

    Attributes:
        strength: lambda.
        silence: share of the steps before it acts.
        schedule: from there `linear_ramp`, from 0 to lambda at the end, or `constant`.
        coupled: which of the two.

    Source: CAGE (arXiv 2510.18784).

    >>> [Cage().weight_at(step, steps=1000) for step in (799, 800, 900, 1000)]
    [0.0, 0.0, 5.0, 10.0]
    """

    strength: float = 10.0
    silence: float = 0.8
    schedule: CageSchedule = "linear_ramp"
    coupled: bool = False

    def __post_init__(self) -> None:
        check_number("strength", self.strength, 0, math.inf)
        check_number("silence", self.silence, 0, 1)
        if self.schedule not in get_args(CageSchedule):
            raise ValueError(f"schedule={self.schedule!r}: allowed are {', '.join(get_args(CageSchedule))}")

    def weight_at(self, step: int, steps: int) -> float:
        """Return lambda_t."""
        start = self.silence * steps
        if step < start:
            return 0.0
        return self.strength if self.schedule == "constant" else self.strength * (step - start) / max(1, steps - start)

    def rate(self, lr: float, weight: float | None = None) -> float:
        """Return lr * lambda_t, by default at full strength: a check of the highest lr before training starts.

        Raises:
            ValueError: it is 1 or more: weights would jump to their level or beyond it.
        """
        product = lr * (self.strength if weight is None else weight)
        if product >= 1:
            raise ValueError(f"cage: lr={lr:g} with strength={self.strength:g}: lr * lambda = {product:g}, must be < 1")
        return product

    @torch.no_grad()
    def before_step(self, sites: Sequence[WeightSite], step: int, steps: int) -> None:
        """Coupled: add lambda_t (w - Q(w)) to the gradients."""
        check_correctable(sites)
        weight = self.weight_at(step, steps)
        if self.coupled and weight:
            for site, grad in _trained(sites):
                grad.add_(site.weight - site.quantized(), alpha=weight)

    @torch.no_grad()
    def after_step(self, sites: Sequence[WeightSite], step: int, steps: int, lr: Rates) -> None:
        """Decoupled: move the new weights; refused as by `rate`."""
        check_correctable(sites)
        weight = self.weight_at(step, steps)
        if weight and not self.coupled:
            for site, _ in _trained(sites):
                own = lr[site.parameter] if isinstance(lr, Mapping) else lr(site.parameter)
                site.weight.lerp_(site.quantized(), self.rate(own, weight))


@dataclass(frozen=True)
class Dampening(Correction):
    """Add the gradient of lambda_t sum (clamp(w) - Q(w))^2: no gradient through Q(w), none for clipped weights.

    Attributes:
        strength: lambda at the end; it rises from 0 along half a cosine.
        start: share of the steps before it acts.
        aggregation: over a site's weights: `sum`, `mean`, or `kernel_mean`: mean over a convolution's kernel, sum over
            channels, so the sum for a linear layer (our reading of the published option, unverified).

    Source: Nagel et al. 2022 (Overcoming Oscillations in QAT, ICML), oscillation dampening.

    >>> [round(Dampening().weight_at(step, steps=400), 3) for step in (99, 100, 250, 400)]
    [0.0, 0.0, 0.05, 0.1]
    """

    strength: float = 0.1
    start: float = 0.25
    aggregation: Aggregation = "sum"
    is_loss: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("strength", self.strength, 0, math.inf)
        check_number("start", self.start, 0, 1)
        if self.aggregation not in get_args(Aggregation):
            raise ValueError(f"aggregation={self.aggregation!r}: allowed are {', '.join(get_args(Aggregation))}")

    def weight_at(self, step: int, steps: int) -> float:
        """Return lambda_t."""
        return cosine_from(self.start, 0.0, self.strength, step, steps) or 0.0

    @torch.no_grad()
    def before_step(self, sites: Sequence[WeightSite], step: int, steps: int) -> None:
        """Add the gradient."""
        check_correctable(sites)
        weight = self.weight_at(step, steps)
        if not weight:
            return
        first = {"sum": None, "mean": 0, "kernel_mean": 2}[self.aggregation]  # of the dimensions averaged over
        for site, grad in _trained(sites):
            count = 1 if first is None else math.prod(site.weight.shape[first:])
            grad.add_(_distance_inside(site), alpha=2 * weight / count)


def _distance_inside(site: WeightSite) -> Tensor:
    """Return w - Q(w), zero where w lies outside the grid."""
    quantizer, weight = site.quantizer, site.weight
    view = quantizer.heads_first(weight.to(torch.promote_types(weight.dtype, torch.float32)))
    y, grid = quantizer.put_on_grid(view)
    distance, inside = view - y, grid.inside(view)
    if inside is not None:
        distance.mul_(inside)
    return quantizer.heads_back(distance, weight)


def _trained(sites: Iterable[WeightSite]) -> Iterator[tuple[WeightSite, Tensor]]:
    """Yield the sites that the optimizer updates in this step, each with its part of the gradient."""
    for site in sites:
        if site.parameter.grad is not None:
            yield site, site.of(site.parameter.grad)


def check_correctable(sites: Iterable[WeightSite]) -> None:
    """Refuse quantizers whose output is not a grid point near the weight.

    Raises:
        ValueError: a kind without a grid, or a learned shift, which is added before the rounding.
    """
    for site in sites:
        spec = site.quantizer.spec
        shifted = getattr(site.quantizer, "shift", None) is not None
        if not spec.has_grid or shifted:
            raise ValueError(
                f"{site.name}: corrections and oscillation need a grid of the weight itself, which kind {spec.kind!r} "
                f"{'with a learned shift ' if shifted else ''}does not have: use another kind for this weight"
            )


def cosine_from(start: float, low: float, high: float, step: int, steps: int) -> float | None:
    """Return a number that goes from `low` to `high` along half a cosine; None before the share `start` of steps."""
    first = start * steps
    if step < first:
        return None
    progress = (step - first) / max(steps - first, 1e-9)
    return high + 0.5 * (low - high) * (1 + math.cos(math.pi * min(progress, 1.0)))


def check_number(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside its range.

    Raises:
        ValueError: not finite, below `low` or above `high`.
    """
    if not (low <= value <= high and math.isfinite(value)):
        allowed = f"at least {low:g} and finite" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise ValueError(f"{name}={value}: must be {allowed}")

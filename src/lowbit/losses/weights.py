"""Losses of the student's weights alone: oscillation-aware bin regularization (OBR)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from lowbit.losses.base import WeightLoss
from lowbit.settings.losses import ObrAggregation

_MIN_SQUARE = 1e-24  # the norm's gradient at zero would not be finite


class WeightOnGrid(Protocol):
    """A quantized weight; `lowbit.quantizers.WeightSite` is one."""

    @property
    def latent(self) -> Tensor:
        """The latent weight, with its gradient."""

    @property
    def quantizer(self) -> Any:
        """Its quantizer."""


def bin_regularization(
    w_clipped: Tensor, codes: Tensor, levels: Tensor, *, low: int, high: int, aggregation: str = "mean"
) -> Tensor:
    """Return D + sum over bins of the unbiased variance of the weights in the bin.

    D compares each clipped latent weight with its level: mean of squares (published code), sum of squares, or norm.
    Bins are compared as integers: the published comparison of floats loses bins (defect 8 of the specification).

    Args:
        w_clipped: latent weights clamped to the ends of the grid; carries the gradient.
        codes: integer codes of the same shape, as floats.
        levels: Q(w), D's target, without a gradient.
        low: smallest code.
        high: largest code.
        aggregation: `mean`, `sum` or `norm`.

    Raises:
        ValueError: unknown aggregation.

    Source: variation-aware quantization (arXiv 2307.00331), OBR; specification section 1.3.

    >>> w = torch.tensor([0.9, 1.1, 0.0, -1.0], requires_grad=True)
    >>> codes = torch.tensor([1.0, 1.0, 0.0, -1.0])  # at step 1 the levels too
    >>> loss = bin_regularization(w, codes, codes, low=-2, high=1)
    >>> round(loss.item(), 4)  # 0.02 / 4 + 0.02
    0.025
    """
    if aggregation not in list(ObrAggregation):
        raise ValueError(f"aggregation={aggregation!r}: allowed are {', '.join(ObrAggregation)}")
    squares = (w_clipped - levels.detach()).square()
    if aggregation == "mean":
        distance = squares.mean()
    elif aggregation == "sum":
        distance = squares.sum()
    else:
        distance = squares.sum().clamp(min=_MIN_SQUARE).sqrt()
    return distance + _bin_variances(w_clipped.reshape(-1), (codes - low).long().reshape(-1), high - low + 1)


def _bin_variances(values: Tensor, bins: Tensor, count: int) -> Tensor:
    """Return the sum of unbiased variances within bins; a bin of one element has none."""
    numbers = torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, bins, torch.ones_like(values))
    sums = torch.zeros_like(numbers).index_add(0, bins, values)
    means = sums / numbers.clamp(min=1)
    deviations = (values - means[bins]).square()
    squares = torch.zeros_like(numbers).index_add(0, bins, deviations)
    return (squares / (numbers - 1).clamp(min=1)).sum()


def oscillation_aware_regularization(
    sites: Iterable[WeightOnGrid],
    *,
    aggregation: str = "mean",
    detach_step: bool = True,
    max_bits: float | None = None,
    convolution_grad_scale: str | None = None,
) -> Tensor:
    """Return the OBR of all weights on a uniform grid, summed over them.

    Args:
        sites: quantized weights.
        aggregation: see `bin_regularization`.
        detach_step: whether the step size gets no gradient (defect 10: it would be pulled towards small residuals).
        max_bits: leave out wider weights, such as 8-bit first and last layers; None for all.
        convolution_grad_scale: multiplier of the step size's gradient for convolutions, where it differs from that of
            the forward (the published code takes `lsq` here); None for the forward's.

    Raises:
        ValueError: there is no weight to regularize; `detach_step=False` for a quantizer without a learned step.
    """
    chosen = [site for site in sites if max_bits is None or site.quantizer.spec.storage_bits <= max_bits]
    if not chosen:
        raise ValueError(f"OBR: no quantized weight of at most {max_bits} bits; raise max_bits or quantize weights")
    terms = []
    for site in chosen:
        quantizer = site.quantizer
        w = quantizer.heads_first(site.latent)
        with torch.no_grad():
            y, grid = quantizer.put_on_grid(w)
            codes = grid.codes(y)
        step = grid.step.detach()
        if not detach_step:
            if not hasattr(quantizer, "step_with_gradient"):
                raise ValueError(f"OBR: quantizer {quantizer.spec} learns no step; set the loss's detach_step=true")
            step = quantizer.step_with_gradient(w, convolution_grad_scale if w.ndim == 4 else None)
        low, high = math.ceil(grid.low), math.floor(grid.high)
        line = replace(grid, step=step, origin=None)
        kept = line.levels(line.coordinate(w).clamp(low, high))  # w, or an end level
        terms.append(bin_regularization(kept, codes, y, low=low, high=high, aggregation=aggregation))
    return torch.stack(terms).sum()


class BinRegularization(WeightLoss):
    """`oscillation_aware_regularization` of the student's weights."""

    def regularize(self, weights: Sequence[WeightOnGrid]) -> Tensor:
        return oscillation_aware_regularization(
            weights,
            aggregation=self.settings.aggregation,
            detach_step=self.settings.detach_step,
            max_bits=self.settings.max_bits,
            convolution_grad_scale=self.settings.convolution_grad_scale,
        )

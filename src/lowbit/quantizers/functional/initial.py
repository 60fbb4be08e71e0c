"""Initial step sizes: by mean magnitude (LSQ), maximum, three sigma (LSQ+) or least squares."""

from __future__ import annotations

import torch
from torch import Tensor

_LIMIT = 5000
_TOLERANCE = 1e-5
_AFFINE_LIMIT = 200


def lsq_mse_init(w: Tensor, *, bits: int, signed: bool = True) -> Tensor:
    """Return the step size with the smallest squared error, found by Lloyd's iteration; shape (1,), in float64 inside.

    alpha starts at max|w| / Qp; then q = round(clamp(w / alpha)), alpha = (w.q) / (q.q), until it moves by less than
    1e-5 of itself. A tensor of zeros gives 0.

    Source: `quantize_by_mse` of variation-aware quantization (arXiv 2307.00331), published code.

    >>> w = torch.tensor([-1.0, 0.9, 2.1])
    >>> round(lsq_mse_init(w, bits=3).item(), 4)  # (1.0 * 1 + 0.9 * 1 + 2.1 * 3) / (1 + 1 + 9)
    0.7455
    """
    return mse_step(w.reshape(1, -1), *levels(bits, signed))


def levels(bits: float, signed: bool) -> tuple[int, int]:
    """Return Qn and Qp of LSQ's grid."""
    if signed:
        return -int(2 ** (bits - 1)), max(int(2 ** (bits - 1)) - 1, 1)
    return 0, int(2**bits) - 1


def mean_step(x_GN: Tensor, low: int, high: int) -> Tensor:
    """Return 2 mean|x| / sqrt(Qp) per group, shape G (Esser et al. 2020, section 2.1)."""
    return 2 * x_GN.abs().mean(1) / high**0.5  # type: ignore[no-any-return]


def max_step(x_GN: Tensor, low: int, high: int) -> Tensor:
    """Return max|x| / Qp per group, shape G."""
    return x_GN.abs().amax(1) / high


def three_sigma_step(x_GN: Tensor, low: int, high: int) -> Tensor:
    """Return max(|mu - 3 sigma|, |mu + 3 sigma|) / 2^(bits-1) per group, shape G (LSQ+, equation 8)."""
    mean, deviation = x_GN.mean(1), x_GN.std(1, unbiased=False)
    reach = torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs())
    return reach / max(-low, (high + 1) / 2)


def mse_step(x_GN: Tensor, low: int, high: int) -> Tensor:
    """Return the least-squares step per group, shape G, by Lloyd's iteration from max|x| / Qp.

    On sorted values an iteration costs a binary search per level; groups that have converged drop out.
    """
    values, sums = _sorted(x_GN)
    steps = values.abs().amax(1) / high
    moving = steps.nonzero().squeeze(1)
    for _ in range(_LIMIT):
        if not len(moving):
            break
        numbers, totals = _bins(values[moving], sums[moving], steps[moving], torch.zeros_like(steps[moving]), low, high)
        codes = torch.arange(low, high + 1, dtype=values.dtype, device=values.device)
        mass = (numbers * codes.square()).sum(1)
        fitted = (totals * codes).sum(1) / mass.clamp(min=1)
        before = steps[moving]
        steps[moving] = torch.where((mass > 0) & (fitted > 0), fitted, before)
        moving = moving[(steps[moving] - before).abs() / steps[moving] >= _TOLERANCE]
    return steps.to(x_GN.dtype)


def mse_step_and_offset(x_GN: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Return least-squares step and offset per group, each of shape G, from the grid over minimum to maximum.

    Alternates codes with the regression of x on them, so that all levels of the grid lie inside the data (LSQ+,
    section 3.2). A group of one value starts on its lowest level, with the step 0 if the value is 0.
    """
    values, sums = _sorted(x_GN)
    width = values[:, -1] - values[:, 0]
    steps = torch.where(width > 0, width, values[:, 0].abs()) / (high - low)
    offsets = values[:, 0] - low * steps
    codes = torch.arange(low, high + 1, dtype=values.dtype, device=values.device)
    total, mean = float(values.shape[1]), sums[:, -1] / values.shape[1]
    for _ in range(_AFFINE_LIMIT):
        numbers, totals = _bins(values, sums, steps, offsets, low, high)
        mean_code = (numbers * codes).sum(1) / total
        spread = (numbers * codes.square()).sum(1) / total - mean_code.square()
        slope = ((totals * codes).sum(1) / total - mean * mean_code) / spread.clamp(min=1e-30)
        fitted = torch.where((spread > 0) & (slope > 0), slope, steps)
        moved = ((fitted - steps).abs() / fitted).amax()
        steps, offsets = fitted, mean - fitted * mean_code
        if moved < _TOLERANCE:
            break
    return steps.to(x_GN.dtype), offsets.to(x_GN.dtype)


def _sorted(x_GN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of each group in order, in float64, and their running sums with a zero in front."""
    values = x_GN.double().sort(1).values
    return values, torch.nn.functional.pad(values.cumsum(1), (1, 0))


def _bins(values: Tensor, sums: Tensor, steps: Tensor, offsets: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Return how many values of each group get each code, and their sums: two tensors of groups x codes."""
    thresholds = torch.arange(low, high, dtype=values.dtype, device=values.device) + 0.5
    edges = torch.searchsorted(values, thresholds * steps.unsqueeze(1) + offsets.unsqueeze(1))
    edges = torch.nn.functional.pad(edges, (1, 0))
    edges = torch.nn.functional.pad(edges, (0, 1), value=values.shape[1])
    return edges.diff(dim=1).to(values.dtype), sums.gather(1, edges).diff(dim=1)


def mean_signed_step(x_GN: Tensor, low: int, high: int) -> Tensor:
    """Return `mean_step` of the signed grid of the same width, for unsigned grids too (variation-aware code)."""
    return mean_step(x_GN, low, high if low else max((high + 1) // 2 - 1, 1))


STEPS = {
    "mean_signed": mean_signed_step,
    "mean": mean_step,
    "max": max_step,
    "three_sigma": three_sigma_step,
    "mse": mse_step,
}
"""Rules by name: (groups x elements, Qn, Qp) -> one step per group."""

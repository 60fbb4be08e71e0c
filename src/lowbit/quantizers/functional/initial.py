"""Initial step sizes: by mean magnitude (LSQ), maximum, three sigma (LSQ+) or least squares."""

from __future__ import annotations

import torch
from torch import Tensor

_LIMIT = 5000
_TOLERANCE = 1e-5


def lsq_mse_init(w: Tensor, *, bits: int, signed: bool = True) -> Tensor:
    """Return the step size with the smallest squared error, found by Lloyd's iteration; shape (1,), in float64 inside.

    alpha starts at max|w| / Qp; then q = round(clamp(w / alpha)), alpha = (w.q) / (q.q), until it moves by less than
    1e-5 of itself. A tensor of zeros gives 1.

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
    """Return the least-squares step per group, shape G, by Lloyd's iteration from max|x| / Qp."""
    x = x_GN.double()
    step = x.abs().amax(1, keepdim=True) / high
    step = torch.where(step > 0, step, 1.0)
    moving = torch.ones_like(step, dtype=torch.bool)
    for _ in range(_LIMIT):
        codes = (x / step).clamp_(low, high).round_()
        mass = codes.square().sum(1, keepdim=True)
        fitted = torch.where(mass > 0, (x * codes).sum(1, keepdim=True) / mass.clamp(min=1), step)
        updated = torch.where(moving & (fitted > 0), fitted, step)
        moving = moving & ((updated - step).abs() / updated >= _TOLERANCE)
        step = updated
        if not moving.any():
            break
    return step.squeeze(1).to(x_GN.dtype)


STEPS = {"mean": mean_step, "max": max_step, "three_sigma": three_sigma_step, "mse": mse_step}
"""Rules by name: (groups x elements, Qn, Qp) -> one step per group."""

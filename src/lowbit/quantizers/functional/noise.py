"""Quantization noise (Quant-Noise): quantize a random part of the weights at each training step."""

from __future__ import annotations

import torch
from torch import Tensor


def quant_noise(
    w: Tensor, quantized: Tensor, selected: Tensor, *, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    """Return `quantized` where `selected`, else w clamped to the grid's range.

    The gradient through an unselected weight is exact: identity inside the range, zero outside; through a selected one
    it is that of the quantizer. The published code clamps after adding the noise, which moves selected weights beyond
    the range off the grid (defect N2).

    Args:
        w: latent weights.
        quantized: the same weights on their grid, with its gradient.
        selected: mask, broadcastable to w.
        low: lower end of a static grid; None where the grid covers all weights.
        high: upper end.

    Source: Fan et al. 2020 (arXiv 2004.07320), section 4.1.

    >>> from lowbit.quantizers.functional import static_range
    >>> w = torch.tensor([1.2, 1.2, 0.3], requires_grad=True)
    >>> low, high = torch.tensor(-1.0), torch.tensor(1.0)
    >>> quantized = static_range(w, low, high, bits=2, symmetric=True)
    >>> y = quant_noise(w, quantized, torch.tensor([True, False, False]), low=low, high=high)
    >>> [round(v, 4) for v in y.tolist()]
    [1.0, 1.0, 0.3]
    >>> y.sum().backward()
    >>> w.grad.tolist()
    [0.0, 0.0, 1.0]
    """
    kept = w if low is None or high is None else torch.clamp(w, low, high).to(w.dtype)
    return torch.where(selected, quantized, kept)


def drop_blocks(w: Tensor, kept: Tensor, *, rate: float) -> Tensor:
    """Zero whole blocks of the input dimension and rescale the rest: the noise that prepares for product quantization.

    Args:
        w: latent weights, rows first; not changed (the published hook overwrites them, defect N1).
        kept: mask of shape (rows, elements of a row / block size).
        rate: probability with which `kept` was drawn to be False; survivors are scaled by 1 / (1 - rate), so that the
            expected value is w.

    Raises:
        ValueError: a rate outside [0, 1).

    Source: Fan et al. 2020 (arXiv 2004.07320), section 4.2.

    >>> w = torch.tensor([[1.0, 2.0, 3.0, 4.0]], requires_grad=True)
    >>> y = drop_blocks(w, torch.tensor([[False, True]]), rate=0.5)
    >>> y.tolist()
    [[0.0, 0.0, 6.0, 8.0]]
    >>> y.sum().backward()
    >>> w.grad.tolist()
    [[0.0, 0.0, 2.0, 2.0]]
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate={rate}: must be at least 0 and below 1, where nothing would survive")
    blocks = w.reshape(*kept.shape, -1)
    return torch.where(kept.unsqueeze(-1), blocks / (1 - rate), 0).reshape(w.shape)

"""How strongly a regularizer of the weights pulls, against the gradient of all other losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowbit.quantizers import WeightSite


class RegularizerShare:
    """Ratio of two gradient norms over the latent weights: the regularizer's, and that of everything else.

    Measured on unclipped gradients. Source: oscillation-aware bin regularization, specification 1.3 (the published
    code's OBR has a gradient four orders smaller than the task's, so whether it acts must be seen).

    Args:
        sites: the quantized weights.
    """

    def __init__(self, sites: Sequence[WeightSite]) -> None:
        self._latents = list(dict.fromkeys(site.parameter for site in sites))
        self._own: list[Tensor | None] | None = None

    def measure(self, weighted: Tensor) -> None:
        """Take the gradient of the weighted regularizer, before the backward pass of the whole loss."""
        self._own = list(torch.autograd.grad(weighted, self._latents, retain_graph=True, allow_unused=True))

    def ratio(self) -> Tensor | None:
        """Return the ratio once the gradients of the whole loss are there; None if nothing was measured."""
        if self._own is None:
            return None
        own, rest = [], []
        for latent, gradient in zip(self._latents, self._own, strict=True):
            if gradient is not None:
                own.append(gradient)
            if latent.grad is not None:
                rest.append(latent.grad if gradient is None else latent.grad - gradient)
        self._own = None
        return _norm(own) / _norm(rest)


def _norm(tensors: list[Tensor]) -> Tensor:
    norms = torch._foreach_norm([tensor.float() for tensor in tensors])
    return torch.stack(list(norms)).square().sum().sqrt()

"""How strongly a regularizer of the weights pulls, against the gradient of all other losses."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from lowbit.losses import WeightLoss
from lowbit.training.modules import FinetuneModule


class RegularizerShare(Callback):
    """Log `train/obr_gradient_ratio` at logged steps, see `gradient_ratio`.

    Args:
        regularizer: the loss of the weights.
    """

    def __init__(self, regularizer: WeightLoss) -> None:
        self._regularizer = regularizer

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Log the ratio of the coming update."""
        assert isinstance(pl_module, FinetuneModule)
        if pl_module.is_logged_step:
            sites = pl_module.quantization.sites
            weight = self._regularizer.settings.weight_at(pl_module.global_step, pl_module.stage.steps)
            with torch.enable_grad():
                weighted = weight * self._regularizer.regularize(sites)
            pl_module.log("train/obr_gradient_ratio", gradient_ratio(weighted, [site.parameter for site in sites]))


def gradient_ratio(weighted: Tensor, latents: Sequence[Tensor]) -> Tensor:
    """Return the norm of the regularizer's gradient over that of everything else, on the latent weights.

    The latent weights hold the unclipped gradient of the whole loss, of which the weighted regularizer is a part.

    Source: oscillation-aware bin regularization, specification 1.3 (the published code's OBR has a gradient four orders
    smaller than the task's, so whether it acts must be seen).
    """
    latents = list(dict.fromkeys(latents))
    own, rest = [], []
    for latent, gradient in zip(latents, torch.autograd.grad(weighted, latents, allow_unused=True), strict=True):
        if gradient is not None:
            own.append(gradient)
        if latent.grad is not None:
            rest.append(latent.grad if gradient is None else latent.grad - gradient)
    return _norm(own) / _norm(rest)


def _norm(tensors: list[Tensor]) -> Tensor:
    norms = torch._foreach_norm([tensor.float() for tensor in tensors])
    return torch.stack(list(norms)).square().sum().sqrt()

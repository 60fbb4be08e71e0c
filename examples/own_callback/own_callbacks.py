"""A callback of your own: how far the latent weights have moved since the stage began."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor


class WeightDrift(Callback):
    """Log `drift/NAME` every `every` steps: the norm of a parameter's change over the norm that it began with.

    Args:
        match: part of the names of the parameters that are watched.
        every: steps between two values.
    """

    def __init__(self, match: str, every: int = 10) -> None:
        self.match = match
        self.every = every
        self._began: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights of the first step."""
        watched = pl_module.student.named_parameters()
        self._began = {name: weight.detach().clone() for name, weight in watched if self.match in name}

    def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: object) -> None:
        """Log the change."""
        if (trainer.global_step + 1) % self.every == 0:
            for name, began in self._began.items():
                moved = torch.linalg.vector_norm(pl_module.student.get_parameter(name) - began)
                pl_module.log(f"drift/{name}", moved / torch.linalg.vector_norm(began))

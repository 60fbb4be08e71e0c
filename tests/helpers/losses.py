"""Losses of a line."""

from typing import Any

from lowbit.losses import Loss, build_loss
from lowbit.settings.losses import LossConfig


def loss_of(kind: str, **settings: Any) -> Loss:
    """Return the loss of a kind and the settings that differ from their defaults."""
    return build_loss(LossConfig(kind, **settings))

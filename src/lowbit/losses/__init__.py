"""Distillation losses: pure functions f(student, teacher, mask) -> scalar, and the terms that bind them to traces."""

from lowbit.losses.functional import (
    attention_map_kl,
    hidden_mse,
    logit_mse,
    score_mse,
    soft_cross_entropy,
    task_loss,
)
from lowbit.losses.terms import LossTerm, TraceLike

__all__ = [
    "LossTerm",
    "TraceLike",
    "attention_map_kl",
    "hidden_mse",
    "logit_mse",
    "score_mse",
    "soft_cross_entropy",
    "task_loss",
]

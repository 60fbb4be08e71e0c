"""Distillation losses: pure functions f(student, teacher, mask) -> scalar, and the terms that bind them to traces."""

from lowbit.losses.functional import (
    attention_map_kl,
    attention_map_mse,
    hidden_mse,
    logit_mse,
    score_mse,
    soft_cross_entropy,
    soft_label_loss,
    span_soft_cross_entropy,
    task_loss,
)
from lowbit.losses.regularizers import bin_regularization, oscillation_aware_regularization
from lowbit.losses.terms import LossTerm, TraceLike

__all__ = [
    "LossTerm",
    "TraceLike",
    "attention_map_kl",
    "attention_map_mse",
    "bin_regularization",
    "hidden_mse",
    "logit_mse",
    "oscillation_aware_regularization",
    "score_mse",
    "soft_cross_entropy",
    "soft_label_loss",
    "span_soft_cross_entropy",
    "task_loss",
]

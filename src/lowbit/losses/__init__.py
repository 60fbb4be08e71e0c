"""Losses: pure functions of student and teacher tensors, and small classes that apply them to traces."""

from lowbit.losses.attention import Maps, MapsMse, Scores, attention_map_kl, attention_map_mse, score_mse
from lowbit.losses.base import LayerLoss, Loss, LossInputs, TraceLike, WeightLoss
from lowbit.losses.layers import AttentionBlock, AttentionOutput, Hidden, hidden_mse
from lowbit.losses.outputs import (
    Logits,
    SoftLabels,
    Task,
    logit_mse,
    soft_cross_entropy,
    soft_label_loss,
    span_soft_cross_entropy,
    task_loss,
)
from lowbit.losses.weights import BinRegularization, bin_regularization, oscillation_aware_regularization
from lowbit.settings.fields import field_problems, import_class
from lowbit.settings.losses import LossConfig, LossKind

__all__ = [
    "LOSSES",
    "LayerLoss",
    "Loss",
    "LossInputs",
    "TraceLike",
    "WeightLoss",
    "attention_map_kl",
    "attention_map_mse",
    "bin_regularization",
    "build_loss",
    "hidden_mse",
    "logit_mse",
    "oscillation_aware_regularization",
    "score_mse",
    "soft_cross_entropy",
    "soft_label_loss",
    "span_soft_cross_entropy",
    "task_loss",
]

LOSSES: dict[str, type[Loss]] = {
    LossKind.logits: Logits,
    LossKind.hidden: Hidden,
    LossKind.scores: Scores,
    LossKind.maps: Maps,
    LossKind.maps_mse: MapsMse,
    LossKind.attn_block: AttentionBlock,
    LossKind.attn_out: AttentionOutput,
    LossKind.task: Task,
    LossKind.soft_labels: SoftLabels,
    LossKind.obr: BinRegularization,
}


def build_loss(settings: LossConfig) -> Loss:
    """Return the loss of these settings.

    Raises:
        ValueError: settings that are not allowed, with every problem.
    """
    problems = [*field_problems(settings), *settings.problems()]
    if problems:
        raise ValueError(f"loss {settings.kind}: {'; '.join(problems)}")
    known = LOSSES.get(settings.kind)
    own: type[Loss] = known or import_class(settings.kind)
    return own(settings)

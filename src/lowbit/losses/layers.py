"""Losses of hidden states and attention outputs.

Shape suffixes: B batch, L tokens, E hidden width. `mask_BL` is True at real tokens; None means that nothing is padded.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lowbit.losses.base import LayerLoss, TraceLike


def hidden_mse(
    student_BLE: Tensor, teacher_BLE: Tensor, mask_BL: Tensor | None = None, *, rule: str = "full"
) -> Tensor:
    """Mean squared error of hidden states or attention outputs.

    "full" takes every position, padded ones included, as published: they are not zeroed.

    Source: TernaryBERT section 1.3 of the specification (L_rep), TI (L_output).
    """
    if rule == "full" or mask_BL is None:
        return F.mse_loss(student_BLE, teacher_BLE)
    squares_BL = (student_BLE - teacher_BLE).square().mean(-1)
    return (squares_BL * mask_BL).sum() / mask_BL.sum()


class _StateLoss(LayerLoss):
    field = "hidden"

    def compare(self, student: Tensor, teacher: Tensor, mask_BL: Tensor | None) -> Tensor:
        return hidden_mse(student, teacher, mask_BL, rule=self.settings.mask)


class Hidden(_StateLoss):
    """`hidden_mse` of the embeddings and of every layer's output."""

    fields = frozenset({"embeddings", "hidden"})

    def pairs(self, student: TraceLike, teacher: TraceLike) -> list[tuple[object, object]]:
        return [(student.embeddings, teacher.embeddings), *super().pairs(student, teacher)]


class AttentionBlock(_StateLoss):
    """`hidden_mse` of the outputs of attention blocks, after the residual connection."""

    field = "attn_block"


class AttentionOutput(_StateLoss):
    """`hidden_mse` of the attention's output projections."""

    field = "attn_out"

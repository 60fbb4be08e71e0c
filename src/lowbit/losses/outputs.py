"""Losses of the model's outputs: labels, stored soft labels, and the teacher's logits.

Shape suffixes: B batch, L tokens, C classes, S ends of a span (first and last token).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lowbit.losses.base import Loss, LossInputs


def task_loss(student_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Loss against the labels: cross-entropy for integer labels, mean squared error for real ones.

    Logits BSL with labels BS are of spans: the mean of the losses of first and last token, as in BERT.
    """
    if student_BC.dim() == 3:
        return F.cross_entropy(student_BC.flatten(0, 1), labels_B.flatten())
    if labels_B.is_floating_point():
        return F.mse_loss(student_BC.squeeze(-1), labels_B.to(student_BC.dtype))
    return F.cross_entropy(student_BC, labels_B)


def soft_label_loss(student_BC: Tensor, probabilities_BC: Tensor) -> Tensor:
    """Cross-entropy under stored probabilities, mean over the batch (multi-crop distillation, no hard labels)."""
    return -(probabilities_BC * student_BC.log_softmax(-1)).sum(-1).mean()


def soft_cross_entropy(
    student_BC: Tensor, teacher_BC: Tensor, *, reduction: str = "sum", temperature: float = 1.0
) -> Tensor:
    """Cross-entropy of the student under the teacher's softmax, averaged over the batch.

    `reduction` over the classes: "sum" (Teacher Intervention, KD-QAT) or "mean" (TernaryBERT, smaller by the factor C).
    With a temperature T both logits are divided by T and the loss is multiplied by T^2 (Hinton et al. 2015).

    Source: `soft_cross_entropy` of TernaryBERT (arXiv 2009.12812) and of TI (arXiv 2302.11812).
    """
    losses_BC = -(teacher_BC / temperature).softmax(-1) * (student_BC / temperature).log_softmax(-1)
    loss = losses_BC.mean() if reduction == "mean" else losses_BC.sum(-1).mean()
    return loss * temperature**2


def span_soft_cross_entropy(
    student_BSL: Tensor, teacher_BSL: Tensor, *, reduction: str = "sum", temperature: float = 1.0
) -> Tensor:
    """Soft cross-entropy of the first token of a span plus that of its last token.

    The classes are the positions, padded ones included; `reduction` and `temperature` as in `soft_cross_entropy`.

    Source: TernaryBERT (arXiv 2009.12812), SQuAD.
    """
    pairs = zip(student_BSL.unbind(1), teacher_BSL.unbind(1), strict=True)
    start, end = (soft_cross_entropy(s, t, reduction=reduction, temperature=temperature) for s, t in pairs)
    return start + end


def logit_mse(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """Mean squared error of the outputs of a regression task. Source: TernaryBERT, STS-B."""
    return F.mse_loss(student_BC, teacher_BC)


class Task(Loss):
    """`task_loss` of the student."""

    def compute(self, inputs: LossInputs) -> Tensor:
        if inputs.labels is None:
            raise ValueError("loss 'task' needs labels, but the batch has none")
        return task_loss(inputs.student.logits, inputs.labels)


class SoftLabels(Loss):
    """`soft_label_loss` under the probabilities of a soft-label store."""

    def compute(self, inputs: LossInputs) -> Tensor:
        if inputs.soft_labels is None:
            raise ValueError("loss 'soft_labels' needs stored soft labels, but the batch has none")
        return soft_label_loss(inputs.student.logits, inputs.soft_labels)


class Logits(Loss):
    """Soft cross-entropy under the teacher; of both ends for spans, mean squared error for regression."""

    def compute(self, inputs: LossInputs) -> Tensor:
        assert inputs.teacher is not None
        student, teacher = inputs.student.logits, inputs.teacher.logits
        if student.dim() == 2 and student.shape[-1] == 1:
            return logit_mse(student, teacher)
        compare = span_soft_cross_entropy if student.dim() == 3 else soft_cross_entropy
        return compare(student, teacher, reduction=self.settings.reduction, temperature=self.settings.temperature)

"""Losses between one student and one teacher tensor.

Shape suffixes: B batch, H heads, L tokens, E hidden width, C classes, S ends of a span (first and last token).
`mask_BL` is True at real tokens; None means that nothing is padded. `rule` is "full" (padded entries count as zero,
mean over all entries: the published code) or "valid" (mean over unpadded entries).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

_MASKED_SCORE = -1e2  # the published code zeroes scores at or below this, which also removes its -1e4 padding fill
_MIN_PROBABILITY = 1e-8


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


def logit_mse(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """Mean squared error of the outputs of a regression task. Source: TernaryBERT, STS-B."""
    return F.mse_loss(student_BC, teacher_BC)


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


def score_mse(
    student_BHLL: Tensor, teacher_BHLL: Tensor, mask_BL: Tensor | None = None, *, rule: str = "full"
) -> Tensor:
    """Mean squared error of attention scores.

    "full": scores of padded keys and scores <= -100 become 0 in both networks, then the mean over all entries, padded
    queries included (published). "valid": mean over pairs of real tokens.

    Source: TernaryBERT (arXiv 2009.12812), L_att.
    """
    if rule == "valid" and mask_BL is not None:
        pairs_BLL = mask_BL[:, :, None] & mask_BL[:, None, :]
        squares_BLL = (student_BHLL - teacher_BHLL).square().mean(1)
        return (squares_BLL * pairs_BLL).sum() / pairs_BLL.sum()
    return F.mse_loss(_zero_masked(student_BHLL, mask_BL), _zero_masked(teacher_BHLL, mask_BL))


def attention_map_kl(student_BHLL: Tensor, teacher_BHLL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
    """KL divergence from the teacher's attention map to the student's over valid tokens.

    Per sentence of n real tokens: (1/n) sum over its n x n block of P_T (log P_T - log P_S), probabilities clamped at
    1e-8; then the mean over heads and sentences.

    Source: KD-QAT (arXiv 2211.11014), map loss.
    """
    log_student = student_BHLL.clamp(min=_MIN_PROBABILITY).log()
    teacher = teacher_BHLL.clamp(min=_MIN_PROBABILITY)
    terms_BHLL = teacher * (teacher.log() - log_student)
    if mask_BL is None:
        return terms_BHLL.sum((-1, -2)).mean() / terms_BHLL.shape[-1]
    pairs_B1LL = (mask_BL[:, :, None] & mask_BL[:, None, :])[:, None]
    sums_BH = (terms_BHLL * pairs_B1LL).sum((-1, -2))
    return (sums_BH / mask_BL.sum(-1, keepdim=True)).mean()


def attention_map_mse(student_BHLL: Tensor, teacher_BHLL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
    """Mean squared error of attention maps over pairs of real tokens, all layers' heads alike.

    Source: SDQ (arXiv 2307.05972), self-attention distillation by MSE; the reduction is ours (unstated there).
    """
    squares_BLL = (student_BHLL - teacher_BHLL).square().mean(1)
    if mask_BL is None:
        return squares_BLL.mean()
    pairs_BLL = mask_BL[:, :, None] & mask_BL[:, None, :]
    return (squares_BLL * pairs_BLL).sum() / pairs_BLL.sum()


def soft_label_loss(student_BC: Tensor, probabilities_BC: Tensor) -> Tensor:
    """Cross-entropy under stored probabilities, mean over the batch (multi-crop distillation, no hard labels)."""
    return -(probabilities_BC * student_BC.log_softmax(-1)).sum(-1).mean()


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


def task_loss(student_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Loss against the labels: cross-entropy for integer labels, mean squared error for real ones.

    Logits BSL with labels BS are of spans: the mean of the losses of first and last token, as in BERT.
    """
    if student_BC.dim() == 3:
        return F.cross_entropy(student_BC.flatten(0, 1), labels_B.flatten())
    if labels_B.is_floating_point():
        return F.mse_loss(student_BC.squeeze(-1), labels_B.to(student_BC.dtype))
    return F.cross_entropy(student_BC, labels_B)


def _zero_masked(scores_BHLL: Tensor, mask_BL: Tensor | None) -> Tensor:
    kept_BHLL = F.threshold(scores_BHLL, _MASKED_SCORE, 0.0)  # one pass forward and one backward
    return kept_BHLL if mask_BL is None else kept_BHLL * mask_BL[:, None, None, :].to(kept_BHLL.dtype)

"""Losses of attention scores and attention maps.

Shape suffixes: B batch, H heads, L tokens. `mask_BL` is True at real tokens; None means that nothing is padded.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lowbit.losses.base import LayerLoss
from lowbit.settings.losses import MaskRule

_MASKED_SCORE = -1e2  # the published code zeroes scores at or below this, which also removes its -1e4 padding fill
_MIN_PROBABILITY = 1e-8


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


class Scores(LayerLoss):
    """`score_mse` of every layer."""

    field = "scores"

    @property
    def unit(self) -> str | None:
        return "pairs" if self.settings.mask == MaskRule.valid else "rows"

    def compare(self, student: Tensor, teacher: Tensor, mask_BL: Tensor | None) -> Tensor:
        return score_mse(student, teacher, mask_BL, rule=self.settings.mask)


class Maps(LayerLoss):
    """`attention_map_kl` of every layer."""

    field = "probs"

    @property
    def unit(self) -> str | None:
        return "rows"

    def compare(self, student: Tensor, teacher: Tensor, mask_BL: Tensor | None) -> Tensor:
        return attention_map_kl(student, teacher, mask_BL)


class MapsMse(LayerLoss):
    """`attention_map_mse` of every layer."""

    field = "probs"

    @property
    def unit(self) -> str | None:
        return "pairs"

    def compare(self, student: Tensor, teacher: Tensor, mask_BL: Tensor | None) -> Tensor:
        return attention_map_mse(student, teacher, mask_BL)


def _zero_masked(scores_BHLL: Tensor, mask_BL: Tensor | None) -> Tensor:
    kept_BHLL = F.threshold(scores_BHLL, _MASKED_SCORE, 0.0)  # one pass forward and one backward
    return kept_BHLL if mask_BL is None else kept_BHLL * mask_BL[:, None, None, :].to(kept_BHLL.dtype)

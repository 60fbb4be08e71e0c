"""Ternary weight splitting (BinaryBERT): one ternary weight becomes the sum of two binary ones, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.quantizers.functional.statistical import twn_ternarize
from lowbit.quantizers.grid import reduction_dims

_MARGIN = 0.99  # of the kept weights' sum that the leaning of the others may reach before it is balanced
_TINY = 1e-300


@torch.no_grad()
def ternary_split(w: Tensor, *, granularity: str) -> tuple[Tensor, Tensor]:
    """Split latent weights into w1 + w2 = w with BWN(w1) + BWN(w2) = T(w), in float64; T is TWN without a clip.

    T keeps K, at the level alpha, and sets P (positive) and N (the others) to zero; S is the sum of magnitudes. Then

        K: (a w, (1 - a) w)     P: (w + b, -b)     N: (b, w - b)
        b = (alpha - mean of |w| over P and N) / 2     a = (S_K + S_N - S_P) / (2 S_K)

    so that the halves agree in sign on K and differ elsewhere, and both have the scale alpha / 2. b is positive, as
    what T drops is smaller than what it keeps.

    Where T drops nothing, b is needed nowhere and a = 1/2: the halves are w / 2. All-zero groups give zeros. Where the
    dropped weights lean to one sign by more than S_K (few large weights among many small ones of one sign), the
    published a leaves (0, 1) and its identity fails; there, leading dropped weights exchange their two halves, which
    keeps every sum and turns their part of S_P - S_N around, until the leaning is smallest.

    Which weights T keeps is decided in the precision of `w`, as in training; all else is float64.

    Args:
        w: latent weights of a ternary layer.
        granularity: `tensor` or `row`: the elements that share a scale.

    Raises:
        ValueError: another granularity.

    Source: Bai et al. 2021 (BinaryBERT, arXiv 2012.15701), section 3.2; the formula is that of the published code.

    >>> from lowbit.quantizers.functional import bwn_binarize
    >>> w = torch.tensor([0.9, -0.7, 0.1, -0.3])
    >>> first, second = ternary_split(w, granularity="tensor")
    >>> [[round(v, 3) for v in half.tolist()] for half in (first, second)]
    [[0.506, -0.394, 0.4, 0.3], [0.394, -0.306, -0.3, -0.6]]
    >>> halves = [bwn_binarize(half, granularity="tensor") for half in (first, second)]
    >>> [[round(v, 3) for v in half.tolist()] for half in halves]
    [[0.4, -0.4, 0.4, 0.4], [0.4, -0.4, -0.4, -0.4]]
    >>> [round(v, 3) for v in twn_ternarize(w, granularity="tensor").tolist()]
    [0.8, -0.8, 0.0, 0.0]
    """
    if granularity not in ("tensor", "row"):
        raise ValueError(f"granularity={granularity!r}: allowed are 'tensor' and 'row'")
    reduction_dims(w, granularity)  # refuses shapes without rows
    shape = (1, -1) if granularity == "tensor" else (w.shape[0], -1)
    kept = (twn_ternarize(w, granularity=granularity) != 0).reshape(shape)
    groups = w.detach().double().reshape(shape)
    dropped = groups.masked_fill(kept, 0)
    kept_sum = groups.masked_fill(~kept, 0).abs().sum(1, keepdim=True)
    alpha = kept_sum / kept.sum(1, keepdim=True).clamp(min=1)
    b = (alpha - dropped.abs().sum(1, keepdim=True) / (~kept).sum(1, keepdim=True).clamp(min=1)) / 2
    lean = dropped.sum(1, keepdim=True)  # S_P - S_N
    exchanged = _balanced(dropped, kept, lean.abs() > _MARGIN * kept_sum)
    lean -= 2 * dropped.masked_fill(~exchanged, 0).sum(1, keepdim=True)
    a = 0.5 - lean / (2 * kept_sum.clamp(min=_TINY))
    first = torch.where(kept, a * groups, dropped.clamp(min=0) + b)
    second = torch.where(kept, (1 - a) * groups, dropped.clamp(max=0) - b)
    halves = torch.where(exchanged, second, first), torch.where(exchanged, first, second)
    return halves[0].reshape(w.shape), halves[1].reshape(w.shape)


def _balanced(dropped: Tensor, kept: Tensor, wanted: Tensor) -> Tensor:
    """Return which dropped weights exchange their halves, in the rows that are `wanted`: the best leading ones.

    Exchanging ever more of them takes the leaning from d to -d in steps of twice a dropped weight; so at its smallest
    it is at most the largest dropped weight, which is smaller than any kept one.
    """
    if not bool(wanted.any()):
        return torch.zeros_like(kept)
    partial = dropped.cumsum(1)
    last = (partial[:, -1:] - 2 * partial).abs_().argmin(1, keepdim=True)
    leading = torch.arange(dropped.shape[1], device=dropped.device) <= last
    return leading & ~kept & wanted

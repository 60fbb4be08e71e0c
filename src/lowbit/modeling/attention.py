"""The one attention core: every instrumented model computes its attention here.

Shape suffixes: B batch, H heads, L tokens, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.modeling.tape import Tape

OPERANDS = ("query", "key", "probs", "value")
QUANTIZER_NAMES = {operand: f"{operand[0]}_bmm_quantizer" for operand in OPERANDS}
TAP = "_lowbit_tap"


@dataclass(frozen=True)
class Tap:
    """Tells an attention module which layer it is and where to record."""

    tape: Tape
    layer: int


def attend(
    module: nn.Module,
    query_BHLD: Tensor,
    key_BHLD: Tensor,
    value_BHLD: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float,
    *,
    bias: Tensor | None = None,
    apart: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return context (BHLD) and attention map (BHLL) of `module`, under its bmm quantizers and its tap's plan.

    Operands are quantized after the head split; probabilities after dropout, as published. `mask` is additive and may
    be None. Without quantizers, tap and plan this is plain eager attention.

    `bias` (1HLL) is a learned part of the scores, Swin's relative positions. Pairs of tokens that are `apart` (B1LL)
    never see each other: their scores, which mean nothing, are recorded as 0.
    """
    tap: Tap | None = getattr(module, TAP, None)
    query_BHLD = _quantize(module, "query", query_BHLD)
    key_BHLD = _quantize(module, "key", key_BHLD)
    scores_BHLL = (query_BHLD @ key_BHLD.transpose(-2, -1)).mul_(scale)  # in place: the largest tensor of a layer
    if bias is not None:
        scores_BHLL += bias
    if tap is not None and tap.tape.records("scores"):
        tap.tape.exchange(tap.layer, "scores", scores_BHLL if apart is None else scores_BHLL.masked_fill(apart, 0.0))
    probs_BHLL = (scores_BHLL if mask is None else scores_BHLL + mask).softmax(-1)
    if tap is not None:
        probs_BHLL = tap.tape.exchange(tap.layer, "probs", probs_BHLL)
    dropped_BHLL = F.dropout(probs_BHLL, dropout, module.training)
    context_BHLD = _quantize(module, "probs", dropped_BHLL) @ _quantize(module, "value", value_BHLD)
    if tap is not None:
        context_BHLD = tap.tape.exchange(tap.layer, "context", context_BHLD)
    return context_BHLD, probs_BHLL


def _quantize(module: nn.Module, operand: str, x: Tensor) -> Tensor:
    quantizer = module._modules.get(QUANTIZER_NAMES[operand])
    if quantizer is not None:
        x = quantizer(x)
    return x

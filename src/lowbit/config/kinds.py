"""What each kind of quantizer takes, as facts that validation reads without importing torch.

`tests/config/test_kinds.py` holds them against `lowbit.quantizers.KINDS` and the quantizers themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.settings.fields import import_class
from lowbit.settings.quantizer import EstimatorKind, Granularity, QuantizerKind, ScaleInit

_G, _K, _I = Granularity, QuantizerKind, ScaleInit
WEIGHT = (_G.tensor, _G.row, _G.head)
DYNAMIC = (_G.tensor, _G.token, _G.head)  # a row of a batch of activations is a whole example: no published use
SEQ_BITS = (1.58, 2.0, 3.0, 4.0)
COMMON = ("kind", "bits", "granularity", "noise", "noise_rate", "options")


@dataclass(frozen=True)
class KindFacts:
    """Facts of one kind.

    Attributes:
        takes: settings of its own.
        bits: smallest and largest width, or None if it has one width only.
        weight: granularities for weights; empty if it is not for weights.
        input: granularities for layer inputs and attention operands; empty if it is not for them.
        uniform: whether thresholds lie half-way between levels, which EWGS and StableQAT need.
        estimators: whether other estimators than the published one are defined.
        noise: whether scalar quantization noise is defined.
        inits: initial scales.
    """

    takes: tuple[str, ...] = ()
    bits: tuple[int, int] | None = None
    weight: tuple[Granularity, ...] = WEIGHT
    input: tuple[Granularity, ...] = ()
    uniform: bool = True
    estimators: bool = True
    noise: bool = True
    inits: tuple[ScaleInit, ...] = ()


_LSQ_INITS = (_I.mean, _I.max, _I.three_sigma, _I.mse, _I.mean_signed)
_LSQ = ("signed", "offset", "grad_scale", "init")
_ELASTIC = ("signed", "shift", "subtract_minimum", "sign_of_zero", "init")
FACTS: dict[QuantizerKind, KindFacts] = {
    _K.twn: KindFacts(("threshold", "clip"), uniform=False),
    _K.lat: KindFacts(("variant",)),
    _K.bwn: KindFacts(("center", "sign_of_zero")),
    _K.statsq: KindFacts((), (2, 8)),
    _K.bitnet: KindFacts(()),
    _K.minmax_symmetric: KindFacts(("clip",), (2, 16), input=DYNAMIC),
    _K.minmax_asymmetric: KindFacts(("clip",), (1, 16), input=DYNAMIC),
    _K.xtc: KindFacts((), (2, 16), input=DYNAMIC),
    _K.lsq: KindFacts(_LSQ, (2, 16), input=(_G.tensor, _G.head), inits=_LSQ_INITS),
    _K.seq: KindFacts(("init",), (1, 4), inits=(_I.max, _I.mean)),
    _K.elastic: KindFacts(
        _ELASTIC, (1, 8), weight=(), input=(_G.tensor, _G.head), noise=False, inits=(_I.mean, _I.paper)
    ),
    _K.pact: KindFacts(("symmetric", "clip"), (2, 16), input=DYNAMIC, estimators=False),
    _K.static: KindFacts(("symmetric", "momentum", "refresh_every"), (2, 16), input=(_G.tensor,)),
    _K.block_noise: KindFacts(("block_size",), weight=(_G.tensor,), estimators=False, noise=False),
    _K.ipq: KindFacts(("block_size", "centroids"), weight=(_G.tensor,), estimators=False, noise=False),
}
UNIFORM_ONLY = (EstimatorKind.ewgs, EstimatorKind.stable_qat)
GRIDLESS = (QuantizerKind.block_noise, QuantizerKind.ipq)
"""Kinds whose weights have no codes: nothing to correct towards, nothing to oscillate."""


def facts_of(kind: str) -> KindFacts | None:
    """Return the facts of a kind; None of `none`. A class of the user's own takes whole widths and has no state."""
    if "." not in kind:
        return FACTS.get(QuantizerKind(kind)) if kind in list(QuantizerKind) else None
    try:
        uniform = bool(import_class(kind).uniform)
    except (ValueError, AttributeError):  # which `ClassOr` explains
        uniform = True
    return KindFacts((), (1, 16), input=DYNAMIC, uniform=uniform)

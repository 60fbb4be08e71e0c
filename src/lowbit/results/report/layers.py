"""What a report shows of the layers of a run, as plain numbers: `lowbit.training.inspection` computes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SiteFacts:
    """A quantized weight.

    Attributes:
        name: Module name, with the role for a block of a fused weight.
        kind: Kind of its quantizer.
        bits: Stored bits of a weight.
        error: |Q(w) - w| / |w|, Euclidean norms.
        zeros: Share of zeros among the quantized weights.
    """

    name: str
    kind: str
    bits: float
    error: float
    zeros: float


@dataclass(frozen=True)
class Histogram:
    """A weight before and after quantization: shares in equal bins from `low` to `high`, which sum to 1 each."""

    name: str
    low: float
    high: float
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True)
class LayerFacts:
    """A finished run, layer by layer.

    Attributes:
        sites: Its quantized weights.
        histograms: Of a few of them.
        hidden: |h - h_teacher| / |h_teacher| of each layer's output; empty where it was not measured.
        rows: Evaluation rows that `hidden` was measured on.
        note: Why `hidden` was not measured, or nothing at all.
    """

    sites: tuple[SiteFacts, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    hidden: tuple[float, ...] = ()
    rows: int = 0
    note: str = ""

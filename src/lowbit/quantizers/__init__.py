"""Fake quantizers: pure functions, the modules that hold their settings, and layers that use them."""

from lowbit.quantizers.fake_quantizer import KINDS, FakeQuantizer, QuantizerSpec
from lowbit.quantizers.functional import minmax_asymmetric, minmax_symmetric, twn_ternarize
from lowbit.quantizers.layers import QuantConv2d, QuantEmbedding, QuantFusedLinear, QuantLinear

__all__ = [
    "KINDS",
    "FakeQuantizer",
    "QuantConv2d",
    "QuantEmbedding",
    "QuantFusedLinear",
    "QuantLinear",
    "QuantizerSpec",
    "minmax_asymmetric",
    "minmax_symmetric",
    "twn_ternarize",
]

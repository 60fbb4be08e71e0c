"""Fake quantizers: pure functions, the modules that hold their settings, and layers that use them."""

from lowbit.quantizers.corrections import Cage, Correction, Dampening, check_correctable
from lowbit.quantizers.estimators import EWGS, STE, ClippedSTE, Estimator, StableQAT, ValueClippedSTE
from lowbit.quantizers.fake_quantizer import FakeQuantizer, StatefulQuantizer, Target
from lowbit.quantizers.functional.core import Formula
from lowbit.quantizers.grid import Grid
from lowbit.quantizers.layers import QuantConv2d, QuantEmbedding, QuantFusedLinear, QuantLinear
from lowbit.quantizers.learned import LearnedQuantizer
from lowbit.quantizers.oscillation import Freezing, OscillationTracker
from lowbit.quantizers.spec import KINDS, QuantizerSpec
from lowbit.quantizers.state import WeightSite, begin_step, calibrate, end_step, quantizers_of, weight_sites
from lowbit.quantizers.stateful import LossAwareQuantizer, StaticQuantizer, build_quantizer

__all__ = [
    "EWGS",
    "KINDS",
    "STE",
    "Cage",
    "ClippedSTE",
    "Correction",
    "Dampening",
    "Estimator",
    "FakeQuantizer",
    "Formula",
    "Freezing",
    "Grid",
    "LearnedQuantizer",
    "LossAwareQuantizer",
    "OscillationTracker",
    "QuantConv2d",
    "QuantEmbedding",
    "QuantFusedLinear",
    "QuantLinear",
    "QuantizerSpec",
    "StableQAT",
    "StatefulQuantizer",
    "StaticQuantizer",
    "Target",
    "ValueClippedSTE",
    "WeightSite",
    "begin_step",
    "build_quantizer",
    "calibrate",
    "check_correctable",
    "end_step",
    "quantizers_of",
    "weight_sites",
]

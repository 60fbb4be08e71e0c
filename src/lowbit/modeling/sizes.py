"""Simulated size: the bytes that a model would take with its low-bit weights packed, scales included.

Fake quantization trains float weights, so this is the size of an export, not of the model in memory.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from torch import Tensor

from lowbit.modeling.instrument import Instrument
from lowbit.modeling.rules import Slot
from lowbit.quantizers import QuantizerSpec, WeightSite, quantizers_of, weight_sites

_FLOAT_BITS = 32


@dataclass(frozen=True)
class ModelSize:
    """Size of a model.

    Attributes:
        float_bytes: Bytes in float32.
        simulated_bytes: Bytes when packed.
        compression: How many times smaller the packed model is.
        bits: Widths of weights, word embedding and activations, W-E-A; W-A without a word embedding.
    """

    float_bytes: int
    simulated_bytes: int
    compression: float
    bits: str

    def as_dict(self) -> dict[str, float | int | str]:
        """Return the entry of run.json."""
        return asdict(self)


def model_size(instrument: Instrument, prefix: str = "") -> ModelSize:
    """Return the size of a prepared model, or only of the parameters whose names begin with `prefix` (`bert.`).

    Every parameter of the plain model counts 32 bits in float. A quantized weight counts its storage bits and its
    scales; learned or kept numbers of input quantizers count 32 bits each.
    """
    model = instrument.model
    sites: dict[int, list[WeightSite]] = {}
    for site in weight_sites(model):
        sites.setdefault(id(site.parameter), []).append(site)
    weight_quantizers = {id(site.quantizer) for found in sites.values() for site in found}
    quantizers = {name: quantizer for name, quantizer in quantizers_of(model).items() if name.startswith(prefix)}
    theirs = {id(p) for quantizer in quantizers.values() for p in quantizer.parameters()}
    float_bits = packed_bits = 0
    for name, parameter in model.named_parameters():
        if name.startswith(prefix) and id(parameter) not in theirs:
            float_bits += parameter.numel() * _FLOAT_BITS
            packed_bits += _packed_bits(parameter, sites.get(id(parameter), []))
    for quantizer in quantizers.values():
        if id(quantizer) not in weight_quantizers:
            packed_bits += quantizer.stored_numbers * _FLOAT_BITS
    float_bytes, packed_bytes = float_bits // 8, math.ceil(packed_bits / 8)
    return ModelSize(float_bytes, packed_bytes, float_bytes / packed_bytes, _bits(instrument))


def _packed_bits(parameter: Tensor, sites: list[WeightSite]) -> int:
    whole = parameter.numel() - sum(site.weight.numel() for site in sites)
    packed = (site.quantizer.spec.packed_bits(site.weight.numel(), site.quantizer.groups) for site in sites)
    return sum(packed) + whole * _FLOAT_BITS


def _bits(instrument: Instrument) -> str:
    weights, inputs = instrument.resolved.weights, instrument.resolved.inputs
    roles = instrument.family.role_names(instrument.model)
    layers = roles["ffn_in"] + roles["query"]
    tables = roles.get("word_embedding", [])
    widths = [_width(weights, layers), *([_width(weights, tables)] if tables else []), _width(inputs, layers)]
    return "-".join(widths)


def _width(specs: dict[Slot, QuantizerSpec], modules: list[str]) -> str:
    bits = {spec.storage_bits for (name, _), spec in specs.items() if name in modules}
    return "/".join(f"{b:g}" for b in sorted(bits or {_FLOAT_BITS}))

"""Simulated size: the bytes that a model would take with its low-bit weights packed, scales included.

Fake quantization trains float weights, so this is the size of an export, not of the model in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lowbit.modeling.instrument import Instrument
from lowbit.quantizers import WeightSite, quantizers_of, weight_sites

_FLOAT_BITS = 32


@dataclass(frozen=True)
class ModelSize:
    """Bytes in float32 and packed, and the widths as W-E-A (weights, word embedding, activations; W-A without one)."""

    float_bytes: int
    simulated_bytes: int
    bits: str

    @property
    def compression(self) -> float:
        """How many times smaller the packed model is."""
        return self.float_bytes / self.simulated_bytes

    def as_dict(self) -> dict[str, float | int | str]:
        """Return the entry of run.json."""
        return {
            "float_bytes": self.float_bytes,
            "simulated_bytes": self.simulated_bytes,
            "compression": self.compression,
            "bits": self.bits,
        }


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
            packed_bits += _packed(parameter, sites.get(id(parameter), []))
    for quantizer in quantizers.values():
        if id(quantizer) not in weight_quantizers:
            packed_bits += quantizer.stored_numbers * _FLOAT_BITS
    return ModelSize(float_bits // 8, math.ceil(packed_bits / 8), _bits(instrument))


def _packed(parameter: Tensor, sites: list[WeightSite]) -> int:
    bits, left = 0, parameter.numel()
    for site in sites:
        elements = site.weight.numel()
        bits += site.quantizer.spec.packed_bits(elements, site.quantizer.groups)
        left -= elements
    return bits + left * _FLOAT_BITS


def _bits(instrument: Instrument) -> str:
    resolved = instrument.resolved
    roles = instrument.family.role_names(instrument.model)
    embeddings = set(roles.get("word_embedding", []))
    layers = set(roles["ffn_in"] + roles["query"])
    weights = [spec.storage_bits for (name, _), spec in resolved.weights.items() if name in layers]
    tables = [spec.storage_bits for (name, _), spec in resolved.weights.items() if name in embeddings]
    inputs = [spec.storage_bits for (name, _), spec in resolved.inputs.items() if name in layers]
    return "-".join((_width(weights), *([_width(tables)] if embeddings else []), _width(inputs)))


def _width(bits: list[float]) -> str:
    return "/".join(f"{b:g}" for b in sorted(set(bits))) if bits else str(_FLOAT_BITS)

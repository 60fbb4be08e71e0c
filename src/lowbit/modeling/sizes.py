"""Simulated size: the bytes a model would take with its low-bit weights packed, scales included.

Fake quantization trains float weights, so this is what an export would store, not what is in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lowbit.modeling.families import QKV
from lowbit.modeling.instrument import Instrument
from lowbit.quantizers import QuantizerSpec

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
    """Return the size of a prepared model; `prefix` limits it to parameters of that name prefix (`bert.`).

    Every parameter counts 32 bits in float; a quantized weight counts its storage bits plus 32 bits per scale.
    """
    specs = _weight_specs(instrument)
    float_bits = packed_bits = 0
    for name, parameter in instrument.model.named_parameters():
        if not name.startswith(prefix):
            continue
        float_bits += parameter.numel() * _FLOAT_BITS
        blocks = specs.get(name, [])
        if not blocks:
            packed_bits += parameter.numel() * _FLOAT_BITS
        for spec, rows in blocks:
            packed_bits += _packed(parameter, rows, spec)
    return ModelSize(float_bits // 8, math.ceil(packed_bits / 8), _bits(instrument))


def _weight_specs(instrument: Instrument) -> dict[str, list[tuple[QuantizerSpec | None, int]]]:
    """Map weight names to (quantizer, rows) blocks; a layer without row blocks is one block of all rows."""
    found: dict[str, list[tuple[QuantizerSpec | None, int]]] = {}
    weights = instrument.resolved.weights
    for name in dict.fromkeys(name for name, _ in weights):
        rows = instrument.model.get_submodule(name).weight.shape[0]  # type: ignore[index]
        if (name, None) in weights:
            found[f"{name}.weight"] = [(weights[name, None], int(rows))]
        else:
            found[f"{name}.weight"] = [(weights.get((name, role)), int(rows) // len(QKV)) for role in QKV]
    return found


def _packed(parameter: Tensor, rows: int, spec: QuantizerSpec | None) -> int:
    elements = parameter.numel() // parameter.shape[0] * rows
    if spec is None:
        return elements * _FLOAT_BITS
    groups = rows if spec.granularity == "row" else 1
    return elements * spec.storage_bits + groups * spec.numbers_per_group * _FLOAT_BITS


def _bits(instrument: Instrument) -> str:
    resolved = instrument.resolved
    roles = instrument.family.role_names(instrument.model)
    embeddings = set(roles.get("word_embedding", []))
    layers = set(roles["ffn_in"] + roles["query"])
    weights = [spec.storage_bits for (name, _), spec in resolved.weights.items() if name in layers]
    tables = [spec.storage_bits for (name, _), spec in resolved.weights.items() if name in embeddings]
    inputs = [spec.storage_bits for (name, _), spec in resolved.inputs.items() if name in layers]
    return "-".join((_width(weights), *([_width(tables)] if embeddings else []), _width(inputs)))


def _width(bits: list[int]) -> str:
    return "/".join(str(b) for b in sorted(set(bits))) if bits else str(_FLOAT_BITS)

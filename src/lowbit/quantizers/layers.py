"""Quantized layers that adopt the Parameters of a float module: same objects, same state-dict keys.

Shape suffixes: B batch, L tokens, E input width, O output width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.quantizers.fake_quantizer import FakeQuantizer, Target
from lowbit.quantizers.spec import QuantizerSpec
from lowbit.quantizers.state import WeightSite
from lowbit.quantizers.stateful import build_quantizer

M = TypeVar("M", bound=nn.Module)
_SHARED = "shared"


def _adopt(layer: M, source: nn.Module, *, initialize: bool) -> M:
    """Give `layer` the Parameters, buffers and mode of `source`; set the scales of its weights if asked to."""
    for name, parameter in source._parameters.items():
        layer.register_parameter(name, parameter)
    layer.training = source.training
    if initialize:
        for site in layer.weight_sites(""):  # type: ignore[operator]
            site.quantizer.initialize(site.weight)
    return layer


def weight_quantizer(
    spec: QuantizerSpec | None, weight: Tensor, heads: tuple[int, int] | None = None
) -> FakeQuantizer | None:
    """Return a weight's quantizer, its scale still to be set."""
    if spec is None:
        return None
    return build_quantizer(spec, Target(tuple(weight.shape), weight, weight=True, heads=heads))


def input_quantizer(spec: QuantizerSpec | None, shape: tuple[int, ...], like: Tensor) -> FakeQuantizer | None:
    """Return the quantizer of an input with these trailing dimensions; a learned scale is still to be calibrated."""
    return None if spec is None else build_quantizer(spec, Target(shape, like))


def _quantize(quantizer: nn.Module | None, x: Tensor) -> Tensor:
    return x if quantizer is None else quantizer(x)


class _QuantizedLayer(nn.Module):
    """What the layers share: a weight and an input quantizer, either of which may be absent."""

    weight_quantizer: FakeQuantizer | None
    input_quantizer: FakeQuantizer | None

    def weight_sites(self, name: str) -> Iterator[WeightSite]:
        """Yield the weight, if it is quantized."""
        if self.weight_quantizer is not None:
            yield WeightSite(name, self.weight, self.weight_quantizer)  # type: ignore[arg-type]


class QuantLinear(_QuantizedLayer, nn.Linear):
    """Linear layer with fake-quantized weight and input; the bias stays full precision."""

    @classmethod
    def from_float(
        cls,
        source: nn.Linear,
        weight: QuantizerSpec | None,
        input: QuantizerSpec | None,
        heads: tuple[int, int] | None = None,
        *,
        initialize: bool = True,
    ) -> Self:
        """Adopt the Parameters of `source`; `heads`, see `Target`, is for scales per attention head."""
        layer = cls(source.in_features, source.out_features, bias=source.bias is not None, device="meta")
        layer.weight_quantizer = weight_quantizer(weight, source.weight, heads)
        layer.input_quantizer = input_quantizer(input, (source.in_features,), source.weight)
        return _adopt(layer, source, initialize=initialize)

    def forward(self, x_BLE: Tensor) -> Tensor:
        """Return Q(x) Q(W)^T + b, shape BLO."""
        return F.linear(
            _quantize(self.input_quantizer, x_BLE), _quantize(self.weight_quantizer, self.weight), self.bias
        )


class QuantEmbedding(_QuantizedLayer, nn.Embedding):
    """Embedding whose rows are fake-quantized.

    With one scale per row only the rows in the batch are quantized, after the look-up: the same values and the same
    gradient as quantizing the whole table first, at a tenth of the time for a BERT vocabulary.
    """

    @classmethod
    def from_float(
        cls,
        source: nn.Embedding,
        weight: QuantizerSpec | None,
        input: QuantizerSpec | None,
        *,
        initialize: bool = True,
    ) -> Self:
        """Adopt the Parameters of `source`.

        Raises:
            ValueError: an input quantizer was given (the input is integer ids), or the embedding renormalises.
        """
        if input is not None:
            raise ValueError("an embedding has no float input: remove `input` from the rule that matches it")
        if source.max_norm is not None:
            raise ValueError("an embedding with max_norm cannot be quantized: it renormalises its own weight")
        if source.sparse and weight is not None:
            raise ValueError("an embedding with sparse gradients cannot be quantized: build it with sparse=False")
        layer = cls(
            source.num_embeddings,
            source.embedding_dim,
            padding_idx=source.padding_idx,
            scale_grad_by_freq=source.scale_grad_by_freq,
            sparse=source.sparse,
            device="meta",
        )
        layer.weight_quantizer = weight_quantizer(weight, source.weight)
        layer.input_quantizer = None
        return _adopt(layer, source, initialize=initialize)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Return the quantized rows, shape BLE."""
        if self.weight_quantizer is None:
            return self._look_up(ids_BL, self.weight)
        quantizer = self.weight_quantizer
        if quantizer.by_rows:
            return quantizer.quantize_rows(ids_BL, self.weight, self._look_up)
        return self._look_up(ids_BL, quantizer(self.weight))

    def _look_up(self, ids_BL: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(
            ids_BL, weight, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse
        )


class QuantConv2d(_QuantizedLayer, nn.Conv2d):
    """2-D convolution (patch embedding) with fake-quantized weight and input."""

    @classmethod
    def from_float(
        cls,
        source: nn.Conv2d,
        weight: QuantizerSpec | None,
        input: QuantizerSpec | None,
        *,
        initialize: bool = True,
    ) -> Self:
        """Adopt the Parameters of `source`."""
        layer = cls(
            source.in_channels,
            source.out_channels,
            source.kernel_size,  # type: ignore[arg-type]
            stride=source.stride,  # type: ignore[arg-type]
            padding=source.padding,  # type: ignore[arg-type]
            dilation=source.dilation,  # type: ignore[arg-type]
            groups=source.groups,
            bias=source.bias is not None,
            padding_mode=source.padding_mode,
            device="meta",
        )
        layer.weight_quantizer = weight_quantizer(weight, source.weight)
        layer.input_quantizer = input_quantizer(input, (source.in_channels, 1, 1), source.weight)
        return _adopt(layer, source, initialize=initialize)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve Q(x) with Q(W)."""
        weight = _quantize(self.weight_quantizer, self.weight)
        output: Tensor = self._conv_forward(_quantize(self.input_quantizer, x), weight, self.bias)
        return output


class QuantFusedLinear(nn.Linear):
    """A linear layer whose row blocks are separate matrices in one Parameter (timm's `qkv`).

    Each block has its own weight quantizer, so a per-tensor scale belongs to one matrix and not to three; inputs may
    differ by block, which is how a stop-gradient reaches query and key but not value.
    """

    @classmethod
    def from_float(
        cls,
        source: nn.Linear,
        specs: Mapping[str, tuple[QuantizerSpec | None, QuantizerSpec | None]],
        heads: tuple[int, int] | None = None,
        *,
        initialize: bool = True,
    ) -> Self:
        """Adopt the Parameters of `source`; `specs` maps each block, in row order, to (weight, input) settings.

        `heads`, see `Target`, is that of one block.

        Raises:
            ValueError: the rows cannot be divided evenly into the blocks.
        """
        if source.out_features % len(specs):
            raise ValueError(f"{source.out_features} output rows cannot be divided into {len(specs)} blocks")
        layer = cls(source.in_features, source.out_features, bias=source.bias is not None, device="meta")
        layer.blocks = tuple(specs)
        rows = source.out_features // len(specs)
        layer._bounds = tuple(pairwise(range(0, source.out_features + 1, rows)))
        layer.weight_quantizers = nn.ModuleDict()
        for (name, (weight, _)), (start, stop) in zip(specs.items(), layer._bounds, strict=True):
            quantizer = weight_quantizer(weight, source.weight[start:stop], heads)
            if quantizer is not None:
                layer.weight_quantizers[name] = quantizer
        inputs = {name: given for name, (_, given) in specs.items()}
        layer._one_input = len(set(inputs.values())) == 1
        if layer._one_input:  # the blocks read one tensor: where they agree on its quantizer, it has one
            inputs = {_SHARED: next(iter(inputs.values()))}
        layer.input_quantizers = nn.ModuleDict()
        for name, given in inputs.items():
            quantizer = input_quantizer(given, (source.in_features,), source.weight)
            if quantizer is not None:
                layer.input_quantizers[name] = quantizer
        return _adopt(layer, source, initialize=initialize)

    blocks: tuple[str, ...]
    weight_quantizers: nn.ModuleDict
    input_quantizers: nn.ModuleDict
    _bounds: tuple[tuple[int, int], ...]
    _one_input: bool

    def forward(self, x_BLE: Tensor, detached: frozenset[str] = frozenset()) -> Tensor:
        """Return all blocks side by side, shape BLO; the input of the blocks named in `detached` gets no gradient."""
        weights = [self._weight(name, bounds) for name, bounds in zip(self.blocks, self._bounds, strict=True)]
        if self._one_input and len(detached) in (0, len(self.blocks)):
            x_BLE = x_BLE.detach() if detached else x_BLE
            x_BLE = _quantize(self._input_quantizer(self.blocks[0]), x_BLE)
            return F.linear(x_BLE, torch.cat(weights), self.bias)
        outputs = []
        for name, weight, (start, stop) in zip(self.blocks, weights, self._bounds, strict=True):
            x = x_BLE.detach() if name in detached else x_BLE
            bias = None if self.bias is None else self.bias[start:stop]
            outputs.append(F.linear(_quantize(self._input_quantizer(name), x), weight, bias))
        return torch.cat(outputs, dim=-1)

    def weight_sites(self, name: str) -> Iterator[WeightSite]:
        """Yield the quantized blocks."""
        weight: Any = self.weight
        for block, bounds in zip(self.blocks, self._bounds, strict=True):
            if block in self.weight_quantizers:
                yield WeightSite(f"{name}.{block}", weight, self._get(self.weight_quantizers, block), slice(*bounds))

    def _weight(self, name: str, bounds: tuple[int, int]) -> Tensor:
        return _quantize(self._get(self.weight_quantizers, name), self.weight[bounds[0] : bounds[1]])

    def _input_quantizer(self, name: str) -> Any:
        return self._get(self.input_quantizers, _SHARED if self._one_input else name)

    @staticmethod
    def _get(quantizers: nn.ModuleDict, name: str) -> Any:
        return quantizers[name] if name in quantizers else None  # noqa: SIM401  (ModuleDict has no get)

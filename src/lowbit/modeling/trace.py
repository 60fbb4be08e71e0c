"""LayerTrace and Trace: the tensors that a forward pass records besides its output.

Shape suffixes: B batch, H heads, L tokens, D head width, E hidden width, C classes, S ends of a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from torch import Tensor


@dataclass(frozen=True)
class LayerTrace:
    """Tensors of one layer; a field that was not asked for is None.

    In Swin attention runs inside windows: up to `attn_out`, B counts windows (those of image 0 first) and L the tokens
    of one, padding and cyclic shift included; from `attn_block` on, B counts images and L the tokens of a stage.

    Attributes:
        scores: scaled QK^T, plus relative position bias in Swin, before the mask and the softmax, BHLL.
        probs: softmax output before dropout, BHLL.
        context: probs @ V before merging heads, BHLD.
        attn_out: output projection before dropout, residual and norm, BLE.
        attn_block: attention sub-layer after the residual (and the norm in post-norm models), BLE.
        ffn_out: second feed-forward projection before dropout, residual and norm, BLE.
        hidden: layer output, BLE.
    """

    scores: Tensor | None = None
    probs: Tensor | None = None
    context: Tensor | None = None
    attn_out: Tensor | None = None
    attn_block: Tensor | None = None
    ffn_out: Tensor | None = None
    hidden: Tensor | None = None


LAYER_FIELDS = frozenset(f.name for f in fields(LayerTrace))
FIELDS = LAYER_FIELDS | {"embeddings"}


@dataclass(frozen=True)
class Trace:
    """One forward pass: its logits, and what was asked for of the embeddings (BLE) and of each layer.

    Logits are BC; BSL for spans; BLC for tags of words, of which losses see those of the words only (`at_tokens`).

    `key_mask` is True at real tokens, BL; None if nothing is padded.
    """

    logits: Tensor
    layers: tuple[LayerTrace, ...] = ()
    embeddings: Tensor | None = None
    key_mask: Tensor | None = None

    def at_tokens(self, chosen_BL: Tensor) -> Trace:
        """Return the trace with the logits of some tokens only, one below the other: BC, with B counting tokens."""
        return replace(self, logits=self.logits[chosen_BL])

    def select(self, layer_map: Sequence[int] | None, embedding_target: int | None = None) -> Trace:
        """Return the trace with layer i replaced by layer `layer_map[i]`; None keeps all layers in order.

        With an `embedding_target` the embeddings become the output of that layer, where it was asked for.
        """
        chosen = self
        if embedding_target is not None and self.embeddings is not None:
            chosen = replace(chosen, embeddings=self.layers[embedding_target].hidden)
        if layer_map is None:
            return chosen
        return replace(chosen, layers=tuple(self.layers[index] for index in layer_map))

"""LayerTrace and Trace: what leaves a model besides its output, and the Tape that collects it.

Shape suffixes: B batch, H heads, L tokens, D head width, E hidden width, C classes, S ends of a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from lowbit.modeling.intervention import Plan


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


@dataclass
class Tape:
    """What the instrumented modules of one model share during a forward pass.

    The plan outlives the forward because gradient checkpointing runs layers again during the backward; recording does
    not, so that a second run leaves nothing behind.
    """

    fields: frozenset[str] = frozenset()
    plan: Plan | None = None
    recording: bool = False
    layers: list[dict[str, Tensor]] = field(default_factory=list)
    embeddings: Tensor | None = None

    def begin(self, fields: frozenset[str], plan: Plan | None, depth: int) -> None:
        """Start a forward pass of `depth` layers."""
        self.fields, self.plan, self.recording = fields, plan, True
        self.layers = [{} for _ in range(depth)]
        self.embeddings = None

    def end(self, logits: Tensor, key_mask: Tensor | None) -> Trace:
        """Finish the forward pass and hand over what was recorded."""
        trace = Trace(logits, tuple(LayerTrace(**layer) for layer in self.layers), self.embeddings, key_mask)
        self.recording, self.layers, self.embeddings = False, [], None
        return trace

    def records(self, point: str) -> bool:
        """Whether this field of every layer is asked for now."""
        return self.recording and point in self.fields

    def exchange(self, layer: int, point: str, own: Tensor) -> Tensor:
        """Record the model's own tensor if asked for; return the one to compute with."""
        if self.records(point):
            self.layers[layer][point] = own
        return own if self.plan is None else self.plan.replace(layer, point, own)

    def detaches(self, layer: int, role: str) -> bool:
        """Whether the input of the `role` projection is cut off from the gradient."""
        return self.plan is not None and self.plan.detaches(layer, role)

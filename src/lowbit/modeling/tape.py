"""Tape: collects the trace of one forward pass, and puts the teacher's tensors in place of the model's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from lowbit.modeling.intervention import Plan
from lowbit.modeling.trace import LayerTrace, Trace


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

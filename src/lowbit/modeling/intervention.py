"""Teacher intervention: which student tensors are replaced by the teacher's in one forward pass.

The plan is an argument of the forward pass and never stored in a model or its config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowbit.modeling.trace import Trace

SITES = ("probs", "context", "attn_out", "ffn_out", "hidden")
_DETACHED = {"probs": ("query", "key"), "context": ("query", "key", "value"), "attn_out": ("query", "key", "value")}


@dataclass(frozen=True)
class Intervention:
    """Sites that are replaced, in which layers, how far, and whether the published stop-gradients apply.

    Under `probs` the inputs of Q and K are detached; under `context` and `attn_out` those of Q, K and V: the score
    loss then trains its own layer's projections only. Source: Teacher Intervention (arXiv 2302.11812), released code.

    Attributes:
        sites: object of `SITES`.
        layers: Student layers, counted from 0; None for all.
        mix: Share of the teacher: the student computes with (1 - mix) student + mix teacher.
        site_mix: Shares of the sites for which they differ from `mix`.
        stop_gradient: Whether to apply the stop-gradients above.

    Raises:
        ValueError: If a site is unknown, or a share is outside [0, 1].
    """

    sites: frozenset[str]
    layers: frozenset[int] | None = None
    mix: float = 1.0
    stop_gradient: bool = True
    site_mix: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(self.sites - set(SITES))
        if unknown:
            raise ValueError(f"intervention site {unknown[0]!r}: allowed are {', '.join(SITES)}")
        for site in sorted(self.site_mix.keys() - self.sites):
            raise ValueError(f"intervention site_mix names {site!r}, the sites are {', '.join(sorted(self.sites))}")
        for mix in (self.mix, *self.site_mix.values()):
            if not 0 <= mix <= 1:
                raise ValueError(f"intervention mix={mix}: allowed is a number from 0 to 1")

    def mix_of(self, site: str) -> float:
        """Return the teacher's share at a site; 0 for a site that is not intervened."""
        return self.site_mix.get(site, self.mix) if site in self.sites else 0.0

    def covers(self, layer: int) -> bool:
        """Whether the layer is intervened."""
        return self.layers is None or layer in self.layers


@dataclass(frozen=True)
class Plan:
    """An intervention together with the teacher's tensors for this batch.

    Raises:
        ValueError: If the teacher's trace lacks a tensor that the intervention needs.
    """

    intervention: Intervention
    teacher: Trace

    def __post_init__(self) -> None:
        for index, layer in enumerate(self.teacher.layers):
            for site in sorted(self.intervention.sites):
                if self.intervention.covers(index) and getattr(layer, site) is None:
                    raise ValueError(
                        f"intervention on {site!r} needs the teacher's {site!r} of layer {index}, which its forward "
                        "pass did not record: add it to the fields of the teacher's forward"
                    )
        if not self.teacher.layers:
            raise ValueError("intervention needs the teacher's layer tensors, but its trace has no layers")

    def replace(self, layer: int, site: str, own: Tensor) -> Tensor:
        """Return the tensor to compute with at this point: the teacher's, a mix, or the student's own.

        Raises:
            ValueError: If the teacher has no such layer, or the tensors differ in shape.
        """
        mix = self.intervention.mix_of(site)
        if mix == 0 or not self.intervention.covers(layer):
            return own
        if layer >= len(self.teacher.layers):
            raise ValueError(
                f"intervention on {site!r}, layer {layer}: the teacher's trace has {len(self.teacher.layers)} layers; "
                "give a layer_map with one teacher layer per student layer"
            )
        theirs: Tensor = getattr(self.teacher.layers[layer], site).detach().to(own.dtype)
        if theirs.shape != own.shape:
            raise ValueError(
                f"intervention on {site!r}, layer {layer}: teacher {tuple(theirs.shape)} and student "
                f"{tuple(own.shape)} differ in shape; choose a site at which they agree"
            )
        return theirs if mix == 1 else torch.lerp(own, theirs, mix)

    def detaches(self, layer: int, role: str) -> bool:
        """Whether the input of the query, key or value projection gets no gradient."""
        if not self.intervention.stop_gradient or not self.intervention.covers(layer):
            return False
        active = (site for site in self.intervention.sites if self.intervention.mix_of(site) > 0)
        return any(role in _DETACHED.get(site, ()) for site in active)

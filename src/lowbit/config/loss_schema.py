"""Structured configs of loss terms and interventions: what a stage compares, and what it replaces."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from lowbit.config.enums import (
    GradScale,
    LayerReduction,
    LossKind,
    MaskRule,
    ObrAggregation,
    PhaseOrder,
    Ramp,
    Reduction,
    Site,
)
from lowbit.config.fields import Of, number, setting

_LAYERS = (LossKind.hidden, LossKind.scores, LossKind.maps, LossKind.maps_mse, LossKind.attn_block, LossKind.attn_out)
_SOFT = Of("kind", (LossKind.logits,))
_MASKED = Of("kind", (LossKind.hidden, LossKind.scores, LossKind.attn_block, LossKind.attn_out))
_OF_LAYERS = Of("kind", _LAYERS)
_OBR = Of("kind", (LossKind.obr,))


@dataclass
class LossConfig:
    """One loss term; `weight` may move to `weight_end` over the stage."""

    kind: LossKind = MISSING
    weight: float = number(1.0, at_least=0)
    weight_end: float | None = number(at_least=0)
    ramp: Ramp = Ramp.constant
    reduction: Reduction = setting(Reduction.sum, of=_SOFT)
    mask: MaskRule = setting(MaskRule.full, of=_MASKED)
    temperature: float = number(1.0, above=0, of=_SOFT)
    start: float = number(0.0, at_least=0, below=1, note="a share of the stage's steps")
    layers: LayerReduction = setting(LayerReduction.sum, of=_OF_LAYERS)
    aggregation: ObrAggregation = setting(ObrAggregation.mean, of=_OBR)
    detach_step: bool = setting(True, of=_OBR)
    max_bits: float | None = number(above=0, of=_OBR)
    convolution_grad_scale: GradScale | None = setting(of=_OBR)

    @property
    def is_on(self) -> bool:
        """Whether the term ever counts; one that is off costs nothing."""
        return self.weight != 0 or self.weight_end is not None


@dataclass
class MixConfig:
    """The teacher's share at a site, 0 to 1; it may move to `mix_end` over the phase."""

    mix: float = number(1.0, at_least=0, at_most=1)
    mix_end: float | None = number(at_least=0, at_most=1)
    ramp: Ramp = Ramp.constant


@dataclass
class PhaseConfig(MixConfig):
    """A part of an intervened stage: the sites replaced, and its share of the stage's steps.

    `site_mix` holds the mixes of single sites, for example `{probs: {mix: 1, mix_end: 0, ramp: linear}}`.
    """

    sites: list[Site] = MISSING
    share: int = number(1, above=0)
    site_mix: dict[Site, MixConfig] = field(default_factory=dict)


@dataclass
class InterventionConfig:
    """Teacher intervention of one stage: phases in sequence, or one drawn at random each step."""

    phases: list[PhaseConfig] = field(default_factory=list)
    order: PhaseOrder = PhaseOrder.sequential
    layers: list[int] | None = number(at_least=0)
    stop_gradient: bool = True

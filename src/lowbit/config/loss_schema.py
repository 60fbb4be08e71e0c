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


@dataclass
class LossConfig:
    """One loss term; `weight` may move to `weight_end` over the stage."""

    kind: LossKind = MISSING
    weight: float = 1.0
    weight_end: float | None = None
    ramp: Ramp = Ramp.constant
    reduction: Reduction = Reduction.sum
    mask: MaskRule = MaskRule.full
    temperature: float = 1.0
    start: float = 0.0
    layers: LayerReduction = LayerReduction.sum
    aggregation: ObrAggregation = ObrAggregation.mean
    detach_step: bool = True
    max_bits: float | None = None
    convolution_grad_scale: GradScale | None = None

    @property
    def is_on(self) -> bool:
        """Whether the term ever counts; one that is off costs nothing."""
        return self.weight != 0 or self.weight_end is not None


@dataclass
class MixConfig:
    """The teacher's share at a site, 0 to 1; it may move to `mix_end` over the phase."""

    mix: float = 1.0
    mix_end: float | None = None
    ramp: Ramp = Ramp.constant


@dataclass
class PhaseConfig(MixConfig):
    """A part of an intervened stage: the sites replaced, and its share of the stage's steps.

    `site_mix` holds the mixes of single sites, for example `{probs: {mix: 1, mix_end: 0, ramp: linear}}`.
    """

    sites: list[Site] = MISSING
    share: int = 1
    site_mix: dict[Site, MixConfig] = field(default_factory=dict)


@dataclass
class InterventionConfig:
    """Teacher intervention of one stage: phases in sequence, or one drawn at random each step."""

    phases: list[PhaseConfig] = field(default_factory=list)
    order: PhaseOrder = PhaseOrder.sequential
    layers: list[int] | None = None
    stop_gradient: bool = True

"""Settings of loss terms and interventions: what a stage compares, and what it replaces."""

import math
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any

from omegaconf import MISSING

from lowbit.settings.fields import ClassOr, Of, import_class, number, setting, word
from lowbit.settings.quantizer import GradScale


class LossKind(StrEnum):
    """What student and teacher are compared on."""

    logits = auto()
    hidden = auto()
    scores = auto()
    maps = auto()
    maps_mse = auto()
    attn_block = auto()
    attn_out = auto()
    task = auto()
    soft_labels = auto()
    obr = auto()


class Comparison(StrEnum):
    """What a loss compares, from which follows what it needs of the teacher."""

    labels = auto()  # no teacher
    weights = auto()  # no teacher, but quantized weights
    logits = auto()  # any teacher
    layers = auto()  # a teacher of the student's architecture
    heads = auto()  # the same, with as many heads


_COMPARISONS = {
    LossKind.logits: Comparison.logits,
    LossKind.hidden: Comparison.layers,
    LossKind.scores: Comparison.heads,
    LossKind.maps: Comparison.heads,
    LossKind.maps_mse: Comparison.heads,
    LossKind.attn_block: Comparison.layers,
    LossKind.attn_out: Comparison.layers,
    LossKind.task: Comparison.labels,
    LossKind.soft_labels: Comparison.labels,
    LossKind.obr: Comparison.weights,
}


class LayerReduction(StrEnum):
    """Whether a term is the sum or the mean of its layers."""

    sum = auto()
    mean = auto()


class ObrAggregation(StrEnum):
    """How OBR sums the squared distances of a weight: mean (published code), sum, or norm."""

    mean = auto()
    sum = auto()
    norm = auto()


class Reduction(StrEnum):
    """Soft cross-entropy over the classes: TI sums, TernaryBERT takes the mean. The batch is always averaged."""

    sum = auto()
    mean = auto()


class MaskRule(StrEnum):
    """`full`: padded entries count as zero, mean over all (published). `valid`: mean over unpadded entries."""

    full = auto()
    valid = auto()


class Ramp(StrEnum):
    """How a loss weight moves from `weight` to `weight_end` over a stage."""

    constant = auto()
    linear = auto()
    cosine = auto()


class Site(StrEnum):
    """A tensor inside a layer that the teacher's may replace."""

    probs = auto()
    context = auto()
    attn_out = auto()
    ffn_out = auto()
    hidden = auto()


class PhaseOrder(StrEnum):
    """How the phases of an intervention follow each other."""

    sequential = auto()
    random = auto()


_LAYERS = (LossKind.hidden, LossKind.scores, LossKind.maps, LossKind.maps_mse, LossKind.attn_block, LossKind.attn_out)
_SOFT = Of("kind", (LossKind.logits,))
_MASKED = Of("kind", (LossKind.hidden, LossKind.scores, LossKind.attn_block, LossKind.attn_out))
_OF_LAYERS = Of("kind", _LAYERS)
_OBR = Of("kind", (LossKind.obr,))


@dataclass
class LossConfig:
    """One loss term; `weight` may move to `weight_end` over the stage, from the share `start` of its steps on.

    `kind` is one of `LossKind`, or a subclass of `lowbit.losses.Loss` of your own as `module.Class`, which finds its
    settings in `options`.
    """

    kind: str = setting(MISSING, allowed=ClassOr(tuple(LossKind), "lowbit.losses.Loss", "compares"))
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
    options: dict[str, Any] = setting({}, later=True)

    @property
    def compares(self) -> Comparison:
        """What the loss compares; one of your own is imported for that."""
        if self.kind in _COMPARISONS:
            return _COMPARISONS[LossKind(self.kind)]
        try:
            compared: Comparison = import_class(self.kind).compares
        except (ValueError, AttributeError):  # which `ClassOr` explains
            return Comparison.labels
        return compared

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss reads the trace of a teacher."""
        return self.compares not in (Comparison.labels, Comparison.weights)

    @property
    def needs_same_layers(self) -> bool:
        """Whether the teacher must have the student's architecture."""
        return self.compares in (Comparison.layers, Comparison.heads)

    @property
    def is_on(self) -> bool:
        """Whether the term ever counts; one that is off costs nothing."""
        return self.weight != 0 or self.weight_end is not None

    def weight_at(self, step: int, steps: int) -> float:
        """Return the weight at step `step` (0-based) of a stage of `steps` steps."""
        first = self.start * steps
        progress = min(max(step - first, 0.0) / max(steps - 1 - first, 1), 1.0)
        return _ramped(self.weight, self.weight_end, self.ramp, progress)

    def problems(self) -> list[str]:
        """Return what is wrong with the settings together."""
        return _ramp_problems("weight_end", self.ramp, self.weight_end) if self.is_on else []


@dataclass
class MixConfig:
    """The teacher's share at a site, 0 to 1; it may move to `mix_end` over the phase."""

    mix: float = number(1.0, at_least=0, at_most=1)
    mix_end: float | None = number(at_least=0, at_most=1)
    ramp: Ramp = Ramp.constant

    def mix_at(self, progress: float) -> float:
        """Return the share at `progress`, 0 to 1, of the phase."""
        return _ramped(self.mix, self.mix_end, self.ramp, progress)

    def problems(self) -> list[str]:
        """Return what is wrong with the settings together."""
        problems = _ramp_problems("mix_end", self.ramp, self.mix_end)
        if self.mix == 0 and not self.mix_end and not getattr(self, "site_mix", None):
            problems.append("mix=0: nothing would be replaced; set a mix, or a mix_end")
        return problems


@dataclass
class PhaseConfig(MixConfig):
    """A part of an intervened stage: the sites replaced, and its share of the stage's steps.

    `site_mix` holds the mixes of single sites, for example `{probs: {mix: 1, mix_end: 0, ramp: linear}}`.
    """

    sites: list[Site] = MISSING
    share: int = number(1, above=0)
    site_mix: dict[Site, MixConfig] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Return what is wrong with the settings together."""
        problems = super().problems()
        if not self.sites:
            problems.append(f"sites: empty; allowed: {', '.join(Site)}")
        for site in self.site_mix:
            if site not in self.sites:
                problems.append(f"site_mix.{site}: not among the phase's sites; allowed: {', '.join(self.sites)}")
        return problems


@dataclass
class InterventionConfig:
    """Teacher intervention of one stage: phases in sequence, or one drawn at random each step."""

    phases: list[PhaseConfig] = field(default_factory=list)
    order: PhaseOrder = PhaseOrder.sequential
    layers: list[int] | None = number(at_least=0)
    stop_gradient: bool = True

    def problems(self) -> list[str]:
        """Return what is wrong with the settings together."""
        return [] if self.phases else ["phases: empty; give at least one phase, for example {sites: [probs]}"]


def _ramped(start: float, end: float | None, ramp: Ramp, progress: float) -> float:
    """Return the value between `start` and `end` at `progress`, 0 to 1; without an end it stays at `start`."""
    if end is None:
        return start
    if ramp == Ramp.cosine:
        progress = (1 - math.cos(math.pi * progress)) / 2
    return start + (end - start) * progress


def _ramp_problems(key: str, ramp: Ramp, end: float | None) -> list[str]:
    if (ramp == Ramp.constant) == (end is None):
        return []
    return [f"{key}={word(end)}: `ramp: linear` or `cosine` and `{key}` go together"]

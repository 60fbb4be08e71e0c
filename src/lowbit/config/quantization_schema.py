"""Structured configs of what is quantized, under which gradients and corrections."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from lowbit.config.enums import (
    Aggregation,
    CorrectionKind,
    CorrectionSchedule,
    EstimatorKind,
    GradScale,
    Granularity,
    LatVariant,
    NoiseUnit,
    QuantizerKind,
    ScaleInit,
)


@dataclass
class FakeQuantConfig:
    """One fake quantizer. Null is the kind's default; a setting that the kind does not take is refused.

    The settings are those of `lowbit.quantizers.QuantizerSpec`; `config.kinds` says which kind takes which.
    """

    kind: QuantizerKind = QuantizerKind.none
    bits: float | None = None
    granularity: Granularity = Granularity.tensor
    threshold: float | None = None
    clip: float | None = None
    center: bool | None = None
    sign_of_zero: int | None = None
    signed: bool | None = None
    symmetric: bool | None = None
    offset: bool | None = None
    shift: bool | None = None
    subtract_minimum: bool | None = None
    grad_scale: GradScale | None = None
    init: ScaleInit | None = None
    variant: LatVariant | None = None
    momentum: float | None = None
    refresh_every: int | None = None
    block_size: int | None = None
    centroids: int | None = None
    noise: NoiseUnit | None = None
    noise_rate: float | None = None


@dataclass
class EstimatorConfig:
    """One gradient estimator; each number belongs to one kind."""

    kind: EstimatorKind = EstimatorKind.published
    bound: float = 2.5
    delta: float = 1e-3
    amplitude: float = 0.21
    terms: int = 0
    amplitudes: list[float] = field(default_factory=list)


@dataclass
class EstimatorsConfig:
    """The gradient estimators of all weight quantizers (embedding included) and of all activation quantizers."""

    name: str = "published"
    weight: EstimatorConfig = field(default_factory=EstimatorConfig)
    activation: EstimatorConfig = field(default_factory=EstimatorConfig)


@dataclass
class CorrectionConfig:
    """A pull of the latent weights towards their grid: CAGE (strength, silence, schedule, coupled) or dampening."""

    name: str = "none"
    kind: CorrectionKind = CorrectionKind.none
    strength: float = 10.0
    silence: float = 0.8
    schedule: CorrectionSchedule = CorrectionSchedule.linear_ramp
    coupled: bool = False
    start: float = 0.25
    aggregation: Aggregation = Aggregation.sum


@dataclass
class OscillationConfig:
    """Oscillation of weight codes: `track` logs the percentage; `freeze` holds weights that oscillate."""

    name: str = "none"
    track: bool = False
    momentum: float = 0.001
    threshold: float = 0.005
    freeze: bool = False
    freeze_from: float = 0.1
    freeze_to: float = 0.01
    freeze_start: float = 0.25


@dataclass
class RuleConfig:
    """Which modules get which quantizers; later rules win."""

    match: list[str] = MISSING
    weight: FakeQuantConfig | None = None
    input: FakeQuantConfig | None = None
    bmm: FakeQuantConfig | None = None
    operands: list[str] = field(default_factory=lambda: ["query", "key", "probs", "value"])
    required: bool = True


@dataclass
class StageRulesConfig:
    """The rules of one stage, in place of the scheme's."""

    rules: list[RuleConfig] = field(default_factory=list)


@dataclass
class QuantizerConfig:
    """Ordered rules, and shared settings that the rules refer to.

    `by_stage` gives single stages rules of their own. Shared settings: `weight`, `embedding`, `activation` (inputs,
    in most schemes operands of attention products too), `operand`.

    `calibration_batches` training batches set the scales that start from data.
    """

    name: str = MISSING
    calibration_batches: int = 1
    weight: FakeQuantConfig = field(default_factory=FakeQuantConfig)
    embedding: FakeQuantConfig = field(default_factory=FakeQuantConfig)
    activation: FakeQuantConfig = field(default_factory=FakeQuantConfig)
    operand: FakeQuantConfig = field(default_factory=FakeQuantConfig)
    rules: list[RuleConfig] = field(default_factory=list)
    by_stage: dict[str, StageRulesConfig] = field(default_factory=dict)

"""Settings of what is quantized, under which gradients and corrections."""

from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any

from omegaconf import MISSING

from lowbit.settings.fields import ClassOr, Of, number, path_name, setting


class QuantizerKind(StrEnum):
    """A fake quantizer of `lowbit.quantizers`; `config.kinds` says what each takes."""

    none = auto()
    twn = auto()
    lat = auto()
    bwn = auto()
    statsq = auto()
    bitnet = auto()
    minmax_symmetric = auto()
    minmax_asymmetric = auto()
    xtc = auto()
    lsq = auto()
    seq = auto()
    elastic = auto()
    pact = auto()
    static = auto()
    block_noise = auto()
    ipq = auto()


class Granularity(StrEnum):
    """Which elements share one scale."""

    tensor = auto()
    row = auto()
    token = auto()
    head = auto()


class GradScale(StrEnum):
    """Factor on the gradient of LSQ's step size: 1/sqrt(N Qp), 1/sqrt(Qp sum|x|), 1/(sqrt(N) Qp), 1."""

    lsq = auto()
    l1 = auto()
    vvtq_act = auto()
    none = auto()


class ScaleInit(StrEnum):
    """Initial step size: by mean magnitude, maximum, three sigma, least squares, or the paper's own rule (elastic).

    `mean_signed` divides by the signed grid's sqrt(Qp) for unsigned grids too, as the variation-aware code does.
    """

    mean = auto()
    mean_signed = auto()
    max = auto()
    three_sigma = auto()
    mse = auto()
    paper = auto()


class LatVariant(StrEnum):
    """Loss-aware ternarization by alternation or by exact search."""

    approximate = auto()
    exact = auto()


class NoiseUnit(StrEnum):
    """What quantization noise draws at random: single weights, or rows."""

    element = auto()
    row = auto()


class EstimatorKind(StrEnum):
    """Gradient estimator of `lowbit.quantizers.estimators`; `published` is each quantizer's own."""

    published = auto()
    ste = auto()
    clipped_ste = auto()
    value_clipped_ste = auto()
    ewgs = auto()
    stable_qat = auto()


class CorrectionKind(StrEnum):
    """A pull of the latent weights towards their grid, around the optimizer step."""

    none = auto()
    cage = auto()
    dampening = auto()


class CorrectionSchedule(StrEnum):
    """CAGE's strength after its silence: a linear ramp, or all at once."""

    linear_ramp = auto()
    constant = auto()


class Aggregation(StrEnum):
    """How dampening sums the squared distances of a weight; `kernel_mean` averages over the kernel of a convolution."""

    sum = auto()
    mean = auto()
    kernel_mean = auto()


_CLIPPED = Of("kind", (EstimatorKind.value_clipped_ste,))
_EWGS = Of("kind", (EstimatorKind.ewgs,))
_STABLE = Of("kind", (EstimatorKind.stable_qat,))
_CAGE = Of("kind", (CorrectionKind.cage,))
_DAMPENING = Of("kind", (CorrectionKind.dampening,))
_CORRECTED = Of("kind", (CorrectionKind.cage, CorrectionKind.dampening))
_FROZEN = Of("freeze", (True,))
_OF_STEPS = "a share of the stage's steps"


@dataclass
class FakeQuantConfig:
    """One fake quantizer. Null is the kind's default; a setting that the kind does not take is refused.

    The settings are those of `lowbit.quantizers.QuantizerSpec`; `config.kinds` says which kind takes which. `kind` may
    also be a subclass of `lowbit.quantizers.Formula` of your own as `module.Class`, which is given the dimensions that
    share a scale, `bits` and `options`.
    """

    kind: str = setting("none", allowed=ClassOr(tuple(QuantizerKind), "lowbit.quantizers.Formula", "quantize"))
    bits: float | None = number(above=0, at_most=32)
    granularity: Granularity = Granularity.tensor
    threshold: float | None = number(above=0)
    clip: float | None = number(above=0)
    center: bool | None = None
    sign_of_zero: int | None = number(at_least=0, at_most=1)
    signed: bool | None = None
    symmetric: bool | None = None
    offset: bool | None = None
    shift: bool | None = None
    subtract_minimum: bool | None = None
    grad_scale: GradScale | None = None
    init: ScaleInit | None = None
    variant: LatVariant | None = None
    momentum: float | None = number(at_least=0, below=1)
    refresh_every: int | None = number(above=0)
    block_size: int | None = number(above=0)
    centroids: int | None = number(above=0)
    noise: NoiseUnit | None = None
    noise_rate: float | None = number(at_least=0, at_most=1, note="a probability")
    options: dict[str, Any] = setting({}, later=True)


@dataclass
class EstimatorConfig:
    """One gradient estimator; each number belongs to one kind."""

    kind: EstimatorKind = EstimatorKind.published
    bound: float = number(2.5, above=0, of=_CLIPPED)
    delta: float = number(1e-3, at_least=0, at_most=2, note="beyond 2 gradients change sign", of=_EWGS)
    amplitude: float = number(0.21, at_least=0, at_most=1, of=_STABLE)
    terms: int = number(0, at_least=0, at_most=100, of=_STABLE)
    amplitudes: list[float] = number([], at_least=-1, at_most=1, of=_STABLE)


@dataclass
class EstimatorsConfig:
    """The gradient estimators of all weight quantizers (embedding included) and of all activation quantizers."""

    name: str = path_name("published")
    weight: EstimatorConfig = field(default_factory=EstimatorConfig)
    activation: EstimatorConfig = field(default_factory=EstimatorConfig)


@dataclass
class CorrectionConfig:
    """A pull of the latent weights towards their grid: CAGE (strength, silence, schedule, coupled) or dampening."""

    name: str = path_name("none")
    kind: CorrectionKind = CorrectionKind.none
    strength: float = number(10.0, above=0, of=_CORRECTED)
    silence: float = number(0.8, at_least=0, below=1, note=_OF_STEPS, of=_CAGE)
    schedule: CorrectionSchedule = setting(CorrectionSchedule.linear_ramp, of=_CAGE)
    coupled: bool = setting(False, of=_CAGE)
    start: float = number(0.25, at_least=0, below=1, note=_OF_STEPS, of=_DAMPENING)
    aggregation: Aggregation = setting(Aggregation.sum, of=_DAMPENING)


@dataclass
class OscillationConfig:
    """Oscillation of weight codes: `track` logs the percentage; `freeze` holds weights that oscillate."""

    name: str = path_name("none")
    track: bool = False
    momentum: float = number(0.001, above=0, at_most=1)
    threshold: float = number(0.005, above=0, below=1)
    freeze: bool = False
    freeze_from: float = number(0.1, above=0, below=1, of=_FROZEN)
    freeze_to: float = number(0.01, above=0, below=1, of=_FROZEN)
    freeze_start: float = number(0.25, at_least=0, below=1, note=_OF_STEPS, of=_FROZEN)


@dataclass
class RuleConfig:
    """Which modules get which quantizers, mostly by `${quantizer.weight}` and the like; later rules win."""

    match: list[str] = MISSING
    weight: FakeQuantConfig | None = setting(refers=True)
    input: FakeQuantConfig | None = setting(refers=True)
    bmm: FakeQuantConfig | None = setting(refers=True)
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

    name: str = path_name(MISSING)
    calibration_batches: int = number(1, above=0)
    weight: FakeQuantConfig = field(default_factory=FakeQuantConfig)
    embedding: FakeQuantConfig = field(default_factory=FakeQuantConfig)
    activation: FakeQuantConfig = field(default_factory=FakeQuantConfig)
    operand: FakeQuantConfig = field(default_factory=FakeQuantConfig)
    rules: list[RuleConfig] = field(default_factory=list)
    by_stage: dict[str, StageRulesConfig] = field(default_factory=dict)

"""Structured configs: every key of every group with its type, default and meaning.

The names of enum members are the words that a user writes in YAML and on the command line.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from omegaconf import MISSING


class DataKind(Enum):
    """Where the examples come from."""

    digits = auto()
    agreement = auto()


class TokenizerKind(Enum):
    """Who turns text into token ids: the data set's own word list, or the model's tokenizer."""

    words = auto()
    model = auto()


class Padding(Enum):
    """To which length the sentences of a batch are padded."""

    longest = auto()
    max_length = auto()


class ModelKind(Enum):
    """How a model is built: three random-init architectures, a Hugging Face folder or hub name, a timm name."""

    bert = auto()
    vit = auto()
    timm_vit = auto()
    hf = auto()
    timm = auto()


class TeacherSource(Enum):
    """Where the teacher's weights come from."""

    finetune = auto()
    path = auto()


class QuantizerKind(Enum):
    """A fake quantizer of `lowbit.quantizers.functional`."""

    none = auto()
    twn = auto()
    minmax_symmetric = auto()
    minmax_asymmetric = auto()


class Granularity(Enum):
    """Which elements share one scale."""

    tensor = auto()
    row = auto()
    token = auto()
    head = auto()


class OptimizerKind(Enum):
    """An optimizer of `lowbit.training.optimizers`."""

    adamw = auto()
    bert_adam = auto()


class StepCounter(Enum):
    """Which step count BertAdam's schedule reads: each parameter's own (published) or the stage's."""

    parameter = auto()
    shared = auto()


class SchedulerKind(Enum):
    """Shape of the learning rate after the warm-up."""

    linear = auto()
    cosine = auto()
    constant = auto()


class LossKind(Enum):
    """What student and teacher are compared on."""

    logits = auto()
    hidden = auto()
    scores = auto()
    maps = auto()
    attn_block = auto()
    attn_out = auto()
    task = auto()


class Reduction(Enum):
    """Soft cross-entropy over the classes: TI sums, TernaryBERT takes the mean. The batch is always averaged."""

    sum = auto()
    mean = auto()


class MaskRule(Enum):
    """`full`: padded entries count as zero, mean over all (published). `valid`: mean over unpadded entries."""

    full = auto()
    valid = auto()


class Ramp(Enum):
    """How a loss weight moves from `weight` to `weight_end` over a stage."""

    constant = auto()
    linear = auto()
    cosine = auto()


class Site(Enum):
    """A tensor inside a layer that the teacher's may replace."""

    probs = auto()
    context = auto()
    attn_out = auto()
    ffn_out = auto()
    hidden = auto()


class PhaseOrder(Enum):
    """How the phases of an intervention follow each other."""

    sequential = auto()
    random = auto()


class StudentInit(Enum):
    """Where a stage's student comes from."""

    teacher = auto()
    previous = auto()
    fresh = auto()


class LoggerMode(Enum):
    """W&B: `auto` is online if WANDB_API_KEY is set, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class Precision(Enum):
    """Lightning precision; names without the dash, which Python does not allow."""

    float32 = "32-true"
    float64 = "64-true"
    bf16_mixed = "bf16-mixed"
    fp16_mixed = "16-mixed"


@dataclass
class DataConfig:
    """A data set and how it is batched."""

    name: str = MISSING
    kind: DataKind = MISSING
    batch_size: int = 32
    eval_batch_size: int = 256
    augment: bool = False
    train_size: int | None = None
    eval_size: int | None = None
    tokenizer: TokenizerKind = TokenizerKind.words
    padding: Padding = Padding.longest
    max_length: int | None = None
    split_seed: int = 0
    num_workers: int = 0


@dataclass
class ModelConfig:
    """An architecture; sizes apply to the random-init kinds, `path` to `hf`, `timm_name` to `timm`."""

    name: str = MISSING
    kind: ModelKind = MISSING
    hidden_size: int = 64
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 256
    dropout: float = 0.1
    max_positions: int = 64
    patch_size: int = 2
    path: str | None = None
    package: str | None = None
    timm_name: str | None = None
    pretrained: bool = False


@dataclass
class OptimizerConfig:
    """Optimizer and its numbers; parameters of fewer than two dimensions are never decayed."""

    kind: OptimizerKind = OptimizerKind.adamw
    lr: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float | None = 1.0
    step_counter: StepCounter = StepCounter.parameter


@dataclass
class SchedulerConfig:
    """Learning-rate multiplier over the steps of one stage."""

    kind: SchedulerKind = SchedulerKind.linear
    warmup: float = 0.1


@dataclass
class OptimizerChanges:
    """What one stage changes of `optimizer`; null keeps the run's value."""

    kind: OptimizerKind | None = None
    lr: float | None = None
    weight_decay: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    max_grad_norm: float | None = None
    step_counter: StepCounter | None = None


@dataclass
class SchedulerChanges:
    """What one stage changes of `scheduler`; null keeps the run's value."""

    kind: SchedulerKind | None = None
    warmup: float | None = None


@dataclass
class BudgetConfig:
    """Total optimizer steps of a recipe: `steps`, or `epochs` of ceil(rows / batch size) steps each."""

    steps: int | None = None
    epochs: float | None = None


@dataclass
class TeacherConfig:
    """How the full-precision teacher is obtained."""

    source: TeacherSource = TeacherSource.finetune
    path: str | None = None
    seed: int = 1
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)


@dataclass
class FakeQuantConfig:
    """One fake quantizer. `bits` is for the min-max grids; a ternary quantizer has its own kind."""

    kind: QuantizerKind = QuantizerKind.none
    bits: int | None = None
    granularity: Granularity = Granularity.tensor
    threshold: float = 0.7
    clip: float | None = 2.5


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
class QuantizerConfig:
    """Ordered rules; `weight`, `embedding` and `activation` are shared settings that the rules refer to."""

    name: str = MISSING
    weight: FakeQuantConfig = field(default_factory=FakeQuantConfig)
    embedding: FakeQuantConfig = field(default_factory=FakeQuantConfig)
    activation: FakeQuantConfig = field(default_factory=FakeQuantConfig)
    rules: list[RuleConfig] = field(default_factory=list)


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


@dataclass
class PhaseConfig:
    """A part of an intervened stage: the sites replaced, and its share of the stage's steps."""

    sites: list[Site] = MISSING
    share: int = 1
    mix: float = 1.0


@dataclass
class InterventionConfig:
    """Teacher intervention of one stage: phases in sequence, or one drawn at random each step."""

    phases: list[PhaseConfig] = field(default_factory=list)
    order: PhaseOrder = PhaseOrder.sequential
    layers: list[int] | None = None
    stop_gradient: bool = True


@dataclass
class StageConfig:
    """One stage: budget (at most one of steps, epochs, fraction; none means the rest) and slots that differ."""

    steps: int | None = None
    epochs: float | None = None
    fraction: float | None = None
    student: StudentInit = StudentInit.teacher
    teacher: bool = True
    quantize: bool = True
    losses: dict[str, LossConfig] | None = None
    intervention: InterventionConfig | None = None
    optimizer: OptimizerChanges = field(default_factory=OptimizerChanges)
    scheduler: SchedulerChanges = field(default_factory=SchedulerChanges)


@dataclass
class MethodConfig:
    """A recipe: ordered stages, and the losses of every stage that does not name its own."""

    name: str = MISSING
    losses: dict[str, LossConfig] = field(default_factory=dict)
    stages: dict[str, StageConfig] = MISSING
    layer_map: list[int] | None = None


@dataclass
class TrainerConfig:
    """Hardware, precision and intervals; only `precision` is part of a run's identity."""

    accelerator: str = "auto"
    devices: int = 1
    precision: Precision = Precision.float32
    threads: int | None = None
    eval_every: int | None = None
    checkpoint_every: int = 100
    log_every: int = 10
    progress: bool = True


@dataclass
class LoggerConfig:
    """Weights & Biases; metrics.csv is always written."""

    mode: LoggerMode = LoggerMode.auto
    project: str = "lowbit"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class PathsConfig:
    """Where results go."""

    outputs: str = "outputs"


@dataclass
class Config:
    """The root: one value of it is one run."""

    name: str = "${data.name}/${method.name}"
    sweep: str | None = None
    seed: int = 1
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)

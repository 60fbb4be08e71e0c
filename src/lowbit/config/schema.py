"""Structured configs: every key of every group with its type, default and meaning."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from lowbit.config.enums import (
    Activation,
    Aggregation,
    CorrectionKind,
    CorrectionSchedule,
    DataKind,
    DataSource,
    EstimatorKind,
    GlueTask,
    GradScale,
    Granularity,
    LatVariant,
    LayerReduction,
    LoggerMode,
    LossKind,
    MaskRule,
    ModelKind,
    NoiseUnit,
    ObrAggregation,
    OnBadRow,
    OptimizerKind,
    Padding,
    PhaseOrder,
    Precision,
    QuantizerKind,
    Ramp,
    Reduction,
    ScaleInit,
    ScaleUpdate,
    SchedulerKind,
    Site,
    SquadVersion,
    StepCounter,
    StudentInit,
    TeacherSource,
    TokenizerKind,
    XglueTask,
)
from lowbit.config.image_schema import ImageConfig
from lowbit.config.loss_schema import InterventionConfig, LossConfig, MixConfig, PhaseConfig
from lowbit.config.quantization_schema import (
    CorrectionConfig,
    EstimatorConfig,
    EstimatorsConfig,
    FakeQuantConfig,
    OscillationConfig,
    QuantizerConfig,
    RuleConfig,
)

__all__ = [
    "Activation",
    "Aggregation",
    "BudgetConfig",
    "Config",
    "CorrectionConfig",
    "CorrectionKind",
    "CorrectionSchedule",
    "DataConfig",
    "DataKind",
    "DataSource",
    "EstimatorConfig",
    "EstimatorKind",
    "EstimatorsConfig",
    "FakeQuantConfig",
    "GlueTask",
    "GradScale",
    "Granularity",
    "ImageConfig",
    "InterventionConfig",
    "LatVariant",
    "LayerReduction",
    "LoggerConfig",
    "LoggerMode",
    "LossConfig",
    "LossKind",
    "MaskRule",
    "MethodConfig",
    "MixConfig",
    "ModelConfig",
    "ModelKind",
    "NoiseUnit",
    "ObrAggregation",
    "OnBadRow",
    "OptimizerChanges",
    "OptimizerConfig",
    "OptimizerKind",
    "OscillationConfig",
    "Padding",
    "PathsConfig",
    "PhaseConfig",
    "PhaseOrder",
    "Precision",
    "QuantizerConfig",
    "QuantizerKind",
    "Ramp",
    "Reduction",
    "RuleConfig",
    "ScaleInit",
    "ScaleUpdate",
    "SchedulerChanges",
    "SchedulerConfig",
    "SchedulerKind",
    "Site",
    "SquadVersion",
    "StageConfig",
    "StepCounter",
    "StudentInit",
    "TeacherConfig",
    "TeacherSource",
    "TokenizerKind",
    "TrainerConfig",
    "XglueTask",
]


@dataclass
class DataConfig:
    """A data set and how it is batched.

    `soft_labels` is the folder of a soft-label store (`lowbit softlabels`): training then takes `num_crops` stored
    crops of each image per step. `batch_size` counts crops, so a pass over the images is `num_crops` epochs.

    `task` to `on_bad_row` are of GLUE, `version` to `max_question_length` of SQuAD, `xglue_task` to `languages` of
    XGLUE: see docs/data.md. `length_grouped` draws training batches of texts of similar length; it counts only where
    `padding` is `longest`. `num_workers` processes build batches; null: up to 8 where there are image files, else none.
    """

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
    num_workers: int | None = None
    task: GlueTask | None = None
    source: DataSource = DataSource.folder
    dir: str | None = None
    revision: str | None = None
    train_file: str | None = None
    on_bad_row: OnBadRow = OnBadRow.error
    version: SquadVersion | None = None
    doc_stride: int | None = None
    max_question_length: int | None = None
    xglue_task: XglueTask | None = None
    language: str | None = None
    languages: list[str] | None = None
    length_grouped: bool = False
    soft_labels: str | None = None
    num_crops: int = 4
    image: ImageConfig = field(default_factory=ImageConfig)


@dataclass
class ModelConfig:
    """An architecture; sizes apply to the random-init kinds, `path` to `hf`, `timm_name` to `timm`.

    `revision` is a commit, tag or branch of a hub model; null: the newest. `dropout: null` keeps the model's own rates.
    `depths` says how many layers a model of kind `hf` or `timm` has, per stage where it has stages (Swin): what refers
    to layers is then checked before anything is loaded.
    """

    name: str = MISSING
    kind: ModelKind = MISSING
    hidden_size: int = 64
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 256
    dropout: float | None = None
    max_positions: int = 64
    patch_size: int = 2
    path: str | None = None
    revision: str | None = None
    package: str | None = None
    timm_name: str | None = None
    pretrained: bool = False
    depths: list[int] | None = None


@dataclass
class OptimizerConfig:
    """Optimizer and its numbers; parameters of fewer than two dimensions are never decayed.

    `scale_lr` is the peak learning rate of learned step sizes and clip values; null: `lr`. Under `scale_update: sgd`
    they follow their gradient without moments, so that its factor (`grad_scale`) counts: under Adam it cancels.
    """

    kind: OptimizerKind = OptimizerKind.adamw
    lr: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float | None = 1.0
    step_counter: StepCounter = StepCounter.parameter
    scale_lr: float | None = None
    scale_update: ScaleUpdate = ScaleUpdate.same


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
    scale_lr: float | None = None
    scale_update: ScaleUpdate | None = None


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
    """How the full-precision teacher is obtained.

    `path` is a folder (`source: path`) or the hub name of a fine-tuned model (`source: hub`; null: the weights that
    `model` names). `model` is the teacher's architecture where the student has another. A teacher whose score (the
    metric of the task) is below `min_score` stops the run before students are trained.
    """

    source: TeacherSource = TeacherSource.finetune
    path: str | None = None
    revision: str | None = None
    model: ModelConfig | None = None
    min_score: float | None = None
    seed: int = 1
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)


@dataclass
class StageConfig:
    """One stage: budget (at most one of steps, epochs, fraction; none means the rest) and slots that differ.

    `supervisor` is `teacher`, or an earlier stage whose student teaches this one.
    """

    steps: int | None = None
    epochs: float | None = None
    fraction: float | None = None
    student: StudentInit = StudentInit.teacher
    teacher: bool = True
    supervisor: str = "teacher"
    quantize: bool = True
    losses: dict[str, LossConfig] = field(default_factory=dict)
    intervention: InterventionConfig | None = None
    optimizer: OptimizerChanges = field(default_factory=OptimizerChanges)
    scheduler: SchedulerChanges = field(default_factory=SchedulerChanges)


@dataclass
class MethodConfig:
    """A recipe: ordered stages, and the losses of every stage that does not name its own.

    `layer_map` names the teacher layer of each student layer, for weights and supervision alike: a shorter list makes a
    shallower student. `embedding_target` is the teacher layer whose output the student's embeddings are compared with
    (null: the teacher's embeddings). `student_activation` replaces the student's FFN activation. `width` is the share
    of heads and FFN neurons that a `narrow` student keeps.
    """

    name: str = MISSING
    losses: dict[str, LossConfig] = field(default_factory=dict)
    stages: dict[str, StageConfig] = MISSING
    layer_map: list[int] | None = None
    embedding_target: int | None = None
    student_activation: Activation | None = None
    width: float = 0.5


@dataclass
class TrainerConfig:
    """Hardware, precision and intervals; only `precision` is part of a run's identity.

    `devices` are those of each of `num_nodes` machines; all share `data.batch_size`.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: Precision = Precision.float32
    threads: int | None = None
    eval_every: int | None = None
    checkpoint_every: int = 100
    log_every: int = 10
    progress: bool = True


@dataclass
class LoggerConfig:
    """Weights & Biases and TensorBoard; metrics.csv is always written.

    `figures` are drawn at the end of a run, for those of the two that are on.
    """

    mode: LoggerMode = LoggerMode.auto
    project: str = "lowbit"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    tensorboard: bool = False
    figures: bool = True


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
    estimator: EstimatorsConfig = field(default_factory=EstimatorsConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    oscillation: OscillationConfig = field(default_factory=OscillationConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)

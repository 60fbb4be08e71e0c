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
from lowbit.config.fields import LIMIT, Name, Of, OneOf, number, path_name, setting
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

PATHS = (
    "data.dir",
    "data.train_file",
    "data.soft_labels",
    "model.path",
    "teacher.path",
    "teacher.model.path",
    "paths.outputs",
)
"""The settings in which a leading `~` is the home folder."""
_GLUE = Of("kind", (DataKind.glue,))
_SQUAD = Of("kind", (DataKind.squad,))
_XGLUE = Of("kind", (DataKind.xglue,))
_PUBLISHED = Of("kind", (DataKind.glue, DataKind.squad, DataKind.xglue))
_FILES = Of("kind", (*_PUBLISHED.values, DataKind.image_folder, DataKind.cifar10, DataKind.cifar100))
TEXT = (*_PUBLISHED.values, DataKind.agreement)
_TEXT = Of("kind", TEXT)
_OWN_SPLIT = Of("kind", (DataKind.digits, DataKind.agreement))
_SIZED = Of("kind", (ModelKind.bert, ModelKind.vit, ModelKind.timm_vit), harmless=True)
_PATCHED = Of("kind", (ModelKind.vit, ModelKind.timm_vit, ModelKind.timm), harmless=True)
_HF = Of("kind", (ModelKind.hf,))
_TIMM = Of("kind", (ModelKind.timm,))
_ACCELERATORS = OneOf(("auto", "cpu", "gpu", "cuda", "mps", "tpu"))
_NO_CLIPPING = "null switches clipping off"
_OF_STEPS = "a share of the stage's steps"


@dataclass
class DataConfig:
    """A data set and how it is batched.

    `soft_labels` is the folder of a soft-label store (`lowbit softlabels`): training then takes `num_crops` stored
    crops of each image per step. `batch_size` counts crops, so a pass over the images is `num_crops` epochs.

    `task` to `on_bad_row` are of GLUE, `version` to `max_question_length` of SQuAD, `xglue_task` to `languages` of
    XGLUE: see docs/data.md. `length_grouped` draws training batches of texts of similar length; it counts only where
    `padding` is `longest`. `num_workers` processes build batches; null: up to 8 where there are image files, else none.
    """

    name: str = path_name(MISSING)
    kind: DataKind = MISSING
    batch_size: int = number(32, above=0)
    eval_batch_size: int = number(256, above=0)
    augment: bool = False
    train_size: int | None = number(above=0)
    eval_size: int | None = number(above=0)
    tokenizer: TokenizerKind = TokenizerKind.words
    padding: Padding = setting(Padding.longest, of=_TEXT)
    max_length: int | None = number(above=0, of=_TEXT)
    split_seed: int = number(0, at_least=0, below=LIMIT, of=_OWN_SPLIT)
    num_workers: int | None = number(at_least=0)
    task: GlueTask | None = setting(of=_GLUE)
    source: DataSource = setting(DataSource.folder, of=_FILES)
    dir: str | None = setting(of=_FILES)
    revision: str | None = setting(of=_PUBLISHED)
    train_file: str | None = setting(of=_GLUE)
    on_bad_row: OnBadRow = setting(OnBadRow.error, of=_FILES)
    version: SquadVersion | None = setting(of=_SQUAD)
    doc_stride: int | None = number(above=0, of=_SQUAD)
    max_question_length: int | None = number(above=0, of=_SQUAD)
    xglue_task: XglueTask | None = setting(of=_XGLUE)
    language: str | None = setting(of=_XGLUE)
    languages: list[str] | None = setting(of=_XGLUE)
    length_grouped: bool = setting(False, of=Of("padding", (Padding.longest,)))
    soft_labels: str | None = None
    num_crops: int = number(4, above=0)
    image: ImageConfig = field(default_factory=ImageConfig)


@dataclass
class ModelConfig:
    """An architecture; sizes apply to the random-init kinds, `path` to `hf`, `timm_name` to `timm`.

    `revision` is a commit, tag or branch of a hub model; null: the newest. `dropout: null` keeps the model's own rates.
    `depths` says how many layers a model of kind `hf` or `timm` has, per stage where it has stages (Swin): what refers
    to layers is then checked before anything is loaded.
    """

    name: str = path_name(MISSING)
    kind: ModelKind = MISSING
    hidden_size: int = number(64, above=0, of=_SIZED)
    num_layers: int = number(4, above=0, of=_SIZED)
    num_heads: int = number(4, above=0, of=_SIZED)
    intermediate_size: int = number(256, above=0, of=_SIZED)
    dropout: float | None = number(at_least=0, below=1)
    max_positions: int = number(64, above=0, of=Of("kind", (ModelKind.bert,)))
    patch_size: int = number(2, above=0, of=_PATCHED)
    path: str | None = setting(of=_HF)
    revision: str | None = None
    package: str | None = setting(of=_HF)
    timm_name: str | None = setting(of=_TIMM)
    pretrained: bool = setting(False, of=_TIMM)
    depths: list[int] | None = number(above=0)


@dataclass
class OptimizerConfig:
    """Optimizer and its numbers; parameters of fewer than two dimensions are never decayed.

    `scale_lr` is the peak learning rate of learned step sizes and clip values; null: `lr`. Under `scale_update: sgd`
    they follow their gradient without moments, so that its factor (`grad_scale`) counts: under Adam it cancels.
    """

    kind: OptimizerKind = OptimizerKind.adamw
    lr: float = number(1e-3, above=0)
    weight_decay: float = number(0.01, at_least=0)
    beta1: float = number(0.9, at_least=0, below=1)
    beta2: float = number(0.999, at_least=0, below=1)
    eps: float = number(1e-8, above=0)
    max_grad_norm: float | None = number(1.0, above=0, note=_NO_CLIPPING)
    step_counter: StepCounter = setting(StepCounter.parameter, of=Of("kind", (OptimizerKind.bert_adam,)))
    scale_lr: float | None = number(above=0)
    scale_update: ScaleUpdate = ScaleUpdate.same


@dataclass
class SchedulerConfig:
    """Learning-rate multiplier over the steps of one stage."""

    kind: SchedulerKind = SchedulerKind.linear
    warmup: float = number(0.1, at_least=0, below=1, note=_OF_STEPS)


@dataclass
class OptimizerChanges:
    """What one stage changes of `optimizer`; null keeps the run's value."""

    kind: OptimizerKind | None = None
    lr: float | None = number(above=0)
    weight_decay: float | None = number(at_least=0)
    beta1: float | None = number(at_least=0, below=1)
    beta2: float | None = number(at_least=0, below=1)
    eps: float | None = number(above=0)
    max_grad_norm: float | None = number(above=0)
    step_counter: StepCounter | None = None
    scale_lr: float | None = number(above=0)
    scale_update: ScaleUpdate | None = None


@dataclass
class SchedulerChanges:
    """What one stage changes of `scheduler`; null keeps the run's value."""

    kind: SchedulerKind | None = None
    warmup: float | None = number(at_least=0, below=1, note=_OF_STEPS)


@dataclass
class BudgetConfig:
    """Total optimizer steps of a recipe: `steps`, or `epochs` of ceil(rows / batch size) steps each."""

    steps: int | None = number(above=0)
    epochs: float | None = number(above=0)


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
    min_score: float | None = number(at_least=-1, at_most=1, note="scores are shares: 0.96, not 96")
    seed: int = number(1, at_least=0, below=LIMIT)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)


@dataclass
class StageConfig:
    """One stage: budget (at most one of steps, epochs, fraction; none means the rest) and slots that differ.

    `supervisor` is `teacher`, or an earlier stage whose student teaches this one.
    """

    steps: int | None = number(at_least=0)
    epochs: float | None = number(above=0)
    fraction: float | None = number(above=0, at_most=1)
    student: StudentInit = StudentInit.teacher
    teacher: bool = True
    supervisor: str = "teacher"
    quantize: bool = True
    losses: dict[str, LossConfig] = setting({}, keys=Name(slashes=False))
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

    name: str = path_name(MISSING)
    losses: dict[str, LossConfig] = setting({}, keys=Name(slashes=False))
    stages: dict[str, StageConfig] = setting(MISSING, keys=Name(slashes=False))
    layer_map: list[int] | None = number(at_least=0)
    embedding_target: int | None = number(at_least=0)
    student_activation: Activation | None = None
    width: float = number(0.5, above=0, at_most=1)


@dataclass
class TrainerConfig:
    """Hardware, precision and intervals; only `precision` is part of a run's identity.

    `devices` are those of each of `num_nodes` machines; all share `data.batch_size`.
    """

    accelerator: str = setting("auto", allowed=_ACCELERATORS)
    devices: int = number(1, above=0)
    num_nodes: int = number(1, above=0)
    precision: Precision = Precision.float32
    threads: int | None = number(above=0, at_most=1024)
    eval_every: int | None = number(above=0)
    checkpoint_every: int = number(100, above=0)
    log_every: int = number(10, above=0)
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

    name: str = path_name("${data.name}/${method.name}")
    sweep: str | None = path_name(None)
    seed: int = number(1, at_least=0, below=LIMIT)
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

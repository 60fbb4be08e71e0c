"""Settings of a run: the root of all others, hardware, logging and paths."""

import importlib.util
from dataclasses import dataclass, field
from enum import StrEnum

from lowbit.settings.data import DataConfig
from lowbit.settings.fields import LIMIT, OneOf, number, path_name, setting
from lowbit.settings.model import ModelConfig
from lowbit.settings.quantizer import CorrectionConfig, EstimatorsConfig, OscillationConfig, QuantizerConfig
from lowbit.settings.recipe import BudgetConfig, MethodConfig, OptimizerConfig, SchedulerConfig, TeacherConfig


class LoggerMode(StrEnum):
    """W&B: `auto` is what WANDB_MODE says, else online with WANDB_API_KEY or under `wandb agent`, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class Precision(StrEnum):
    """Lightning precision; names without the dash, which Python does not allow."""

    float32 = "32-true"
    float64 = "64-true"
    bf16_mixed = "bf16-mixed"
    fp16_mixed = "16-mixed"


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
_ACCELERATORS = OneOf(("auto", "cpu", "gpu", "cuda", "mps", "tpu"))


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

    def problems(self) -> list[str]:
        """Return which packages the settings lack."""
        if not self.tensorboard or importlib.util.find_spec("tensorboard") is not None:
            return []
        return ["tensorboard=true needs the package tensorboard: run `pip install tensorboard`"]


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

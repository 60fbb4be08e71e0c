"""Settings of a run: the root of all others, hardware, logging and paths."""

import difflib
import importlib.util
import inspect
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lowbit.settings.data import DataConfig
from lowbit.settings.fields import LIMIT, OneOf, import_class, number, path_name, setting, target_problems
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


# Arguments of Lightning's Trainer that lowbit sets, and the setting to use instead.
_TRAINER_ARGUMENTS = {
    **{name: f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "precision")},
    "strategy": "trainer.devices",
    **dict.fromkeys(("max_steps", "min_steps", "max_time", "limit_train_batches"), "budget.steps"),
    **dict.fromkeys(("max_epochs", "min_epochs"), "budget.epochs"),
    **dict.fromkeys(("val_check_interval", "check_val_every_n_epoch"), "trainer.eval_every"),
    "limit_val_batches": "trainer.extra.limit_test_batches, which limits every evaluation",
    "overfit_batches": "debug=overfit",
    "fast_dev_run": "debug=fast",
    "log_every_n_steps": "trainer.log_every",
    "logger": "logger.mode or logger.tensorboard",
    "enable_progress_bar": "trainer.progress",
    "enable_checkpointing": "trainer.checkpoint_every",
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm"), "optimizer.max_grad_norm"),
    "accumulate_grad_batches": "data.batch_size",
    **dict.fromkeys(("callbacks", "plugins", "use_distributed_sampler", "num_sanity_val_steps"), ""),
    **dict.fromkeys(("enable_model_summary", "barebones"), ""),
}


@dataclass
class TrainerConfig:
    """Hardware, precision, intervals, and further arguments of Lightning's Trainer.

    Only `precision` and `extra` are part of a run's identity, `extra` without what profiles or concerns hardware.
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
    extra: dict[str, Any] = setting({}, later=True)

    def problems(self) -> list[str]:
        """Return which keys of `extra` Lightning's Trainer does not have, and which lowbit sets."""
        if not self.extra:
            return []
        known = set(inspect.signature(import_class("lightning.pytorch.Trainer")).parameters)
        free = sorted(known - _TRAINER_ARGUMENTS.keys())
        problems = []
        for key, value in self.extra.items():
            instead = _TRAINER_ARGUMENTS.get(key)
            near = difflib.get_close_matches(key, free, n=1)
            if instead is not None:
                reason = f"lowbit sets this argument of the Trainer{instead and f'; use {instead}'}"
            elif key not in known:
                hint = f"; did you mean {near[0]}?" if near else ""
                reason = f"Lightning's Trainer has no such argument; allowed are {', '.join(free)}{hint}"
            else:
                continue
            problems.append(f"extra.{key}={value}: {reason}")
        return problems


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
    callbacks: dict[str, Any] = setting({}, later=True)

    def problems(self) -> list[str]:
        """Return what is wrong with the callbacks: Lightning's or your own, `name: {_target_: module.Class, ...}`."""
        problems = []
        for name, given in self.callbacks.items():
            if not isinstance(given, dict) or not isinstance(given.get("_target_"), str):
                problems.append(f"callbacks.{name}: write {{_target_: module.Class}} and the arguments of the class")
                continue
            arguments = {key: value for key, value in given.items() if not key.startswith("_")}
            found = target_problems(given["_target_"], arguments, mark="on_train_batch_end", inside="")
            problems += [f"callbacks.{name}.{problem}" for problem in found]
        return problems

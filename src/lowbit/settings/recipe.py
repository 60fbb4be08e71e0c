"""Settings of a recipe: its stages, their optimizer and schedule, its budget and its teacher."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum, auto
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from lowbit.settings.fields import LIMIT, Name, Of, changes_of, number, path_name, setting, target_problems
from lowbit.settings.losses import Comparison, InterventionConfig, LossConfig
from lowbit.settings.model import Activation, ModelConfig, TeacherSource


class OptimizerKind(StrEnum):
    """An optimizer of `lowbit.training.optimizers`."""

    adamw = auto()
    bert_adam = auto()


class ScaleUpdate(StrEnum):
    """How learned scales are updated: by the optimizer of the weights, or by plain gradient descent."""

    same = auto()
    sgd = auto()


class StepCounter(StrEnum):
    """Which step count BertAdam's schedule reads: each parameter's own (published) or the stage's."""

    parameter = auto()
    shared = auto()


class SchedulerKind(StrEnum):
    """Shape of the learning rate after the warm-up."""

    linear = auto()
    cosine = auto()
    constant = auto()


class StudentInit(StrEnum):
    """Where a stage's student comes from.

    `narrow`: the teacher with a share of its heads and FFN neurons; `split`: the previous, ternary student, each weight
    split into two binary ones.
    """

    teacher = auto()
    previous = auto()
    fresh = auto()
    narrow = auto()
    split = auto()  # type: ignore[assignment]  # hides str.split, which nothing calls on it


FROM_TEACHER = (StudentInit.teacher, StudentInit.narrow)
_NO_CLIPPING = "null switches clipping off"


@dataclass
class OptimizerConfig:
    """Optimizer and its numbers; parameters of fewer than two dimensions are never decayed.

    `scale_lr` is the peak learning rate of learned step sizes and clip values; null: `lr`. Under `scale_update: sgd`
    they follow their gradient without moments, so that its factor (`grad_scale`) counts: under Adam it cancels.

    `_target_` names an optimizer class of torch or of your own, which takes the place of `kind`: it is given `lr`,
    `weight_decay` and `options`, and the norm of all gradients is clipped to `max_grad_norm`.
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
    _target_: str | None = setting(later=True)
    options: dict[str, Any] = setting({}, later=True)

    def problems(self) -> list[str]:
        """Return what is wrong with the settings together."""
        if self._target_ is None:
            return ["options: are of an optimizer that `_target_` names"] if self.options else []
        given = {"lr": self.lr, **self.options, **({"weight_decay": 0.0} if self.weight_decay else {})}
        problems = target_problems(self._target_, given, first="params", mark="add_param_group")
        if self.scale_update == ScaleUpdate.sgd:
            problems.append("scale_update=sgd: only kind adamw and bert_adam know it; set it to same")
        return problems

    @property
    def betas(self) -> tuple[float, float]:
        """Decay of the first and of the second moment."""
        return self.beta1, self.beta2


@dataclass
class SchedulerConfig:
    """Learning-rate multiplier over the steps of one stage.

    `_target_` names a scheduler class of torch or of your own, which takes the place of `kind` and `warmup`: it is
    given the optimizer and `options`, and is stepped after each update.
    """

    kind: SchedulerKind = SchedulerKind.linear
    warmup: float = number(0.1, at_least=0, below=1, note="a share of the stage's steps")
    _target_: str | None = setting(later=True)
    options: dict[str, Any] = setting({}, later=True)

    def problems(self) -> list[str]:
        """Return what is wrong with the settings together."""
        if self._target_ is None:
            return ["options: are of a scheduler that `_target_` names"] if self.options else []
        return target_problems(self._target_, self.options, first="optimizer", mark="get_last_lr")


if TYPE_CHECKING:  # each setting may also be null
    OptimizerChanges = OptimizerConfig
    SchedulerChanges = SchedulerConfig
else:  # what one stage changes of `optimizer` and `scheduler`
    OptimizerChanges, SchedulerChanges = changes_of(OptimizerConfig), changes_of(SchedulerConfig)


@dataclass
class BudgetConfig:
    """Total optimizer steps of a recipe: `steps`, or `epochs` of ceil(rows / batch size) steps each."""

    steps: int | None = number(above=0)
    epochs: float | None = number(above=0)

    def problems(self) -> list[str]:
        """Return what is wrong with the settings together."""
        if self.steps is None or self.epochs is None:
            return []
        return [f"steps={self.steps}: epochs={self.epochs} is set too; set one of them, and the other to null"]


@dataclass
class TeacherConfig:
    """How the full-precision teacher is obtained.

    `path` is a folder (`source: path`) or the hub name of a fine-tuned model (`source: hub`; null: the weights that
    `model` names). `model` is the teacher's architecture where the student has another. A teacher whose score (the
    metric of the task) is below `min_score` stops the run before students are trained.
    """

    source: TeacherSource = TeacherSource.finetune
    path: str | None = None
    revision: str | None = setting(later=True)
    model: ModelConfig | None = setting(later=True)
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

    @property
    def needs_teacher(self) -> bool:
        """Whether the stage begins as the teacher or learns from it."""
        return self.student in FROM_TEACHER or (self.teacher and self.supervisor == "teacher")


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

    @property
    def needs_teacher(self) -> bool:
        """Whether some stage needs the teacher; else the teacher counts nowhere, nor in a run's id."""
        return any(stage.needs_teacher for stage in self.stages.values())

    def problems(self) -> list[str]:
        """Return what is wrong with the stages together."""
        problems = [problem for name, stage in self.stages.items() for problem in self._stage_problems(name, stage)]
        first = next(iter(self.stages.values()), None)
        if first is None:
            problems.append("stages: empty; a method has at least one stage")
        elif first.student in (StudentInit.previous, StudentInit.split):
            problems.append("stages: the first stage has no previous one: set its student to teacher or fresh")
        return problems

    def _stage_problems(self, name: str, stage: StageConfig) -> Iterator[str]:
        where, losses = f"stages.{name}", self.losses_of(stage)
        if not losses:
            yield f"{where}: no losses; give one a weight, for example method.losses.logits.weight=1"
        narrow = stage.student == StudentInit.narrow and stage.supervisor == "teacher"
        for key, loss in losses.items():
            if not stage.teacher and loss.needs_teacher:
                yield f"{where}, loss {key}: kind {loss.kind} needs a teacher; set method.{where}.teacher=true"
            if narrow and loss.compares == Comparison.heads:
                yield f"{where}, loss {key}: kind {loss.kind} compares heads, of which a narrow student has fewer"
        if stage.intervention is not None and not stage.teacher:
            yield f"{where}.intervention: needs a teacher; set method.{where}.teacher=true"
        supervisors = ["teacher", *takewhile(lambda other: other != name, self.stages)]
        if stage.supervisor not in supervisors:
            yield f"{where}.supervisor={stage.supervisor}: allowed are {', '.join(supervisors)}"

    def losses_of(self, stage: StageConfig) -> dict[str, LossConfig]:
        """Return the losses of a stage that count: its own, or else those of the method."""
        return {key: loss for key, loss in (stage.losses or self.losses).items() if loss.is_on}

"""Which model teaches, and what does not go together with it (imports no torch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lowbit.config.budget import total_steps
from lowbit.config.depth import LOADED
from lowbit.config.model_files import WEIGHT_FILES, WEIGHTS, folder_problems, source_problems
from lowbit.settings.data import DataConfig
from lowbit.settings.losses import LossConfig, LossKind
from lowbit.settings.model import ModelConfig, ModelKind, TeacherSource
from lowbit.settings.recipe import FROM_TEACHER
from lowbit.settings.run import Config

_TIMM = (ModelKind.timm, ModelKind.timm_vit)


def teacher_model(config: Config) -> ModelConfig:
    """Return the config of the teacher's architecture; with `source: hub`, of the weights on the hub too."""
    teacher = config.teacher
    model = config.model if teacher.model is None else teacher.model
    if teacher.source is not TeacherSource.hub:
        return model
    if teacher.path is None:
        return replace(model, pretrained=True)
    if model.kind is ModelKind.timm:
        return replace(model, pretrained=True, timm_name=teacher.path)
    return replace(model, package=None, path=teacher.path, revision=teacher.revision)


def trains_teacher(config: Config) -> bool:
    """Whether the run has its teacher trained, unless one before it has."""
    return config.method.needs_teacher and config.teacher.source is TeacherSource.finetune


def teacher_data(config: Config) -> DataConfig:
    """Return the data of the teacher: whole images, and the task's own rows."""
    return replace(config.data, soft_labels=None, train_file=None)


def teacher_problems(config: Config) -> Iterator[str]:
    """Yield what is wrong with the teacher's source, and with losses that another architecture cannot serve."""
    yield from _source(config)
    if config.teacher.model is None:
        return
    name = config.teacher.model.name
    for stage_name, stage in config.method.stages.items():
        where = f"method.stages.{stage_name}"
        if stage.student in FROM_TEACHER:
            yield (
                f"{where}.student={stage.student.name}: the teacher is a {name}, the student a {config.model.name}; "
                f"set {where}.student=fresh, or teacher.model=null"
            )
        if not (stage.teacher and stage.supervisor == "teacher"):
            continue
        if stage.intervention is not None:
            yield f"{where}.intervention: needs a teacher of the student's architecture; set teacher.model=null"
        for key, loss in config.method.losses_of(stage).items():
            if loss.needs_same_layers:
                allowed = [kind for kind in LossKind if not LossConfig(kind).needs_same_layers]
                yield (
                    f"{where}, loss {key}: kind {loss.kind} needs a teacher of the student's architecture; with "
                    f"teacher.model={name} allowed are {', '.join(allowed)}"
                )


def _source(config: Config) -> Iterator[str]:
    teacher = config.teacher
    match teacher.source:
        case TeacherSource.finetune:
            if total_steps(teacher.budget, steps_per_epoch=1) is None:
                yield "teacher.budget: no total; set teacher.budget.steps=N or teacher.budget.epochs=N"
        case TeacherSource.path:
            if teacher.path is None:
                yield "teacher.path: no value; set the folder that holds the teacher's model.safetensors"
            else:
                formats = (WEIGHTS,) if teacher_model(config).kind in _TIMM else WEIGHT_FILES
                folder = Path(teacher.path).expanduser()
                yield from folder_problems(f"teacher.path={teacher.path}", folder, needs_config=False, formats=formats)
        case TeacherSource.hub:
            model = teacher_model(config)
            if model.kind not in LOADED:
                yield f"teacher.source=hub: model={model.name} is not on the hub; use a model of kind hf or timm"
            elif model.kind is ModelKind.hf and teacher.path is not None:
                yield from source_problems("teacher.path", teacher.path)
            elif model.package is not None:
                yield f"teacher.path: no value, and model={model.name} is not fine-tuned; set the name of one that is"
    if teacher.path is not None and teacher.source is TeacherSource.finetune:
        yield f"teacher.path={teacher.path}: has no effect on teacher.source=finetune; choose teacher=path or hub"
    if teacher.revision is not None and (teacher.source is not TeacherSource.hub or teacher.path is None):
        yield f"teacher.revision={teacher.revision}: is of teacher.path under teacher.source=hub; set it to null"
    elif teacher.revision is not None and teacher_model(config).kind is ModelKind.timm:
        yield f"teacher.revision={teacher.revision}: has no effect on timm's weights; set it to null"

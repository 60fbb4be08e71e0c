"""What a run is made of, built from its config; what does not fit together is reported as a config problem."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric, MetricCollection

from lowbit.config.budget import stage_steps
from lowbit.config.image_files import IMAGE_FILES
from lowbit.config.problems import ConfigError
from lowbit.config.schema import (
    Config,
    DataKind,
    ModelConfig,
    ModelKind,
    Precision,
    StudentInit,
    TeacherSource,
    TokenizerKind,
)
from lowbit.config.teacher import needs_teacher, teacher_model
from lowbit.data import DataInfo, ImageInput, StepDataModule, build_datamodule, build_metric
from lowbit.data.label_manifest import described
from lowbit.data.stored_crops import fitting_manifest
from lowbit.data.tokens import tokenizer_state
from lowbit.modeling import Instrument, Rule, prepare
from lowbit.modeling.build import build_model, build_tokenizer
from lowbit.modeling.inputs import image_input

_WITHOUT_FILES = (DataKind.digits, DataKind.agreement)


@contextmanager
def config_errors() -> Iterator[None]:
    """Turn a ValueError of the block into a ConfigError: there the config is at fault, not the training.

    Raises:
        ConfigError: with the text of the ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def make_datamodule(config: Config, seed: int) -> StepDataModule:
    """Build the data module, with the model's tokenizer or its image size where the data set asks for it."""
    with config_errors():
        tokenizer = build_tokenizer(config.model) if config.data.tokenizer is TokenizerKind.model else None
        image = _image_input(config) if config.data.kind in IMAGE_FILES else None
        return build_datamodule(config.data, seed, tokenizer, Path(config.paths.outputs) / "cache", image)


def _image_input(config: Config) -> ImageInput | None:
    """Return the input of a pretrained model; a random one takes that of its teacher, if it has one.

    Raises:
        ValueError: student and teacher want different pixels, and a stage shows both the same ones.
    """
    own, supervisor = image_input(config.model), teacher_model(config) if needs_teacher(config) else config.model
    teacher = own if supervisor == config.model else image_input(supervisor)
    shared = [name for name, stage in config.method.stages.items() if stage.teacher]
    if own is not None and shared and _pixels(own) != _pixels(teacher):
        raise ValueError(
            f"model={config.model.name} takes {_pixels(own)}, teacher.model={supervisor.name} {_pixels(teacher)}, and "
            "a batch is for both. Choose models of one input, or store the teacher's answers (`lowbit softlabels`, "
            f"data.soft_labels) and set method.stages.{shared[0]}.teacher=false"
        )
    return own or teacher


def _pixels(image: ImageInput | None) -> str:
    return (
        "pixels as the data has them" if image is None else f"{image.size} pixels (mean {image.mean}, std {image.std})"
    )


def check_data(config: Config) -> None:
    """Load rows that are read from files, so that what is wrong with them shows before anything is written.

    Raises:
        ConfigError: bad rows, missing files, a damaged cache, a budget too small for the stages.
    """
    if config.data.kind in _WITHOUT_FILES:
        return
    data = make_datamodule(config, config.seed)
    with config_errors():
        data.setup("fit")
        stage_steps(config.method.stages, config.budget, data.steps_per_epoch)


def check_weights(config: Config) -> None:
    """Load Hugging Face weights with which a run begins: what does not fit the data shows before anything is written.

    Raises:
        ConfigError: no such model, or one of other labels.
    """
    if needs_teacher(config) and teacher_model(config).kind is ModelKind.hf:
        make_teacher_model(config, make_teacher_datamodule(config).info)
    fresh = any(stage.student is StudentInit.fresh for stage in config.method.stages.values())
    if fresh and config.model.kind is ModelKind.hf:
        make_model(config, make_datamodule(config, config.seed).info, config.seed)


def make_teacher_datamodule(config: Config) -> StepDataModule:
    """Build the data module of the teacher: whole images, the task's own rows, and batches of its own seed.

    Which run of a sweep comes first, and whether it learns from stored soft labels or augmented text, must not change
    the teacher.
    """
    own = replace(config.data, soft_labels=None, train_file=None)
    teacher = replace(config.teacher, model=None)
    return make_datamodule(replace(config, data=own, model=teacher_model(config), teacher=teacher), config.teacher.seed)


def check_soft_labels(config: Config, *, checksums: bool) -> str | None:
    """Check that the run's soft-label store is whole and of its training images; return what it holds.

    Args:
        config: The run.
        checksums: Whether to read every shard and compare its SHA-256, not only its size.

    Raises:
        ConfigError: the store is not what the run needs.
    """
    if config.data.soft_labels is None:
        return None
    data = make_teacher_datamodule(config)
    try:
        manifest = fitting_manifest(config.data, data.info, data.splits, checksums)
    except (ValueError, OSError) as error:
        raise ConfigError([f"data.soft_labels={config.data.soft_labels}: {error}"]) from error
    return f"soft labels: {described(manifest)}"


def make_metric(data: StepDataModule) -> tuple[str, Metric | MetricCollection]:
    """Return the data set's metric by name."""
    return data.info.metric, build_metric(data.info, data.splits.validation)


def make_model(config: Config, info: DataInfo, seed: int) -> nn.Module:
    """Build the student's model in the run's dtype, so that weights loaded into it are not rounded."""
    with config_errors():
        return _in_precision(build_model(config.model, info, seed), config)


def make_teacher_model(config: Config, info: DataInfo) -> nn.Module:
    """Build the teacher's model; only weights of `source: hub` are those of a teacher yet.

    Raises:
        ConfigError: on the hub there is no such model, or it is not fine-tuned on these labels.
    """
    settings, trained = teacher_model(config), config.teacher.source is TeacherSource.hub
    with config_errors():
        if config.data.tokenizer is TokenizerKind.model and _files(settings) != _files(config.model):
            key = f"teacher.path={settings.path}" if config.teacher.model is None else f"teacher.model={settings.name}"
            _same_tokenizer(config.model, settings, key)
        return _in_precision(build_model(settings, info, config.teacher.seed, trained_head=trained), config)


def _files(model: ModelConfig) -> tuple[str | None, ...]:
    return model.path, model.revision, model.package


def _same_tokenizer(student: ModelConfig, teacher: ModelConfig, key: str) -> None:
    if _encoding(student) != _encoding(teacher):
        raise ValueError(
            f"{key} has another tokenizer than model={student.name}: both read the same token ids. "
            "Choose two models of one vocabulary, for example bert_base and tinybert_4l"
        )


def _encoding(model: ModelConfig) -> dict[str, Any]:
    """Return what decides the ids of a text; tokenizers of other names, or that decode otherwise, are one."""
    state = json.loads(tokenizer_state(build_tokenizer(model)))
    return {key: value for key, value in state.items() if key not in ("class", "decoder")}


def _in_precision(model: nn.Module, config: Config) -> nn.Module:
    return model.to(torch.float64 if config.trainer.precision is Precision.float64 else torch.float32)


def make_instrument(model: nn.Module, rules: tuple[Rule, ...] = (), *, initialize: bool = True) -> Instrument:
    """Prepare a model under rules; `initialize=False` where the quantizers' state is loaded next."""
    with config_errors():
        return prepare(model, rules, initialize=initialize)

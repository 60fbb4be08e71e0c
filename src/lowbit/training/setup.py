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

from lowbit.config.image_files import IMAGE_FILES
from lowbit.config.problems import ConfigError
from lowbit.config.teacher import teacher_data, teacher_model
from lowbit.data import DataInfo, ImageInput, StepDataModule, build_datamodule, build_metric
from lowbit.data.tokens import tokenizer_state
from lowbit.modeling import Instrument, Rule, prepare
from lowbit.modeling.build import Origin, build_model
from lowbit.modeling.families import family_of
from lowbit.modeling.inputs import PREPROCESSOR, build_tokenizer, image_input
from lowbit.settings.data import TokenizerKind
from lowbit.settings.model import ModelConfig, ModelKind, TeacherSource
from lowbit.settings.run import Config, Precision
from lowbit.soft_labels.dataset import train_on_crops

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")


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
        data = build_datamodule(config.data, seed, tokenizer, Path(config.paths.outputs) / "cache", image)
        return train_on_crops(data, config.data)


def _image_input(config: Config) -> ImageInput | None:
    """Return the input of a pretrained model; a random one takes that of its teacher, if it has one.

    Raises:
        ValueError: student and teacher want different pixels, and a stage shows both the same ones.
    """
    own, supervisor = image_input(config.model), _teacher_files(config) if config.method.needs_teacher else config.model
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


def make_teacher_datamodule(config: Config) -> StepDataModule:
    """Build the data module of the teacher: whole images, the task's own rows, and batches of its own seed.

    Which run of a sweep comes first, and whether it learns from stored soft labels or augmented text, must not change
    the teacher.
    """
    teacher = replace(config.teacher, model=None)
    own = replace(config, data=teacher_data(config), model=_teacher_files(config), teacher=teacher)
    return make_datamodule(own, config.teacher.seed)


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
    settings, folder = teacher_model(config), _teacher_folder(config)
    given = config.teacher.path is not None
    origin = Origin(
        "teacher.path" if given else "model.path", folder, config.teacher.source is not TeacherSource.finetune
    )
    with config_errors():
        if config.data.tokenizer is TokenizerKind.model:
            key = f"teacher.path={config.teacher.path}" if given else f"teacher.model={settings.name}"
            files = _teacher_files(config)
            if _files(files) != _files(config.model):
                _same_tokenizer(config.model, files, key)
        model = build_model(settings, info, config.teacher.seed, origin)
        if config.teacher.model is None and given:
            _check_architecture(config, model, info)
        return _in_precision(model, config)


def _teacher_folder(config: Config) -> Path | None:
    """Return the folder of weights that a teacher of `source: path` takes."""
    if config.teacher.source is not TeacherSource.path or config.teacher.path is None:
        return None
    return Path(config.teacher.path).expanduser()


def _teacher_files(config: Config) -> ModelConfig:
    """Return the model whose tokenizer or image processor the teacher has been trained with: its folder's, if any."""
    model, folder = teacher_model(config), _teacher_folder(config)
    names = (PREPROCESSOR,) if config.data.kind in IMAGE_FILES else _TOKENIZER_FILES
    if folder is None or not any((folder / name).is_file() for name in names):
        return model
    return replace(model, kind=ModelKind.hf, package=None, path=str(folder), revision=None)


def _check_architecture(config: Config, teacher: nn.Module, info: DataInfo) -> None:
    """Compare the layers of a given teacher with those of `model`, whose architecture it is said to have.

    Raises:
        ValueError: they differ in number, heads or width.
    """
    with torch.device("meta"):
        own = build_model(config.model, info, 0)
    ours, theirs = _layers(own), _layers(teacher)
    if ours != theirs:
        raise ValueError(
            f"teacher.path={config.teacher.path} has {theirs}, model={config.model.name} has {ours}. Name a teacher of "
            "this architecture, or say which it has: +model@teacher.model=NAME"
        )


def _layers(model: nn.Module) -> str:
    """Return in words what makes two models comparable layer by layer."""
    family = family_of(model)
    sizes: dict[str, None] = {}
    for _, layer in family.layers_of(model):
        count, width = family.heads_of(layer)
        neurons = layer.get_submodule(family.names.ffn_in).out_features
        sizes[f"{count} heads of {width} and {neurons} neurons"] = None
    return f"{sum(family.depths(model))} layers of {', '.join(sizes)} ({type(model).__name__})"


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

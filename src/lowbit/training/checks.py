"""What is looked at beyond the settings: before a run, and by `lowbit check` for every job, one check per subject.

A check may read rows, tokenizers and the weights with which a run begins; it trains nothing and writes no runs.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning.pytorch.accelerators import XLAAccelerator

from lowbit.config.budget import check_batch, epoch_steps, stage_steps
from lowbit.config.problems import CONFIG_ERRORS, ConfigError, explain
from lowbit.config.teacher import teacher_data, teacher_model, trains_teacher
from lowbit.data import data_info
from lowbit.data.image_sets import unusable_images
from lowbit.data.text_rows import row_problems
from lowbit.hub import OutOfReachError
from lowbit.modeling import prepare
from lowbit.modeling.build import build_model
from lowbit.modeling.inputs import build_tokenizer
from lowbit.modeling.sizes import model_size
from lowbit.recipes import build_recipe
from lowbit.settings.data import DataKind, TokenizerKind
from lowbit.settings.model import ModelConfig, ModelKind, TeacherSource
from lowbit.settings.recipe import StudentInit
from lowbit.settings.run import Config, TrainerConfig
from lowbit.soft_labels.dataset import count_labelled, training_images
from lowbit.soft_labels.files import describe_store, store_folder
from lowbit.soft_labels.store import matching_manifest
from lowbit.training.run import Run
from lowbit.training.setup import config_errors

_WITHOUT_FILES = (DataKind.digits, DataKind.agreement)
_PATCHES = 1024  # more of them take seconds a step


@dataclass(frozen=True)
class Check:
    """A check of one subject.

    Attributes:
        subject: What stays unchecked where its files are out of reach.
        reads: The parts of the config that decide the outcome: jobs of a sweep that share them are checked once.
        problems: Yields or raises (ValueError, ConfigError, OSError) what `lowbit train` would refuse, and raises
            OutOfReachError, or a ConfigError from it, where that cannot be known here.
    """

    subject: str
    reads: Callable[[Config], object]
    problems: Callable[[Run], Iterable[str]]


def check_run(run: Run) -> Iterator[str]:
    """Check what a run would refuse, before anything is written; yield what is worth a line.

    Raises:
        ConfigError: naming what is wrong.
    """
    problems = [*device_problems(run.config.trainer), *model_problems(run)]
    if problems:
        raise ConfigError(problems)
    labels = check_soft_labels(run, checksums=True)  # the one time that all of a store is read
    if labels is not None:
        yield labels
    _check_data(run)
    with config_errors():
        deque(preview(run), maxlen=0)  # rules that do not fit the model


def _check_data(run: Run) -> None:
    """Load rows that are read from files, so that what is wrong with them shows before anything is written.

    Raises:
        ConfigError: bad rows, missing files, a damaged cache, a budget too small for the stages.
    """
    config = run.config
    if config.data.kind in _WITHOUT_FILES:
        with config_errors():
            check_batch(config.data, count_labelled(config.data, data_info(config.data)).train_size)
        return
    data = run.data
    with config_errors():
        data.setup("fit")
        check_batch(config.data, data.info.train_size)
        stage_steps(config.method.stages, config.budget, data.steps_per_epoch)
        if config.data.train_file is not None and trains_teacher(config):  # it reads the task's own rows
            run.teacher_data.setup("fit")


def model_problems(run: Run) -> Iterator[str]:
    """Yield what is wrong with the models with which a run begins: their class, files, labels and numbers.

    Raises:
        ConfigError: from an OutOfReachError, of a model of the hub.
    """
    for load in (_load_classes, _load_weights):
        try:
            load(run)
        except ConfigError as error:
            if isinstance(error.__cause__, OutOfReachError):
                raise
            yield from error.problems
            return


def _load_classes(run: Run) -> None:
    """Build the models without weights: those of a class that no family knows are not worth the reading."""
    config = run.config
    with config_errors(), torch.device("meta"):
        info = data_info(config.data)
        for model in [config.model, *([teacher_model(config)] if config.method.needs_teacher else [])]:
            prepare(build_model(model, info, 0))


def _load_weights(run: Run) -> None:
    config = run.config
    given = config.teacher.source is TeacherSource.path and config.teacher.path is not None
    fresh = StudentInit.fresh in (stage.student for stage in config.method.stages.values())
    run.check_models(
        teacher=config.method.needs_teacher and (given or _reads_weights(teacher_model(config))),
        student=fresh and _reads_weights(config.model),
    )


def _reads_weights(model: ModelConfig) -> bool:
    return model.kind is ModelKind.hf or model.pretrained


def device_problems(trainer: TrainerConfig) -> Iterator[str]:
    """Yield that this machine lacks the devices, with those that it has."""
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    counts["gpu"] = max(counts.values())
    counts["tpu"] = XLAAccelerator.auto_device_count() if XLAAccelerator.is_available() else 0
    if trainer.accelerator in counts and counts[trainer.accelerator] < trainer.devices:
        found = [f"{name} ({count})" for name, count in counts.items() if count]
        yield (
            f"trainer.accelerator={trainer.accelerator}, trainer.devices={trainer.devices}: torch sees "
            f"{counts[trainer.accelerator] or 'none'} here; set trainer.accelerator to "
            f"{' or '.join(['auto', 'cpu', *found])}, or run on another machine"
        )


def outputs_problems(outputs: Path) -> Iterator[str]:
    """Yield what keeps files from being written below a folder, which need not exist yet."""
    here = next(path for path in (outputs.absolute(), *outputs.absolute().parents) if path.exists())
    if not here.is_dir():
        yield f"paths.outputs={outputs}: {here} is a file; name a folder"
    elif not os.access(here, os.W_OK):
        yield f"paths.outputs={outputs}: {here} cannot be written; make it writable, or name another folder"


def check_soft_labels(run: Run, *, checksums: bool) -> str | None:
    """Check that the run's soft-label store is whole and of its training images; return what it holds.

    Args:
        run: The run.
        checksums: Whether to read every shard and compare its SHA-256, not only its size.

    Raises:
        ConfigError: the store is not what the run needs.
    """
    folder = store_folder(run.config.data)
    if folder is None:
        return None
    data = run.teacher_data
    try:
        manifest = matching_manifest(folder, training_images(data), data.info, checksums)
    except (ValueError, OSError) as error:
        raise ConfigError([f"data.soft_labels={run.config.data.soft_labels}: {error}"]) from error
    return f"soft labels: {describe_store(manifest)}"


def preview(run: Run) -> Iterator[str]:
    """Yield the stages with their steps, the match report and the simulated size, from a meta-device model.

    Raises:
        ConfigError: a soft-label store that is not of the data set.
        ValueError: rules that do not fit the model.
    """
    config = run.config
    labels = check_soft_labels(run, checksums=False)
    if labels is not None:
        yield labels
    info = count_labelled(config.data, data_info(config.data))
    if info.task == "span":  # only the tokenizer knows how many windows there are; the run finds them in the cache
        info = run.data.info
    check_batch(config.data, info.train_size)
    recipe = build_recipe(config, epoch_steps(info.train_size, config.data.batch_size))
    for stage in recipe.stages:
        terms = ", ".join(stage.losses)
        optimizer = f"{stage.optimizer.kind} lr {stage.optimizer.lr:g}"
        yield f"stage {stage.name}: {stage.steps} steps, losses {terms}, {optimizer}"
    for rules in {stage.rules: None for stage in recipe.stages}:  # of the last stage last
        with torch.device("meta"):
            instrument = prepare(build_model(config.model, info, config.seed), rules)
    yield from instrument.resolved.report
    size = model_size(instrument)
    side, patch = info.image_size or 0, config.model.patch_size
    patches = (side // patch) ** 2
    if config.model.kind in (ModelKind.vit, ModelKind.timm_vit) and patches > _PATCHES:
        yield (
            f"note: model.patch_size={patch} makes {patches:,} patches of {side}x{side} pixels, and attention takes "
            "their square: set model.patch_size=16, or a smaller data.image.size"
        )
    yield f"size {size.simulated_bytes / 1e6:.3f} MB, {size.compression:.1f}x smaller, bits {size.bits}"


def _read_by_models(config: Config) -> object:
    students = [stage.student for stage in config.method.stages.values()]
    return config.data, config.model, config.teacher, students, config.trainer.precision


def _tokenizer_problems(run: Run) -> Iterator[str]:
    if run.config.data.tokenizer is TokenizerKind.model:
        build_tokenizer(run.config.model)
    yield from ()


def _row_problems(run: Run) -> Iterator[str]:
    config = run.config
    yield from row_problems(config.data)
    if config.data.train_file is not None and trains_teacher(config):  # it reads the task's own rows
        yield from row_problems(teacher_data(config))


CHECKS = (
    Check("the outputs", lambda config: config.paths, lambda run: outputs_problems(run.outputs)),
    Check("the device", lambda config: config.trainer, lambda run: device_problems(run.config.trainer)),
    Check("the models", _read_by_models, model_problems),
    Check("the tokenizer", lambda config: (config.data.tokenizer, config.model), _tokenizer_problems),
    Check("the rows of the data", lambda config: (config.data, trains_teacher(config)), _row_problems),
    Check("the images of the data", lambda config: config.data, lambda run: unusable_images(run.config.data)),
)


@dataclass
class Findings:
    """What is wrong with a job, what could not be checked for each reason, and lines on what it would do."""

    problems: list[str] = field(default_factory=list)
    unchecked: dict[str, list[str]] = field(default_factory=dict)
    preview: list[str] = field(default_factory=list)


def examine(runs: Iterable[Run]) -> Iterator[Findings]:
    """Check every run and preview it."""
    known: dict[str, Findings] = {}
    for run in runs:
        found = Findings()
        for check in CHECKS:
            key = f"{check.subject}: {check.reads(run.config)!r}"
            if key not in known:
                known[key] = Findings()
                _collect(check.subject, check.problems, run, known[key], known[key].problems)
            found.problems += known[key].problems
            for reason, subjects in known[key].unchecked.items():
                found.unchecked.setdefault(reason, []).extend(subjects)
        _collect("the stages and rules", preview, run, found, found.preview)
        yield found


def _collect(subject: str, lines: Callable[[Run], Iterable[str]], run: Run, found: Findings, into: list[str]) -> None:
    """Put the lines of a function into a list, and what it raises among the problems or what is unchecked."""
    try:
        into.extend(lines(run))
    except (ConfigError, *CONFIG_ERRORS, OSError) as error:
        problems = error.problems if isinstance(error, ConfigError) else [explain(error)]
        if isinstance(error, OutOfReachError) or isinstance(error.__cause__, OutOfReachError):
            for problem in problems:
                found.unchecked.setdefault(problem, []).append(subject)
        else:
            found.problems += [problem for problem in problems if problem not in found.problems]

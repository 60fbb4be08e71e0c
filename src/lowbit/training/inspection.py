"""A finished run layer by layer, from its files: errors of weights and layer outputs, weights before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from lowbit.config.compose import to_config
from lowbit.config.problems import CONFIG_ERRORS, ConfigError, explain
from lowbit.data import StepDataModule
from lowbit.files import DamagedFileError
from lowbit.modeling import Instrument, prepare
from lowbit.quantizers import WeightSite, weight_sites
from lowbit.recipes import Recipe
from lowbit.results.report import LayerFacts, SiteFacts
from lowbit.results.run_file import remedy
from lowbit.settings.model import TeacherSource
from lowbit.settings.run import Config
from lowbit.training.handover import Student
from lowbit.training.run import Run
from lowbit.training.setup import make_teacher_model
from lowbit.training.showcase import weight_histograms
from lowbit.training.stage_runner import WEIGHTS, load_quantizer_state, load_weights, whole_stage
from lowbit.training.teacher import Teacher
from lowbit.training.train import initial_student

_ROWS = 64  # of the evaluation split
_TINY = 1e-12


def inspect_run(run: Mapping[str, Any], folder: Path, outputs: Path) -> LayerFacts:
    """Rebuild the student of a finished run as its last stage left it, and measure its layers.

    Args:
        run: Content of its run.json.
        folder: Its folder.
        outputs: Where the teachers are; need not be where the run was trained.
    """
    missing = [
        name for stage in run["stages"] if not (folder / (name := f"stages/{stage['name']}/{WEIGHTS}")).is_file()
    ]
    if missing:
        return LayerFacts(note=f"{folder / missing[0]} is not here. {remedy(folder)}")
    try:
        config = _config_of(run, outputs)
        rebuilt = Run(run["config"], config)
        data, recipe = rebuilt.data, rebuilt.recipe
        teacher, note = _teacher(config, run, folder, data) if recipe.needs_teacher else (None, "it had no teacher")
        student = _student(rebuilt, teacher, folder)
        sites = list(weight_sites(student.model))
        hidden, rows = ((), 0) if note or teacher is None else _hidden_errors(student, teacher, recipe, data)
    except DamagedFileError as error:
        return LayerFacts(note=f"cannot be rebuilt: {error.fault}. {remedy(folder)}")
    except (ConfigError, *CONFIG_ERRORS, OSError) as error:  # of another version, or its data is not here
        return LayerFacts(note=f"cannot be rebuilt: {explain(error)}")
    return LayerFacts(
        sites=tuple(_site(site, site.quantized()) for site in sites),
        histograms=weight_histograms(sites),
        hidden=hidden,
        rows=rows,
        note=f"outputs were not measured: {note}" if note else "",
    )


def _config_of(run: Mapping[str, Any], outputs: Path) -> Config:
    here = {"paths": {"outputs": str(outputs)}}
    return to_config(OmegaConf.merge(OmegaConf.structured(Config), run["config"], here))  # type: ignore[arg-type]


def _teacher(config: Config, run: Mapping[str, Any], folder: Path, data: StepDataModule) -> tuple[Teacher, str]:
    """Return the teacher, and why its weights are not those of the run's: then it has the right shapes only."""
    note, given = "", config.teacher
    if given.source is TeacherSource.path and not Path(given.path or "").expanduser().is_dir():
        note = f"{given.path} is not here"
        config = replace(config, teacher=replace(given, source=TeacherSource.finetune, path=None))
    model = make_teacher_model(config, data.info)
    weights = Path(config.paths.outputs) / "teachers" / run["teacher"]["id"] / WEIGHTS
    if given.source is TeacherSource.finetune:
        if weights.is_file():
            whole_stage(weights.parent)
            load_weights(model, weights)
        else:
            note = f"{weights} is not here. {remedy(folder)}"
    return Teacher(model.eval(), dict(run["teacher"])), note


def _student(run: Run, teacher: Teacher | None, folder: Path) -> Instrument:
    """Go through the stages as the run did, with what each has left instead of training."""
    previous: Student | None = None
    for stage in run.recipe.stages:
        model = initial_student(run, stage, previous, teacher)
        here = folder / "stages" / stage.name
        whole_stage(here)
        load_weights(model, here / WEIGHTS)
        previous = Student(model, load_quantizer_state(here), stage.rules)
    assert previous is not None
    return previous.prepared()


@torch.no_grad()
def _hidden_errors(
    student: Instrument, teacher: Teacher, recipe: Recipe, data: StepDataModule
) -> tuple[tuple[float, ...], int]:
    """Return |h - h_teacher| / |h_teacher| of each student layer's output at real tokens, and the number of rows."""
    data.setup("validate")
    loader = data.val_dataloader()
    batch = next(iter(loader[0] if isinstance(loader, list) else loader))
    whole = len(next(iter(batch.values())))
    rows = min(whole, _ROWS)
    batch = {key: value[:rows] for key, value in batch.items() if isinstance(value, Tensor) and len(value) == whole}
    supervisor = prepare(teacher.model)
    student.model.eval()
    own = student.run(batch, ("hidden",))
    target = supervisor.run(batch, ("hidden",)).select(recipe.stages[-1].layer_map)
    supervisor.restore()
    errors = []
    for mine, theirs in zip(own.layers, target.layers, strict=True):
        assert mine.hidden is not None
        assert theirs.hidden is not None
        if mine.hidden.shape != theirs.hidden.shape:
            raise ValueError(
                f"outputs {tuple(mine.hidden.shape)} of the student, {tuple(theirs.hidden.shape)} of the teacher"
            )
        errors.append(_error(_at_tokens(mine.hidden, own.key_mask), _at_tokens(theirs.hidden, own.key_mask)))
    return tuple(errors), rows


def _at_tokens(hidden_BLE: Tensor, mask_BL: Tensor | None) -> Tensor:
    return hidden_BLE if mask_BL is None else hidden_BLE[mask_BL]


def _error(value: Tensor, target: Tensor) -> float:
    return float((value - target).norm() / target.norm().clamp(min=_TINY))


def _site(site: WeightSite, quantized: Tensor) -> SiteFacts:
    spec = site.quantizer.spec
    zeros = float((quantized == 0).double().mean())
    return SiteFacts(site.name, spec.kind, float(spec.storage_bits), _error(quantized, site.weight), zeros)

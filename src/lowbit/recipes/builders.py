"""From the typed config to a Recipe."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

from lowbit.config.budget import stage_steps
from lowbit.losses import build_loss
from lowbit.modeling import Rule
from lowbit.quantizers import (
    EWGS,
    STE,
    Cage,
    ClippedSTE,
    Correction,
    Dampening,
    Estimator,
    Freezing,
    QuantizerSpec,
    StableQAT,
    ValueClippedSTE,
)
from lowbit.recipes.stage import InterventionSchedule, Oscillation, Recipe, Stage
from lowbit.settings.fields import merged
from lowbit.settings.losses import LossConfig, LossKind
from lowbit.settings.quantizer import (
    CorrectionConfig,
    CorrectionKind,
    EstimatorConfig,
    EstimatorKind,
    EstimatorsConfig,
    FakeQuantConfig,
    OscillationConfig,
    QuantizerConfig,
    QuantizerKind,
)
from lowbit.settings.recipe import StageConfig, TeacherConfig
from lowbit.settings.run import Config


def build_recipe(config: Config, steps_per_epoch: int) -> Recipe:
    """Build the recipe of `config.method` under its budget.

    Raises:
        ValueError: a budget that does not work out, or settings that a slot refuses.
    """
    steps = stage_steps(config.method.stages, config.budget, steps_per_epoch)
    stages: list[Stage] = []
    for name, stage in config.method.stages.items():
        stages.append(
            Stage(
                name=name,
                steps=steps[name],
                first_step=sum(previous.steps for previous in stages),
                student=stage.student,
                teacher=stage.teacher,
                rules=build_rules(config.quantizer, config.estimator, name) if stage.quantize else (),
                supervisor=stage.supervisor,
                width=config.method.width,
                losses={key: build_loss(loss) for key, loss in config.method.losses_of(stage).items()},
                intervention=None if stage.intervention is None else InterventionSchedule(stage.intervention),
                optimizer=merged(config.optimizer, stage.optimizer),
                scheduler=merged(config.scheduler, stage.scheduler),
                correction=build_correction(config.correction) if stage.quantize else None,
                oscillation=build_oscillation(config.oscillation) if stage.quantize else None,
                calibration_batches=config.quantizer.calibration_batches,
                layer_map=None if config.method.layer_map is None else tuple(config.method.layer_map),
                embedding_target=config.method.embedding_target,
                activation=None if config.method.student_activation is None else config.method.student_activation.name,
            )
        )
    return Recipe(config.method.name, tuple(stages))


def build_teacher_stage(config: TeacherConfig, steps_per_epoch: int) -> Stage:
    """Build the one stage in which the full-precision teacher is fine-tuned on labels."""
    steps = stage_steps({"teacher": StageConfig()}, config.budget, steps_per_epoch)
    return Stage(
        name="teacher",
        steps=steps["teacher"],
        first_step=0,
        student="fresh",
        teacher=False,
        rules=(),
        losses={"task": build_loss(LossConfig(LossKind.task))},
        intervention=None,
        optimizer=config.optimizer,
        optimizer_key="teacher.optimizer",
        scheduler=config.scheduler,
    )


def build_rules(config: QuantizerConfig, estimators: EstimatorsConfig, stage: str = "") -> tuple[Rule, ...]:
    """Translate the ordered rule list of a stage, every quantizer under its gradient estimator."""
    own = config.by_stage.get(stage)
    rules = config.rules if own is None else own.rules
    weight, activation = build_estimator(estimators.weight), build_estimator(estimators.activation)
    return tuple(
        Rule(
            match=tuple(rule.match),
            weight=_setting(rule.weight, weight),
            input=_setting(rule.input, activation),
            bmm=_setting(rule.bmm, activation),
            operands=tuple(rule.operands),
            required=rule.required,
        )
        for rule in rules
    )


def build_estimator(config: EstimatorConfig) -> Estimator | None:
    """Translate a gradient estimator; None for the published one of each quantizer."""
    kinds = EstimatorKind
    if config.kind is kinds.ewgs:
        return EWGS(config.delta)
    if config.kind is kinds.stable_qat:
        return StableQAT(config.amplitude, config.terms, tuple(config.amplitudes))
    if config.kind is kinds.value_clipped_ste:
        return ValueClippedSTE(config.bound)
    plain = {kinds.ste: STE(), kinds.clipped_ste: ClippedSTE()}
    return plain.get(config.kind)


def build_correction(config: CorrectionConfig) -> Correction | None:
    """Translate the pull of latent weights towards their grid."""
    if config.kind is CorrectionKind.cage:
        return Cage(config.strength, config.silence, config.schedule.name, config.coupled)  # type: ignore[arg-type]
    if config.kind is CorrectionKind.dampening:
        return Dampening(config.strength, config.start, config.aggregation.name)  # type: ignore[arg-type]
    return None


def build_oscillation(config: OscillationConfig) -> Oscillation | None:
    """Translate what is watched, and frozen, of the weights' codes."""
    if not config.track and not config.freeze:
        return None
    freezing = Freezing(config.freeze_from, config.freeze_to, config.freeze_start) if config.freeze else None
    return Oscillation(config.momentum, config.threshold, freezing)


def _setting(config: FakeQuantConfig | None, estimator: Estimator | None) -> QuantizerSpec | Literal["off"] | None:
    if config is None:
        return None
    if config.kind == QuantizerKind.none:
        return "off"
    settings: dict[str, Any] = {
        name: value.name if isinstance(value, Enum) else value for name, value in vars(config).items()
    }
    return QuantizerSpec(**settings, estimator=estimator)

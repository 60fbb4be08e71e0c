"""From the typed config to a Recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeVar

from lowbit.config import schema
from lowbit.config.budget import stage_steps
from lowbit.losses import LossTerm
from lowbit.modeling import Intervention, Rule
from lowbit.quantizers import QuantizerSpec
from lowbit.recipes.stage import InterventionSchedule, Optimizer, Recipe, Scheduler, Stage

T = TypeVar("T")


def build_recipe(config: schema.Config, steps_per_epoch: int) -> Recipe:
    """Build the recipe of `config.method` under its budget.

    Raises:
        ValueError: a budget that does not work out, or settings that a slot refuses.
    """
    steps = stage_steps(config.method.stages, config.budget, steps_per_epoch)
    rules = build_rules(config.quantizer)
    stages: list[Stage] = []
    for name, stage in config.method.stages.items():
        losses = stage.losses or config.method.losses
        stages.append(
            Stage(
                name=name,
                steps=steps[name],
                first_step=sum(previous.steps for previous in stages),
                student=stage.student.name,
                teacher=stage.teacher,
                rules=rules if stage.quantize else (),
                losses={key: build_term(term) for key, term in losses.items() if term.is_on},
                intervention=None if stage.intervention is None else build_intervention(stage.intervention),
                optimizer=build_optimizer_settings(merged(config.optimizer, stage.optimizer)),
                scheduler=build_scheduler_settings(merged(config.scheduler, stage.scheduler)),
                layer_map=None if config.method.layer_map is None else tuple(config.method.layer_map),
            )
        )
    return Recipe(config.method.name, tuple(stages))


def build_teacher_stage(config: schema.TeacherConfig, steps_per_epoch: int) -> Stage:
    """Build the one stage in which the full-precision teacher is fine-tuned on labels."""
    steps = stage_steps({"teacher": schema.StageConfig()}, config.budget, steps_per_epoch)
    return Stage(
        name="teacher",
        steps=steps["teacher"],
        first_step=0,
        student="fresh",
        teacher=False,
        rules=(),
        losses={"task": LossTerm("task")},
        intervention=None,
        optimizer=build_optimizer_settings(config.optimizer),
        scheduler=build_scheduler_settings(config.scheduler),
    )


def build_rules(config: schema.QuantizerConfig) -> tuple[Rule, ...]:
    """Translate the ordered rule list."""
    return tuple(
        Rule(
            match=tuple(rule.match),
            weight=_setting(rule.weight),
            input=_setting(rule.input),
            bmm=_setting(rule.bmm),
            operands=tuple(rule.operands),
            required=rule.required,
        )
        for rule in config.rules
    )


def build_term(config: schema.LossConfig) -> LossTerm:
    """Translate one loss term."""
    return LossTerm(
        kind=config.kind.name,
        weight=config.weight,
        weight_end=config.weight_end,
        ramp=config.ramp.name,
        reduction=config.reduction.name,
        mask=config.mask.name,
        temperature=config.temperature,
    )


def build_intervention(config: schema.InterventionConfig) -> InterventionSchedule:
    """Translate the phases of an intervened stage."""
    layers = None if config.layers is None else frozenset(config.layers)
    phases = tuple(
        (phase.share, Intervention(frozenset(s.name for s in phase.sites), layers, phase.mix, config.stop_gradient))
        for phase in config.phases
    )
    return InterventionSchedule(phases, random=config.order is schema.PhaseOrder.random)


def build_optimizer_settings(config: schema.OptimizerConfig) -> Optimizer:
    """Translate the optimizer's numbers."""
    return Optimizer(
        kind=config.kind.name,
        lr=config.lr,
        weight_decay=config.weight_decay,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        max_grad_norm=config.max_grad_norm,
        step_counter=config.step_counter.name,
    )


def build_scheduler_settings(config: schema.SchedulerConfig) -> Scheduler:
    """Translate the learning-rate schedule."""
    return Scheduler(config.kind.name, config.warmup)


def merged(base: T, changes: object) -> T:
    """Return `base` with the fields of `changes` that are not None."""
    return replace(base, **{k: v for k, v in vars(changes).items() if v is not None})  # type: ignore[type-var]


def _setting(config: schema.FakeQuantConfig | None) -> QuantizerSpec | Literal["off"] | None:
    if config is None:
        return None
    if config.kind is schema.QuantizerKind.none:
        return "off"
    return QuantizerSpec(config.kind.name, config.bits, config.granularity.name, config.threshold, config.clip)

"""Recipe and Stage: a method is a list of stages, a stage is six slots."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lowbit.losses import Loss
from lowbit.modeling import Intervention, Rule
from lowbit.quantizers import Correction, Freezing
from lowbit.settings.losses import InterventionConfig, PhaseConfig, PhaseOrder
from lowbit.settings.recipe import FROM_TEACHER, OptimizerConfig, SchedulerConfig


@dataclass(frozen=True)
class InterventionSchedule:
    """Phases of an intervention over the steps of a stage.

    In sequence, phase k ends at step `steps * (share_1 + .. + share_k) / total`, compared in integers; at random, one
    phase is drawn each step with equal probability, and mixes move over the whole stage.
    """

    settings: InterventionConfig

    @property
    def sites(self) -> frozenset[str]:
        """Every site that some phase replaces."""
        return frozenset(str(site) for phase in self.settings.phases for site in phase.sites)

    def at(self, step: int, steps: int, seed: int) -> Intervention:
        """Return the intervention at step `step` (0-based) of `steps`; a draw is a pure function of seed and step."""
        phases = self.settings.phases
        if self.settings.order == PhaseOrder.random:
            draw = np.random.default_rng([seed, step]).integers(len(phases))
            return self._in_phase(phases[int(draw)], _progress(step, 0, steps))
        total = sum(phase.share for phase in phases)
        reached = first = 0
        for phase in phases:
            reached += phase.share
            end = -(-steps * reached // total)  # the first step that is not in the phase
            if step < end:
                return self._in_phase(phase, _progress(step, first, end))
            first = end
        return self._in_phase(phases[-1], 1.0)

    def _in_phase(self, phase: PhaseConfig, progress: float) -> Intervention:
        moving = {} if phase.mix_end is None else dict.fromkeys(phase.sites, phase.mix_at(progress))
        own = {site: mix.mix_at(progress) for site, mix in phase.site_mix.items()}
        return Intervention(
            sites=frozenset(str(site) for site in phase.sites),
            layers=None if self.settings.layers is None else frozenset(self.settings.layers),
            mix=phase.mix,
            stop_gradient=self.settings.stop_gradient,
            site_mix={str(site): mix for site, mix in {**moving, **own}.items()},
        )


def _progress(step: int, first: int, end: int) -> float:
    return min(max((step - first) / max(end - 1 - first, 1), 0.0), 1.0)


@dataclass(frozen=True)
class Oscillation:
    """What is watched of the weights' codes: see `lowbit.quantizers.OscillationTracker`; `freezing` holds weights."""

    momentum: float
    threshold: float
    freezing: Freezing | None


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: unique within the recipe.
        steps: optimizer steps.
        first_step: the recipe's step at which the stage begins; batches follow the recipe's step.
        student: `teacher` (its weights), `previous` (the stage before), `fresh` (as built), `narrow` (part of the
            teacher), `split` (the previous one, ternary weights split into binary ones).
        teacher: whether a teacher supervises.
        rules: quantization rules; empty for full precision.
        losses: terms of the sum, by name.
        intervention: schedule, or None.
        optimizer, scheduler: fresh in every stage.
        correction: pull of the latent weights towards their grid, or None.
        oscillation: tracking and freezing of oscillating weights, or None.
        calibration_batches: training batches from which scales start that depend on data.
        layer_map: the teacher layer that each student layer is copied from and compared with; None for one to one.
        embedding_target: the teacher layer whose output the student's embeddings are compared with; None: embeddings.
        activation: the student's FFN activation, or None for the model's own.
        supervisor: `teacher`, or an earlier stage, whose student teaches as it was quantized.
        width: share of heads and FFN neurons that a `narrow` student keeps.
        optimizer_key: where a user finds the optimizer's settings.
    """

    name: str
    steps: int
    first_step: int
    student: str
    teacher: bool
    rules: tuple[Rule, ...]
    losses: dict[str, Loss]
    intervention: InterventionSchedule | None
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    correction: Correction | None = None
    oscillation: Oscillation | None = None
    calibration_batches: int = 1
    layer_map: tuple[int, ...] | None = None
    embedding_target: int | None = None
    activation: str | None = None
    supervisor: str = "teacher"
    width: float = 0.5
    optimizer_key: str = "optimizer"

    @property
    def fields(self) -> frozenset[str]:
        """Trace fields that the losses read."""
        return frozenset(name for loss in self.losses.values() for name in loss.fields)

    @property
    def supervisor_map(self) -> tuple[int, ...] | None:
        """The supervisor's layer for each student layer; one to one under an earlier student, who has as many."""
        return self.layer_map if self.supervisor == "teacher" else None

    def intervention_at(self, step: int, seed: int) -> Intervention | None:
        """Return the intervention at a step of this stage."""
        return None if self.intervention is None else self.intervention.at(step, self.steps, seed)


@dataclass(frozen=True)
class Recipe:
    """An ordered list of stages."""

    name: str
    stages: tuple[Stage, ...] = field(default_factory=tuple)

    @property
    def needs_teacher(self) -> bool:
        """Whether some stage is supervised by the teacher or starts from its weights."""
        return any(
            stage.student in FROM_TEACHER or (stage.teacher and stage.supervisor == "teacher") for stage in self.stages
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

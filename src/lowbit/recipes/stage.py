"""Recipe and Stage: a method is a list of stages, a stage is six slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lowbit.losses import LossTerm
from lowbit.losses.ramps import check_ramp, ramped
from lowbit.modeling import Intervention, Rule
from lowbit.quantizers import Correction, Freezing


@dataclass(frozen=True)
class Optimizer:
    """Settings of one optimizer; see `lowbit.training.optimizers`. `key` is where a user finds them."""

    kind: str
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    max_grad_norm: float | None
    step_counter: str
    scale_lr: float | None = None
    scale_update: str = "same"
    key: str = "optimizer"


@dataclass(frozen=True)
class Scheduler:
    """Settings of one learning-rate schedule; `warmup` is a fraction of the stage's steps."""

    kind: str
    warmup: float


@dataclass(frozen=True)
class Mixing:
    """The teacher's share at a site: `mix` at a phase's first step, `mix_end` at its last, and the path between.

    Raises:
        ValueError: an unknown ramp, or a ramp without `mix_end`.
    """

    mix: float = 1.0
    mix_end: float | None = None
    ramp: str = "constant"

    def __post_init__(self) -> None:
        check_ramp("intervention phase", "mix", self.ramp, self.mix_end)

    def at(self, progress: float) -> float:
        """Return the share at `progress`, 0 to 1, of the phase."""
        return ramped(self.mix, self.mix_end, self.ramp, progress)


@dataclass(frozen=True)
class Phase:
    """A part of an intervened stage.

    Attributes:
        share: of the stage's steps, in parts of the sum over all phases.
        intervention: sites, layers and stop-gradients; its mixes are those of a phase without `mixing`.
        mixing: how the mix moves at each site that has one.
    """

    share: int
    intervention: Intervention
    mixing: Mapping[str, Mixing] = field(default_factory=dict)

    def at(self, progress: float) -> Intervention:
        """Return the intervention at `progress`, 0 to 1, of the phase."""
        moved = {site: mixing.at(progress) for site, mixing in self.mixing.items()}
        return replace(self.intervention, site_mix={**self.intervention.site_mix, **moved})


@dataclass(frozen=True)
class InterventionSchedule:
    """Phases of an intervention over the steps of a stage.

    Attributes:
        phases: in sequence, phase k ends at step `steps * (share_1 + .. + share_k) / total`, compared in integers; at
            random, one phase is drawn each step with equal probability, and mixes move over the whole stage.
        random: draw instead of following the sequence.
    """

    phases: tuple[Phase, ...]
    random: bool = False

    @property
    def sites(self) -> frozenset[str]:
        """Every site that some phase replaces."""
        return frozenset(site for phase in self.phases for site in phase.intervention.sites)

    def at(self, step: int, steps: int, seed: int) -> Intervention:
        """Return the intervention at step `step` (0-based) of `steps`; a draw is a pure function of seed and step."""
        if self.random:
            draw = np.random.default_rng([seed, step]).integers(len(self.phases))
            return self.phases[int(draw)].at(_progress(step, 0, steps))
        total = sum(phase.share for phase in self.phases)
        reached = first = 0
        for phase in self.phases:
            reached += phase.share
            end = -(-steps * reached // total)  # the first step that is not in the phase
            if step < end:
                return phase.at(_progress(step, first, end))
            first = end
        return self.phases[-1].at(1.0)


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
        losses: terms by name.
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
    """

    name: str
    steps: int
    first_step: int
    student: str
    teacher: bool
    rules: tuple[Rule, ...]
    losses: dict[str, LossTerm]
    intervention: InterventionSchedule | None
    optimizer: Optimizer
    scheduler: Scheduler
    correction: Correction | None = None
    oscillation: Oscillation | None = None
    calibration_batches: int = 1
    layer_map: tuple[int, ...] | None = None
    embedding_target: int | None = None
    activation: str | None = None
    supervisor: str = "teacher"
    width: float = 0.5

    @property
    def fields(self) -> frozenset[str]:
        """Trace fields that the losses read."""
        return frozenset(name for term in self.losses.values() for name in term.fields)

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
            stage.student in ("teacher", "narrow") or (stage.teacher and stage.supervisor == "teacher")
            for stage in self.stages
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

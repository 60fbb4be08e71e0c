"""An ablation: the recipe and its variants, each with a job for every seed, and what came out of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from lowbit.config.compose import to_config
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load
from lowbit.execution.jobs import Job, job_of
from lowbit.execution.states import result
from lowbit.execution.variants import Variant
from lowbit.results.effects import Effect

BASE = Variant("base", "the recipe itself", ())


@dataclass(frozen=True)
class Arm:
    """A variant and its jobs, one for each seed."""

    variant: Variant
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Skipped:
    """A variant that is not run, and why."""

    variant: Variant
    reason: str


def plan_ablation(
    overrides: Sequence[str], variants: Sequence[Variant], seeds: Sequence[str]
) -> tuple[list[Arm], list[Skipped]]:
    """Return the recipe's arm, those of its variants, and what is left out.

    A variant is left out if its config is not valid or it computes what an arm before it does.

    Args:
        overrides: The recipe.
        variants: Its changes.
        seeds: Overrides, `seed=1` and so on.

    Raises:
        ConfigError: the recipe itself is not valid.
    """
    arms, skipped = [_arm(BASE, overrides, seeds)], []
    for variant in variants:
        if variant.problem:
            skipped.append(Skipped(variant, variant.problem))
            continue
        try:
            arm = _arm(variant, overrides, seeds)
        except ConfigError as error:
            skipped.append(Skipped(variant, "; ".join(error.problems)))
            continue
        twin = next((other for other in arms if _ids(other) == _ids(arm)), None)
        if twin is None:
            arms.append(arm)
        else:
            skipped.append(Skipped(variant, f"the same as {twin.variant}"))
    return arms, skipped


def effects(arms: Sequence[Arm]) -> list[Effect]:
    """Return what the finished jobs say, the recipe's own arm first; others are compared seed by seed with it."""
    base = _scores(arms[0])
    found = []
    for arm in arms:
        scores = _scores(arm)
        paired = () if arm is arms[0] else tuple(scores[place] - base[place] for place in scores if place in base)
        variant = arm.variant
        found.append(Effect(variant.slot, variant.change, len(arm.jobs), tuple(scores.values()), paired))
    return found


def metric_of(arms: Sequence[Arm]) -> str | None:
    """Return the primary metric of the finished jobs."""
    runs = (result(job) for arm in arms for job in arm.jobs)
    return next((str(run["primary_metric"]) for run in runs if run is not None), None)


def _arm(variant: Variant, overrides: Sequence[str], seeds: Sequence[str]) -> Arm:
    words = variant.applied(overrides)
    cfg, config = load([*words, seeds[0]])
    jobs = [job_of(cfg, config, [*words, seeds[0]], f"{variant}, {seeds[0]}")]
    for seed in seeds[1:]:  # composing takes a quarter of a second: the config of another seed is that of the first
        cfg = copy.deepcopy(cfg)
        cfg.seed = int(seed.partition("=")[2])
        jobs.append(job_of(cfg, to_config(cfg), [*words, seed], f"{variant}, {seed}"))
    return Arm(variant, tuple(jobs))


def _ids(arm: Arm) -> list[str]:
    return [job.run_id for job in arm.jobs]


def _scores(arm: Arm) -> dict[int, float]:
    """Return the primary metric of the finished jobs, by the place of their seed."""
    runs = {place: result(job) for place, job in enumerate(arm.jobs)}
    return {place: float(run["metrics"][run["primary_metric"]]) for place, run in runs.items() if run is not None}

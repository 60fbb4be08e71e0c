"""An ablation: the variants of a recipe (a part left out, alone, or replaced), their jobs, and what came out."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from lowbit.config import compose as C
from lowbit.config.image_files import IMAGE_FILES
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load
from lowbit.execution.jobs import SweepJob, make_job
from lowbit.execution.state import result
from lowbit.results.compare import Effect
from lowbit.settings.data import DataKind

Settings = Mapping[str, Any]  # a part of a resolved config
_SHARED = ("weight", "embedding", "activation", "operand")
_OPERANDS = ["query", "key", "probs", "value"]
_REGULARIZERS = ("obr",)
_IMAGES = (DataKind.digits.name, *(kind.name for kind in IMAGE_FILES))
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Variant:
    """One change of a recipe, as overrides.

    Attributes:
        slot: What is changed.
        change: How, in words.
        overrides: Overrides that follow those of the recipe; of several overrides of one key the last one counts.
        replaces: Beginnings of the recipe's overrides that the change drops.
        problem: Why the variant is not worth running.
    """

    slot: str
    change: str
    overrides: tuple[str, ...]
    replaces: tuple[str, ...] = ()
    problem: str = ""

    def applied(self, overrides: Sequence[str]) -> list[str]:
        """Return the recipe's overrides with the change."""
        kept = [word for word in overrides if not word.lstrip("+~").startswith(self.replaces)]
        return C.expand([*kept, *self.overrides])[0]

    def __str__(self) -> str:
        return f"{self.slot}: {self.change}"


@dataclass(frozen=True)
class Arm:
    """A variant and its jobs, one for each seed."""

    variant: Variant
    jobs: tuple[SweepJob, ...]

    @property
    def scores(self) -> dict[int, float]:
        """The primary metric of the finished jobs, by the place of their seed."""
        runs = {place: result(job) for place, job in enumerate(self.jobs)}
        return {place: float(run["metrics"][run["primary_metric"]]) for place, run in runs.items() if run is not None}


@dataclass(frozen=True)
class Skipped:
    """A variant that is not run, and why."""

    variant: Variant
    reason: str


def plan_ablation(
    overrides: Sequence[str], variants: Sequence[Variant], seeds: Sequence[str]
) -> tuple[list[Arm], list[Skipped]]:
    """Return the arms, that of the recipe itself first, and the variants that are left out.

    A variant is left out if its config is not valid, or if it computes the same as an earlier arm.

    Args:
        overrides: The recipe.
        variants: Its changes.
        seeds: Overrides, `seed=1` and so on.

    Raises:
        ConfigError: the recipe itself is not valid.
    """
    arms, skipped = [_arm(Variant("base", "the recipe itself", ()), overrides, seeds)], []
    for variant in variants:
        reason = variant.problem
        if not reason:
            try:
                arm = _arm(variant, overrides, seeds)
            except ConfigError as error:
                reason = "; ".join(error.problems)
            else:
                ids = [job.run_id for job in arm.jobs]
                twins = [other.variant for other in arms if [job.run_id for job in other.jobs] == ids]
                reason = f"the same as {twins[0]}" if twins else ""
        if reason:
            skipped.append(Skipped(variant, reason))
        else:
            arms.append(arm)
    return arms, skipped


def _arm(variant: Variant, overrides: Sequence[str], seeds: Sequence[str]) -> Arm:
    words = variant.applied(overrides)
    cfg, config = load([*words, seeds[0]])
    jobs = [make_job(cfg, config, [*words, seeds[0]], f"{variant}, {seeds[0]}")]
    for seed in seeds[1:]:  # composing takes a quarter of a second, and the configs differ in the seed only
        cfg = copy.deepcopy(cfg)
        cfg.seed = int(seed.partition("=")[2])
        jobs.append(make_job(cfg, C.to_config(cfg), [*words, seed], f"{variant}, {seed}"))
    return Arm(variant, tuple(jobs))


def effects(arms: Sequence[Arm]) -> list[Effect]:
    """Return the scores of the finished jobs, and for all but the first arm the differences to it, seed by seed."""
    base, found = arms[0].scores, []
    for arm in arms:
        scores = arm.scores
        paired = () if arm is arms[0] else tuple(scores[place] - base[place] for place in scores if place in base)
        found.append(Effect(arm.variant.slot, arm.variant.change, len(arm.jobs), tuple(scores.values()), paired))
    return found


def metric_of(arms: Sequence[Arm]) -> str | None:
    """Return the primary metric of the finished jobs."""
    runs = (result(job) for arm in arms for job in arm.jobs)
    return next((str(run["primary_metric"]) for run in runs if run is not None), None)


def build_variants(config: Settings, slots: Sequence[str]) -> list[Variant]:
    """Return the variants of a resolved config (`identity.resolved`), slot by slot, each change once.

    Variants that leave a part out come before those that keep one part alone. A slot that the recipe does not use has
    no variants.
    """
    found: dict[tuple[str, ...], Variant] = {}
    for slot in slots:
        for variant in SLOTS[slot](config):
            found.setdefault(variant.overrides, variant)
    return list(found.values())


def _losses(config: Settings) -> Iterator[Variant]:
    method = config["method"]
    places = {f"method.stages.{name}.losses": stage["losses"] for name, stage in method["stages"].items()}
    if not all(places.values()):  # stages without losses of their own share those of the method
        places = {"method.losses": method["losses"], **places}
    terms = [
        (f"{place}.{name}", name, loss)
        for place, losses in places.items()
        for name, loss in losses.items()
        if loss["weight"] != 0 or loss["weight_end"] is not None
    ]
    kinds = {name: loss["kind"] for _, name, loss in terms}

    def keep(change: str, names: Sequence[str]) -> Variant:
        off = [(key, loss) for key, name, loss in terms if name not in names]
        overrides = tuple(
            f"{key}.{setting}"
            for key, loss in off
            for setting in ("weight=0", *(() if loss["weight_end"] is None else ("weight_end=null",)))
        )
        alone = all(kinds[name] in _REGULARIZERS for name in names)
        problem = "what is left compares the student with nothing" if alone else ""
        return Variant("losses", change, overrides, problem=problem)

    if len(kinds) > 1:
        yield from (keep(f"without {name}", [other for other in kinds if other != name]) for name in kinds)
        yield from (keep(f"only {name}", [name]) for name in kinds)


def _intervention(config: Settings) -> Iterator[Variant]:
    stages = {
        f"method.stages.{name}.intervention": stage["intervention"]["phases"]
        for name, stage in config["method"]["stages"].items()
        if stage["intervention"] is not None
    }
    if not stages:
        return
    yield Variant("intervention", "off", tuple(f"{key}=null" for key in stages))

    def keep(change: str, sites: Sequence[str]) -> Variant:
        return Variant("intervention", change, tuple(_phases(key, phases, sites) for key, phases in stages.items()))

    sites = list(dict.fromkeys(site for phases in stages.values() for phase in phases for site in phase["sites"]))
    if len(sites) > 1:
        yield from (keep(f"without {site}", [other for other in sites if other != site]) for site in sites)
        yield from (keep(f"only {site}", [site]) for site in sites)
    for key, phases in stages.items():
        if len(phases) > len(sites):  # phases that share a site and differ in how far the teacher replaces it
            for place, phase in enumerate(phases):
                others = [other for other in phases if other is not phase]
                yield Variant("intervention", f"without phase {place + 1}", (_phases(key, others, sites),))
                yield Variant("intervention", f"only phase {place + 1}", (_phases(key, [phase], sites),))


def _phases(key: str, phases: Sequence[Settings], sites: Sequence[str]) -> str:
    """Return the override that keeps the intervention at some sites; settings that are the default are left out."""
    kept = []
    for phase in phases:
        own = [site for site in phase["sites"] if site in sites]
        if own:
            mixes = {site: _changed(mix) for site, mix in phase["site_mix"].items() if site in own}
            kept.append({"sites": own, "share": phase["share"], **_changed(phase), "site_mix": mixes})
    for phase in kept:
        if len(kept) == 1:
            del phase["share"]
        if not phase["site_mix"]:
            del phase["site_mix"]
    return f"{key}.phases={_text(kept)}" if kept else f"{key}=null"


def _changed(mix: Settings) -> dict[str, object]:
    defaults = {"mix": 1.0, "mix_end": None, "ramp": "constant"}
    return {key: mix[key] for key, default in defaults.items() if mix[key] != default}


def _quantizer(config: Settings) -> Iterator[Variant]:
    quantizer, has_embedding = config["quantizer"], config["data"]["kind"] not in _IMAGES
    lists = {"quantizer.rules": quantizer["rules"]}
    lists |= {f"quantizer.by_stage.{name}.rules": own["rules"] for name, own in quantizer["by_stage"].items()}

    def part_of(rule: Settings, key: str) -> str:
        if key == "weight" and rule["match"] == ["word_embedding"]:
            return "embedding"
        return {"weight": "weights", "input": "inputs", "bmm": "attention operands"}[key]

    there = {part_of(rule, key) for own in lists.values() for rule in own for key in _TENSORS if rule[key] is not None}
    parts = [part for part in _PARTS if part in there and (has_embedding or part != "embedding")]
    replaces = tuple(f"quantizer.{name}." for name in _SHARED)  # the rules are spelled out

    def drop(change: str, names: Sequence[str]) -> Variant:
        def is_kept(rule: Settings, key: str) -> bool:
            return rule[key] is not None and (part_of(rule, key) not in names or part_of(rule, key) not in parts)

        overrides = tuple(f"{key}={_text(_rules(own, is_kept))}" for key, own in lists.items())
        return Variant("quantizer", change, overrides, replaces)

    if len(parts) > 1:
        yield from (drop(f"without {part}", [part]) for part in parts)
        yield drop("weights only", ["inputs", "attention operands"])
        yield drop("activations only", ["weights", "embedding"])
    if parts:
        stages = tuple(f"quantizer.by_stage.{name}" for name in quantizer["by_stage"])
        yield Variant("quantizer", "off", ("quantizer=none",), (*replaces, "quantizer.rules", *stages))


_TENSORS = ("weight", "input", "bmm")
_PARTS = ("weights", "embedding", "inputs", "attention operands")


def _rules(rules: Sequence[Settings], is_kept: Callable[[Settings, str], bool]) -> list[Settings]:
    """Return the rules with the tensors that are kept; settings that are the default are left out."""
    found: list[Settings] = []
    for rule in rules:
        specs = {
            key: {name: value for name, value in rule[key].items() if value is not None}
            for key in _TENSORS
            if is_kept(rule, key)
        }
        if specs:
            operands = {} if rule["operands"] == _OPERANDS else {"operands": rule["operands"]}
            required = {} if rule["required"] else {"required": False}
            found.append({"match": rule["match"], **specs, **operands, **required})
    return found


def _choices(slot: str) -> Callable[[Settings], Iterator[Variant]]:
    def others(config: Settings) -> Iterator[Variant]:
        with C.hydra_session():
            names = C.choices(slot)
        for name in names:
            if name != config[slot]["name"]:
                yield Variant(slot, name, (f"{slot}={name}",), (f"{slot}=", f"{slot}."))

    return others


def _text(value: object) -> str:
    """Return a value in the grammar of Hydra's overrides."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str) and not _PLAIN.fullmatch(value):
        return str(QuotedString(value, Quote.single).with_quotes())
    return str(value)


SLOTS: Mapping[str, Callable[[Settings], Iterator[Variant]]] = {
    "losses": _losses,
    "intervention": _intervention,
    "quantizer": _quantizer,
    "estimator": _choices("estimator"),
    "correction": _choices("correction"),
}

"""The variants of a recipe for an ablation: what is left out, what stands alone, what else a slot could hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.config import compose as C
from lowbit.config.image_files import IMAGE_FILES
from lowbit.settings.data import DataKind

_SHARED = ("weight", "embedding", "activation", "operand")
_OPERANDS = ["query", "key", "probs", "value"]
_REGULARIZERS = ("obr",)
_IMAGES = (DataKind.digits.name, *(kind.name for kind in IMAGE_FILES))
_Part = Callable[[Mapping[str, Any], str], bool]  # of a rule and one of its keys: whether it belongs to the part
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Variant:
    """One change of a recipe, as overrides.

    Attributes:
        slot: What is changed.
        change: How, in words.
        overrides: What is added to the recipe's overrides; of one key the last override counts.
        replaces: Beginnings of the recipe's overrides that the change takes the place of.
        problem: Why it is not worth running.
    """

    slot: str
    change: str
    overrides: tuple[str, ...]
    replaces: tuple[str, ...] = ()
    problem: str = ""

    def applied(self, overrides: Sequence[str]) -> list[str]:
        """Return the recipe's overrides with the change."""
        kept = [word for word in overrides if not word.lstrip("+~").startswith(self.replaces)]  # of (): all
        return C.expand([*kept, *self.overrides])[0]

    def __str__(self) -> str:
        """Return slot and change."""
        return f"{self.slot}: {self.change}"


def build_variants(config: Mapping[str, Any], slots: Sequence[str]) -> list[Variant]:
    """Return the variants of a resolved config (`identity.resolved`), slot by slot, each change once.

    Leave-one-out comes first, then each part alone; a slot that the recipe does not use has none.
    """
    found: dict[tuple[str, ...], Variant] = {}
    for slot in slots:
        for variant in SLOTS[slot](config):
            found.setdefault(variant.overrides, variant)
    return list(found.values())


def _losses(config: Mapping[str, Any]) -> Iterator[Variant]:
    places = dict(_loss_places(config["method"]))
    kinds = {name: loss["kind"] for losses in places.values() for name, loss in losses.items() if _is_on(loss)}
    if len(kinds) < 2:
        return

    def keeping(change: str, names: Sequence[str]) -> Variant:
        """Return the variant that keeps these terms and switches the others off."""
        alone = all(kinds[name] in _REGULARIZERS for name in names)
        problem = "what is left compares the student with nothing" if alone else ""
        overrides = tuple(
            f"{place}.{name}.{setting}"
            for place, losses in places.items()
            for name, loss in losses.items()
            if name not in names and _is_on(loss)
            for setting in ("weight=0", *(() if loss["weight_end"] is None else ("weight_end=null",)))
        )
        return Variant("losses", change, overrides, problem=problem)

    for name in kinds:
        yield keeping(f"without {name}", [other for other in kinds if other != name])
    for name in kinds:
        yield keeping(f"only {name}", [name])


def _loss_places(method: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where losses are set: for all stages that have none of their own, and for single stages."""
    if any(not stage["losses"] for stage in method["stages"].values()):
        yield "method.losses", method["losses"]
    for name, stage in method["stages"].items():
        if stage["losses"]:
            yield f"method.stages.{name}.losses", stage["losses"]


def _is_on(loss: Mapping[str, Any]) -> bool:
    return loss["weight"] != 0 or loss["weight_end"] is not None


def _intervention(config: Mapping[str, Any]) -> Iterator[Variant]:
    stages = {
        f"method.stages.{name}.intervention": stage["intervention"]["phases"]
        for name, stage in config["method"]["stages"].items()
        if stage["intervention"] is not None
    }
    if not stages:
        return
    yield Variant("intervention", "off", tuple(f"{key}=null" for key in stages))
    sites = list(dict.fromkeys(site for phases in stages.values() for phase in phases for site in phase["sites"]))
    if len(sites) > 1:
        for site in sites:
            kept = [other for other in sites if other != site]
            yield Variant("intervention", f"without {site}", _at(stages, kept))
        for site in sites:
            yield Variant("intervention", f"only {site}", _at(stages, [site]))
    for key, phases in stages.items():
        if len(phases) > len(sites):  # phases that share a site and differ in how far the teacher stands in
            for place, phase in enumerate(phases):
                others = [other for other in phases if other is not phase]
                yield Variant("intervention", f"without phase {place + 1}", (f"{key}.phases={_text(_phases(others))}",))
                yield Variant("intervention", f"only phase {place + 1}", (f"{key}.phases={_text(_phases([phase]))}",))


def _at(stages: Mapping[str, Sequence[Mapping[str, Any]]], sites: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides that keep the interventions at some sites; phases at none of them go."""
    overrides = []
    for key, phases in stages.items():
        kept = [{**phase, "sites": [site for site in phase["sites"] if site in sites]} for phase in phases]
        kept = [phase for phase in kept if phase["sites"]]
        overrides.append(f"{key}.phases={_text(_phases(kept))}" if kept else f"{key}=null")
    return tuple(overrides)


def _phases(phases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the phases without what is the default."""
    shown = []
    for phase in phases:
        mixes = {site: _changed(mix) for site, mix in phase["site_mix"].items() if site in phase["sites"]}
        share = {"share": phase["share"]} if len(phases) > 1 else {}
        shown.append({"sites": phase["sites"], **share, **_changed(phase), **({"site_mix": mixes} if mixes else {})})
    return shown


def _changed(mix: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {"mix": 1.0, "mix_end": None, "ramp": "constant"}
    return {key: mix[key] for key, default in defaults.items() if mix[key] != default}


def _quantizer(config: Mapping[str, Any]) -> Iterator[Variant]:
    quantizer, images = config["quantizer"], config["data"]["kind"] in _IMAGES  # whose models have no word embedding
    lists = {"quantizer.rules": quantizer["rules"]}
    lists |= {f"quantizer.by_stage.{name}.rules": own["rules"] for name, own in quantizer["by_stage"].items()}
    rules = [rule for own in lists.values() for rule in own]
    parts: dict[str, _Part] = {
        "weights": lambda rule, key: key == "weight" and not _of_embedding(rule),
        "embedding": lambda rule, key: key == "weight" and _of_embedding(rule) and not images,
        "inputs": lambda rule, key: key == "input",
        "attention operands": lambda rule, key: key == "bmm",
    }
    there = {
        name: drops
        for name, drops in parts.items()
        if any(rule[key] is not None and drops(rule, key) for rule in rules for key in ("weight", "input", "bmm"))
    }
    replaces = tuple(f"quantizer.{name}." for name in _SHARED)  # the rules are spelled out

    def without(change: str, names: Sequence[str]) -> Variant:
        drops = [there[name] for name in names if name in there]
        overrides = tuple(f"{key}={_text(_rules(own, drops))}" for key, own in lists.items())
        return Variant("quantizer", change, overrides, replaces)

    if len(there) > 1:
        for name in there:
            yield without(f"without {name}", [name])
        yield without("weights only", ["inputs", "attention operands"])
        yield without("activations only", ["weights", "embedding"])
    if there:
        stages = tuple(f"quantizer.by_stage.{name}" for name in quantizer["by_stage"])
        yield Variant("quantizer", "off", ("quantizer=none",), (*replaces, "quantizer.rules", *stages))


def _of_embedding(rule: Mapping[str, Any]) -> bool:
    return bool(rule["match"] == ["word_embedding"])


def _rules(rules: Sequence[Mapping[str, Any]], drops: Sequence[_Part]) -> list[dict[str, Any]]:
    """Return the rules without some parts, and without what is the default."""
    kept = []
    for rule in rules:
        specs = {
            key: {name: value for name, value in rule[key].items() if value is not None}
            for key in ("weight", "input", "bmm")
            if rule[key] is not None and not any(drop(rule, key) for drop in drops)
        }
        if specs:
            operands = {} if rule["operands"] == _OPERANDS else {"operands": rule["operands"]}
            required = {} if rule["required"] else {"required": False}
            kept.append({"match": rule["match"], **specs, **operands, **required})
    return kept


def _choices(slot: str) -> Callable[[Mapping[str, Any]], Iterator[Variant]]:
    """Return what yields the other choices of a config group."""

    def others(config: Mapping[str, Any]) -> Iterator[Variant]:
        with C.hydra_session():
            names = C.choices(slot)
        replaces = (f"{slot}=", f"{slot}.")
        for name in names:
            if name != config[slot]["name"]:
                yield Variant(slot, name, (f"{slot}={name}",), replaces)

    return others


def _text(value: Any) -> str:
    """Return a value in the grammar of Hydra's overrides."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str) and not _PLAIN.fullmatch(value):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)


SLOTS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[Variant]]] = {
    "losses": _losses,
    "intervention": _intervention,
    "quantizer": _quantizer,
    "estimator": _choices("estimator"),
    "correction": _choices("correction"),
}

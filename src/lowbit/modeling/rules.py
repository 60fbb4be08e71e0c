"""Quantization rules: an ordered list that says which module gets which quantizers, resolved to names.

Only names and module types count, so models on the meta device will do.
"""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

from torch import nn

from lowbit.modeling.attention import OPERANDS
from lowbit.modeling.families import QKV, ROLES, Family
from lowbit.quantizers import QuantizerSpec

Setting = QuantizerSpec | Literal["off"] | None
Slot = tuple[str, str | None]
"""Module name, and the block of its rows if it holds several roles (timm's qkv)."""
K = TypeVar("K")


@dataclass(frozen=True)
class Rule:
    """One rule. A setting of None keeps what earlier rules set; "off" removes it.

    Attributes:
        match: Roles, or patterns of module names (`*` and `?`).
        weight, input: Quantizers of the matched linear, embedding or convolution layers.
        bmm: Quantizer of the operands of the attention products; only with the role `attention`.
        operands: The operands that `bmm` is for.
        required: Whether an entry of `match` that matches nothing is an error; False for roles that some families lack.
    """

    match: tuple[str, ...]
    weight: Setting = None
    input: Setting = None
    bmm: Setting = None
    operands: tuple[str, ...] = OPERANDS
    required: bool = True


@dataclass
class Resolved:
    """What each slot gets after all rules, and the report of what matched."""

    weights: dict[Slot, QuantizerSpec] = field(default_factory=dict)
    inputs: dict[Slot, QuantizerSpec] = field(default_factory=dict)
    operands: dict[tuple[str, str], QuantizerSpec] = field(default_factory=dict)
    report: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def slots(self) -> set[Slot]:
        """Slots that have a weight or an input quantizer."""
        return {*self.weights, *self.inputs}


def resolve(model: nn.Module, family: Family, rules: tuple[Rule, ...]) -> Resolved:
    """Apply the rules in order; later ones win.

    Raises:
        ValueError: Listing every entry that matches nothing or makes no sense.
    """
    resolved, roles = Resolved(), family.role_names(model)
    for index, rule in enumerate(rules):
        where = f"rules[{index}]"
        for entry in rule.match:
            if entry == "attention":
                _apply_to_attention(rule, where, roles[entry], resolved)
            elif rule.bmm is not None:
                resolved.problems.append(f"{where}: `bmm` is for match: [attention], not {entry!r}")
            elif slots := _slots(entry, model, family, roles):
                _apply_to_layers(rule, entry, model, slots, resolved)
            elif rule.required:
                fault = f"{where}: match {entry!r} matches no module of {family.name}."
                resolved.problems.append(f"{fault} {_hint(entry, roles)}")
            else:
                resolved.report.append(f"{entry}: not in this family, skipped")
    if resolved.problems:
        raise ValueError("quantizer rules do not fit the model:\n" + "\n".join(f"  {p}" for p in resolved.problems))
    return resolved


def _apply_to_attention(rule: Rule, where: str, names: list[str], resolved: Resolved) -> None:
    if rule.weight is not None or rule.input is not None:
        resolved.problems.append(f"{where}: match 'attention' takes `bmm`, not `weight` or `input`")
    unknown = sorted(set(rule.operands) - set(OPERANDS))
    if unknown:
        resolved.problems.append(f"{where}: operand {unknown[0]!r}: allowed are {', '.join(OPERANDS)}")
    for name in names:
        for operand in rule.operands:
            _set(resolved.operands, (name, operand), rule.bmm)
    resolved.report.append(f"attention: {len(names)} modules: {', '.join(rule.operands)} {rule.bmm}")


def _apply_to_layers(rule: Rule, entry: str, model: nn.Module, slots: list[Slot], resolved: Resolved) -> None:
    for slot in slots:
        _set(resolved.weights, slot, rule.weight)
        _set(resolved.inputs, slot, rule.input)
    kinds = Counter(type(model.get_submodule(name)).__name__.removeprefix("Quant").lower() for name, _ in slots)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    settings = [f"{name} {value}" for name in ("weight", "input") if (value := getattr(rule, name)) is not None]
    resolved.report.append(f"{entry}: {counts}: {', '.join(settings) or 'nothing set'}")


def _set(specs: dict[K, QuantizerSpec], key: K, setting: Setting) -> None:
    if setting == "off":
        specs.pop(key, None)
    elif isinstance(setting, QuantizerSpec):
        specs[key] = setting


def _slots(entry: str, model: nn.Module, family: Family, roles: dict[str, list[str]]) -> list[Slot]:
    if entry in ROLES:
        block = entry if family.fused_qkv and entry in QKV else None
        return [(name, block) for name in roles.get(entry, [])]
    fused = set(roles["query"]) if family.fused_qkv else set()
    slots: list[Slot] = []
    for name, module in model.named_modules():
        if fnmatchcase(name, entry) and isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            slots.extend([(name, block) for block in QKV] if name in fused else [(name, None)])
    return slots


def _hint(entry: str, roles: dict[str, list[str]]) -> str:
    near = difflib.get_close_matches(entry, roles, n=1)
    nearest = f"Did you mean {near[0]!r}? " if near else ""
    return f"{nearest}Roles here: {', '.join(roles)}. Set `required: false` for a role that some families lack."

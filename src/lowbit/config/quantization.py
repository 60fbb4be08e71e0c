"""Validation of quantizers, estimators, corrections and oscillation settings (imports no torch)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields

from lowbit.config.kinds import COMMON, FACTS, GRIDLESS, SEQ_BITS, UNIFORM_ONLY, KindFacts, facts_of
from lowbit.settings.fields import field_problems, word
from lowbit.settings.quantizer import (
    CorrectionKind,
    EstimatorConfig,
    EstimatorKind,
    FakeQuantConfig,
    Granularity,
    NoiseUnit,
    QuantizerConfig,
    QuantizerKind,
    RuleConfig,
)
from lowbit.settings.run import Config

_OPERANDS = ("query", "key", "probs", "value")
_EMBEDDING = (Granularity.tensor, Granularity.row)
_LARGEST_AMPLITUDE = 1 / (math.sqrt(2) * math.pi)


def quantization_problems(config: Config) -> Iterator[str]:
    """Yield every problem of what is quantized and how, one line each."""
    for key, spec, slot in _specs(config.quantizer):
        yield from _fake_quant(key, spec, slot)
        if facts_of(spec.kind):
            role = "activation" if slot == "input" else "weight"
            yield from _estimator_fits(key, spec, f"estimator.{role}", getattr(config.estimator, role))
    for where, rule in rule_lists(config.quantizer):
        if rule.input is not None and facts_of(rule.input.kind) and rule.input.granularity is Granularity.head:
            yield (
                f"{where}.input.granularity=head: inputs of layers have no heads yet; set it for "
                "the operands only, quantizer.operand or a rule's bmm, as conf/quantizer/lsq_per_head.yaml does"
            )
        for operand in set(rule.operands) - set(_OPERANDS):
            yield f"{where}.operands: {operand!r} is no operand; allowed: {', '.join(_OPERANDS)}"
    yield from _estimator("estimator.weight", config.estimator.weight)
    yield from _estimator("estimator.activation", config.estimator.activation)
    yield from _correction(config)
    yield from _oscillation(config)


def rule_lists(quantizer: QuantizerConfig) -> Iterator[tuple[str, RuleConfig]]:
    """Yield (key, rule) of the scheme's rules and of those of single stages."""
    for index, rule in enumerate(quantizer.rules):
        yield f"quantizer.rules.{index}", rule
    for stage, own in quantizer.by_stage.items():
        for index, rule in enumerate(own.rules):
            yield f"quantizer.by_stage.{stage}.rules.{index}", rule


def _specs(quantizer: QuantizerConfig) -> list[tuple[str, FakeQuantConfig, str]]:
    """Return (key, settings, slot) of every quantizer; a rule that refers to a shared one repeats nothing."""
    shared = [
        ("quantizer.weight", quantizer.weight, "weight"),
        ("quantizer.embedding", quantizer.embedding, "embedding"),
        ("quantizer.activation", quantizer.activation, "input"),
        ("quantizer.operand", quantizer.operand, "input"),
    ]
    found = list(shared)
    for where, rule in rule_lists(quantizer):
        for name, slot in (("weight", "weight"), ("input", "input"), ("bmm", "input")):
            spec = getattr(rule, name)
            same = [kind for _, other, kind in shared if other == spec]
            if spec is not None and not any((kind == "input") == (slot == "input") for kind in same):
                found.append((f"{where}.{name}", spec, slot))
    return found


def _fake_quant(key: str, spec: FakeQuantConfig, slot: str) -> Iterator[str]:
    facts = facts_of(spec.kind)
    given = {f.name: getattr(spec, f.name) for f in fields(spec) if getattr(spec, f.name) is not None}
    if facts is None:
        yield from field_problems(spec, f"{key}.")
        return
    if spec.options and "." not in spec.kind:
        yield f"{key}.options: are of a class of your own, kind: module.Class; remove them"
    for name, value in given.items():
        if name not in (*COMMON, *facts.takes):
            allowed = ", ".join(facts.takes) or "nothing of its own"
            yield f"{key}.{name}={word(value)}: kind {spec.kind} takes {allowed}; set {key}.{name}=null"
    yield from field_problems(spec, f"{key}.")
    yield from _granularity(key, spec, slot, facts)
    yield from _bits(key, spec, facts)
    yield from _values(key, spec, facts)


def _granularity(key: str, spec: FakeQuantConfig, slot: str, facts: KindFacts) -> Iterator[str]:
    allowed = facts.input if slot == "input" else facts.weight
    if slot == "embedding":
        allowed = tuple(g for g in allowed if g in _EMBEDDING)
    if not allowed:
        other = "weights" if slot == "input" else "activations"
        yield f"{key}.kind={spec.kind}: is for {other} only; see `lowbit ls quantizer` for schemes that fit"
    elif spec.granularity not in allowed:
        names = ", ".join(g.name for g in allowed)
        yield f"{key}.granularity={spec.granularity.name}: kind {spec.kind} allows {names} here"


def _bits(key: str, spec: FakeQuantConfig, facts: KindFacts) -> Iterator[str]:
    bits, name = spec.bits, spec.kind
    shown = "null" if bits is None else f"{bits:g}"
    if facts.bits is None:
        if bits is not None:
            yield f"{key}.bits={shown}: kind {name} has one width only; set bits to null, or choose another kind"
    elif spec.kind == QuantizerKind.seq:
        if bits not in SEQ_BITS:
            yield f"{key}.bits={shown}: kind seq takes {', '.join(f'{b:g}' for b in SEQ_BITS)} bits"
    else:
        low, high = facts.bits
        low = 1 if spec.kind == QuantizerKind.lsq and spec.signed is False else low
        if bits is None or not low <= bits <= high or bits != int(bits):
            yield f"{key}.bits={shown}: kind {name} takes {low} to {high} bits; ternary weights are kind: twn"


def _values(key: str, spec: FakeQuantConfig, facts: KindFacts) -> Iterator[str]:
    if spec.init is not None and facts.inits and spec.init not in facts.inits:
        yield f"{key}.init={spec.init.name}: kind {spec.kind} allows {', '.join(i.name for i in facts.inits)}"
    block = spec.kind == QuantizerKind.block_noise
    if not facts.noise and spec.noise is not None:
        yield f"{key}.noise={spec.noise.name}: kind {spec.kind} has no scalar noise; set it to null"
    if spec.noise_rate is not None and not (facts.noise or block):
        yield f"{key}.noise_rate={spec.noise_rate}: kind {spec.kind} has no noise; set it to null"
    if facts.noise and (spec.noise is None) != (spec.noise_rate is None):
        yield f"{key}: noise and noise_rate go together, for example noise: element and noise_rate: 0.5"
    if spec.noise_rate == 1 and block:
        yield f"{key}.noise_rate=1: kind {spec.kind} needs a rate below 1"
    if spec.noise is NoiseUnit.row and spec.granularity is Granularity.head:
        yield f"{key}.noise=row: with granularity head use noise: element"


def _estimator(key: str, config: EstimatorConfig) -> Iterator[str]:
    if config.kind is EstimatorKind.stable_qat and _largest_slope(config) > _LARGEST_AMPLITUDE * (1 + 1e-9):
        yield (
            f"{key}.amplitude={config.amplitude}: StableQAT's slope would turn negative; the limit is "
            f"1/(sqrt(2) pi) = {_LARGEST_AMPLITUDE:.4f}, the paper's value 0.21"
        )


def _largest_slope(config: EstimatorConfig) -> float:
    series = config.amplitudes or [config.amplitude * (-1) ** m / (2 * m + 1) for m in range(config.terms + 1)]
    points = [k / 2000 for k in range(1001)]
    return max(abs(sum(a * math.cos((2 * m + 1) * math.pi * d) for m, a in enumerate(series))) for d in points)


def _estimator_fits(key: str, spec: FakeQuantConfig, where: str, estimator: EstimatorConfig) -> Iterator[str]:
    facts, kind = facts_of(spec.kind), estimator.kind
    if facts is None or kind is EstimatorKind.published:
        return
    if not facts.estimators:
        yield f"{where}.kind={kind.name}: {key} has kind {spec.kind}, which takes only: published"
    elif kind in UNIFORM_ONLY and not facts.uniform:
        uniform = ", ".join(k.name for k, f in FACTS.items() if f.uniform and f.estimators and f.weight)
        yield (
            f"{where}.kind={kind.name}: needs thresholds half-way between the levels, which "
            f"{key}.kind={spec.kind} does not have; use estimator=clipped_ste or ste, or a kind of {uniform}"
        )


def _correction(config: Config) -> Iterator[str]:
    correction = config.correction
    if correction.kind is CorrectionKind.none:
        return
    yield from _needs_codes(config.quantizer, f"correction.kind={correction.kind.name}")
    rates = [config.optimizer.lr, *(stage.optimizer.lr or 0.0 for stage in config.method.stages.values())]
    rate = max(rates) * correction.strength
    if correction.kind is CorrectionKind.cage and not correction.coupled and rate >= 1:
        yield (
            f"correction.strength={correction.strength}: times the learning rate {max(rates)} it must stay below "
            "1, or weights jump over their grid"
        )


def _oscillation(config: Config) -> Iterator[str]:
    if config.oscillation.track or config.oscillation.freeze:
        yield from _needs_codes(config.quantizer, "oscillation.track=true")


def _needs_codes(quantizer: QuantizerConfig, what: str) -> Iterator[str]:
    weights = [(key, spec) for key, spec, slot in _specs(quantizer) if slot != "input"]
    for key, spec in weights:
        if spec.kind in GRIDLESS:
            yield f"{what}: {key}.kind={spec.kind} has no grid; choose another kind, or set that to none"
    if not any(facts_of(spec.kind) for _, spec in weights):
        yield f"{what}: quantizer={quantizer.name} quantizes no weight"

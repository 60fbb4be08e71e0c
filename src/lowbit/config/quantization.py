"""Validation of quantizers, estimators, corrections and oscillation settings (imports no torch)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from typing import Any

from lowbit.config import schema as S
from lowbit.config.kinds import COMMON, FACTS, GRIDLESS, SEQ_BITS, UNIFORM_ONLY, KindFacts

_OPERANDS = ("query", "key", "probs", "value")
_EMBEDDING = (S.Granularity.tensor, S.Granularity.row)
_LARGEST_AMPLITUDE = 1 / (math.sqrt(2) * math.pi)
_POSITIVE = ("clip", "refresh_every", "block_size", "centroids")


def quantization_problems(config: S.Config) -> Iterator[str]:
    """Yield every problem of what is quantized and how, one line each."""
    for key, spec, slot in _specs(config.quantizer):
        yield from _fake_quant(key, spec, slot)
        if spec.kind in FACTS:
            role = "activation" if slot == "input" else "weight"
            yield from _estimator_fits(key, spec, f"estimator.{role}", getattr(config.estimator, role))
    if config.quantizer.calibration_batches < 1:
        yield f"quantizer.calibration_batches={config.quantizer.calibration_batches}: must be at least 1"
    for where, rule in rule_lists(config.quantizer):
        if rule.input is not None and rule.input.kind in FACTS and rule.input.granularity is S.Granularity.head:
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


def unused_problems(quantizer: S.QuantizerConfig, overrides: list[str]) -> Iterator[str]:
    """Report shared settings that are overridden although no rule refers to them: they would do nothing."""
    for name in ("weight", "embedding", "activation", "operand"):
        spec = getattr(quantizer, name)
        used = any(spec in (rule.weight, rule.input, rule.bmm) for _, rule in rule_lists(quantizer))
        given = next((o for o in overrides if o.lstrip("+").startswith(f"quantizer.{name}.")), None)
        if spec.kind in FACTS and given is not None and not used:
            yield (
                f"{given}: no rule of quantizer={quantizer.name} uses it; choose "
                "another scheme (`lowbit ls quantizer`), or add a rule in a conf/quantizer/*.yaml of your own"
            )


def rule_lists(quantizer: S.QuantizerConfig) -> Iterator[tuple[str, S.RuleConfig]]:
    """Yield (key, rule) of the scheme's rules and of those of single stages."""
    for index, rule in enumerate(quantizer.rules):
        yield f"quantizer.rules.{index}", rule
    for stage, own in quantizer.by_stage.items():
        for index, rule in enumerate(own.rules):
            yield f"quantizer.by_stage.{stage}.rules.{index}", rule


def _specs(quantizer: S.QuantizerConfig) -> list[tuple[str, S.FakeQuantConfig, str]]:
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


def _fake_quant(key: str, spec: S.FakeQuantConfig, slot: str) -> Iterator[str]:
    facts = FACTS.get(spec.kind)
    given = {f.name: getattr(spec, f.name) for f in fields(spec) if getattr(spec, f.name) is not None}
    if facts is None:
        return
    for name, value in given.items():
        if name not in (*COMMON, *facts.takes):
            allowed = ", ".join(facts.takes) or "nothing of its own"
            yield f"{key}.{name}={_word(value)}: kind {spec.kind.name} takes {allowed}; set {key}.{name}=null"
    yield from _granularity(key, spec, slot, facts)
    yield from _bits(key, spec, facts)
    yield from _values(key, spec, facts)


def _granularity(key: str, spec: S.FakeQuantConfig, slot: str, facts: KindFacts) -> Iterator[str]:
    allowed = facts.input if slot == "input" else facts.weight
    if slot == "embedding":
        allowed = tuple(g for g in allowed if g in _EMBEDDING)
    if not allowed:
        other = "weights" if slot == "input" else "activations"
        yield f"{key}.kind={spec.kind.name}: is for {other} only; see `lowbit ls quantizer` for schemes that fit"
    elif spec.granularity not in allowed:
        names = ", ".join(g.name for g in allowed)
        yield f"{key}.granularity={spec.granularity.name}: kind {spec.kind.name} allows {names} here"


def _bits(key: str, spec: S.FakeQuantConfig, facts: KindFacts) -> Iterator[str]:
    bits, name = spec.bits, spec.kind.name
    shown = "null" if bits is None else f"{bits:g}"
    if facts.bits is None:
        if bits is not None:
            yield f"{key}.bits={shown}: kind {name} has one width only; set bits to null, or choose another kind"
    elif spec.kind is S.QuantizerKind.seq:
        if bits not in SEQ_BITS:
            yield f"{key}.bits={shown}: kind seq takes {', '.join(f'{b:g}' for b in SEQ_BITS)} bits"
    else:
        low, high = facts.bits
        low = 1 if spec.kind is S.QuantizerKind.lsq and spec.signed is False else low
        if bits is None or not low <= bits <= high or bits != int(bits):
            yield f"{key}.bits={shown}: kind {name} takes {low} to {high} bits; ternary weights are kind: twn"


def _values(key: str, spec: S.FakeQuantConfig, facts: KindFacts) -> Iterator[str]:
    for name in _POSITIVE:
        value = getattr(spec, name)
        if value is not None and value <= 0:
            yield f"{key}.{name}={value}: must be greater than 0, or null for the default"
    if spec.threshold is not None and spec.threshold <= 0:
        yield f"{key}.threshold={spec.threshold}: must be greater than 0"
    if spec.momentum is not None and not 0 <= spec.momentum < 1:
        yield f"{key}.momentum={spec.momentum}: must be at least 0 and below 1"
    if spec.sign_of_zero not in (None, 0, 1):
        yield f"{key}.sign_of_zero={spec.sign_of_zero}: allowed are 1, and 0 as in the published code"
    if spec.init is not None and facts.inits and spec.init not in facts.inits:
        yield f"{key}.init={spec.init.name}: kind {spec.kind.name} allows {', '.join(i.name for i in facts.inits)}"
    block = spec.kind is S.QuantizerKind.block_noise
    if not facts.noise and spec.noise is not None:
        yield f"{key}.noise={spec.noise.name}: kind {spec.kind.name} has no scalar noise; set it to null"
    if spec.noise_rate is not None and not (facts.noise or block):
        yield f"{key}.noise_rate={spec.noise_rate}: kind {spec.kind.name} has no noise; set it to null"
    if facts.noise and (spec.noise is None) != (spec.noise_rate is None):
        yield f"{key}: noise and noise_rate go together, for example noise: element and noise_rate: 0.5"
    top = "below 1" if block else "at most 1"
    if spec.noise_rate is not None and not (0 <= spec.noise_rate < 1 or (spec.noise_rate == 1 and not block)):
        yield f"{key}.noise_rate={spec.noise_rate}: must be at least 0 and {top}"
    if spec.noise is S.NoiseUnit.row and spec.granularity is S.Granularity.head:
        yield f"{key}.noise=row: with granularity head use noise: element"


def _estimator(key: str, config: S.EstimatorConfig) -> Iterator[str]:
    if config.kind is S.EstimatorKind.value_clipped_ste and config.bound <= 0:
        yield f"{key}.bound={config.bound}: must be greater than 0"
    if config.kind is S.EstimatorKind.ewgs and not 0 <= config.delta <= 2:
        yield f"{key}.delta={config.delta}: must be at least 0 and at most 2, beyond which gradients change sign"
    if config.kind is S.EstimatorKind.stable_qat:
        if config.terms < 0:
            yield f"{key}.terms={config.terms}: must be at least 0"
        elif _largest_slope(config) > _LARGEST_AMPLITUDE * (1 + 1e-9):
            yield (
                f"{key}.amplitude={config.amplitude}: StableQAT's slope would turn negative; the limit is "
                f"1/(sqrt(2) pi) = {_LARGEST_AMPLITUDE:.4f}, the paper's value 0.21"
            )


def _largest_slope(config: S.EstimatorConfig) -> float:
    series = config.amplitudes or [config.amplitude * (-1) ** m / (2 * m + 1) for m in range(config.terms + 1)]
    points = [k / 2000 for k in range(1001)]
    return max(abs(sum(a * math.cos((2 * m + 1) * math.pi * d) for m, a in enumerate(series))) for d in points)


def _estimator_fits(key: str, spec: S.FakeQuantConfig, where: str, estimator: S.EstimatorConfig) -> Iterator[str]:
    facts, kind = FACTS[spec.kind], estimator.kind
    if kind is S.EstimatorKind.published:
        return
    if not facts.estimators:
        yield f"{where}.kind={kind.name}: {key} has kind {spec.kind.name}, which takes only: published"
    elif kind in UNIFORM_ONLY and not facts.uniform:
        uniform = ", ".join(k.name for k, f in FACTS.items() if f.uniform and f.estimators and f.weight)
        yield (
            f"{where}.kind={kind.name}: needs thresholds half-way between the levels, which "
            f"{key}.kind={spec.kind.name} does not have; use estimator=clipped_ste or ste, or a kind of {uniform}"
        )


def _correction(config: S.Config) -> Iterator[str]:
    correction = config.correction
    if correction.kind is S.CorrectionKind.none:
        return
    yield from _needs_codes(config.quantizer, f"correction.kind={correction.kind.name}")
    if correction.strength <= 0:
        yield f"correction.strength={correction.strength}: must be greater than 0"
    for name in ("silence", "start"):
        if not 0 <= getattr(correction, name) < 1:
            yield f"correction.{name}={getattr(correction, name)}: a fraction of the stage, at least 0 and below 1"
    rates = [config.optimizer.lr, *(stage.optimizer.lr or 0.0 for stage in config.method.stages.values())]
    rate = max(rates) * correction.strength
    if correction.kind is S.CorrectionKind.cage and not correction.coupled and rate >= 1:
        yield (
            f"correction.strength={correction.strength}: times the learning rate {max(rates)} it must stay below "
            "1, or weights jump over their grid"
        )


def _oscillation(config: S.Config) -> Iterator[str]:
    settings = config.oscillation
    if not settings.track and not settings.freeze:
        return
    yield from _needs_codes(config.quantizer, "oscillation.track=true")
    if not 0 < settings.momentum <= 1:
        yield f"oscillation.momentum={settings.momentum}: must be above 0 and at most 1"
    for name in ("threshold", "freeze_from", "freeze_to"):
        if not 0 < getattr(settings, name) < 1:
            yield f"oscillation.{name}={getattr(settings, name)}: must be between 0 and 1"
    if not 0 <= settings.freeze_start < 1:
        yield f"oscillation.freeze_start={settings.freeze_start}: a fraction of the stage, at least 0 and below 1"


def _needs_codes(quantizer: S.QuantizerConfig, what: str) -> Iterator[str]:
    weights = [(key, spec) for key, spec, slot in _specs(quantizer) if slot != "input"]
    for key, spec in weights:
        if spec.kind in GRIDLESS:
            yield f"{what}: {key}.kind={spec.kind.name} has no grid; choose another kind, or set that to none"
    if not any(spec.kind in FACTS for _, spec in weights):
        yield f"{what}: quantizer={quantizer.name} quantizes no weight"


def _word(value: Any) -> str:
    return value.name if isinstance(value, Enum) else str(value).lower() if isinstance(value, bool) else str(value)

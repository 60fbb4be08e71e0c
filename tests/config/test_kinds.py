"""The facts that validation reads are those of the quantizers: what it accepts builds, what it refuses does not."""

import itertools

import pytest
import torch

from lowbit.config.kinds import FACTS, GRIDLESS
from lowbit.config.problems import ConfigError
from lowbit.config.quantization import _fake_quant, quantization_problems
from lowbit.config.validate import load
from lowbit.quantizers import KINDS, QuantizerSpec, Target, build_quantizer
from lowbit.recipes.builders import build_estimator
from lowbit.settings.data import DataConfig, DataKind
from lowbit.settings.quantizer import (
    CorrectionConfig,
    CorrectionKind,
    EstimatorConfig,
    EstimatorKind,
    FakeQuantConfig,
    GradScale,
    Granularity,
    LatVariant,
    NoiseUnit,
    OscillationConfig,
    QuantizerConfig,
    QuantizerKind,
    RuleConfig,
    ScaleInit,
)
from lowbit.settings.recipe import MethodConfig, OptimizerChanges, StageConfig
from lowbit.settings.run import Config

KIND_NAMES = sorted(KINDS)
# A value of each setting that a kind may take, valid for every kind that takes it.
VALUES = {
    "threshold": 0.7, "clip": 2.0, "center": True, "sign_of_zero": 0, "signed": True, "symmetric": False,
    "offset": True, "shift": True, "subtract_minimum": False, "grad_scale": GradScale.lsq, "init": ScaleInit.mean,
    "variant": LatVariant.exact, "momentum": 0.9, "refresh_every": 2, "block_size": 4, "centroids": 4,
}  # fmt: skip
WEIGHT = Target((8, 8), torch.randn(8, 8), weight=True, heads=(2, 0))
INPUT = Target((8,), torch.randn(8, 8))
NO_STAGES = MethodConfig(name="m", stages={})
OPERAND = Target((2, 1, 4), torch.randn(8, 8))


def bits_for(kind: str) -> float | None:
    facts = FACTS[QuantizerKind[kind]]
    return None if facts.bits is None else 2.0


def spec_of(config: FakeQuantConfig, estimator: EstimatorConfig | None = None) -> QuantizerSpec:
    settings = {key: getattr(value, "name", value) for key, value in vars(config).items()}
    return QuantizerSpec(**settings, estimator=None if estimator is None else build_estimator(estimator))


def builds(config: FakeQuantConfig, *targets: Target) -> bool:
    try:
        for target in targets:
            build_quantizer(spec_of(config), target)
    except ValueError:
        return False
    return True


def test_both_lists_name_the_same_kinds():
    assert {kind.name for kind in FACTS} == set(KINDS)
    assert {kind.name for kind in QuantizerKind} == {*KINDS, "none"}
    assert set(VALUES) <= set(vars(FakeQuantConfig()))


def test_a_kind_takes_the_settings_that_validation_allows_and_no_others():
    for kind in KIND_NAMES:
        for name, value in VALUES.items():
            config = FakeQuantConfig(kind=QuantizerKind[kind], bits=bits_for(kind), **{name: value})
            slot = "weight" if FACTS[config.kind].weight else "input"
            accepted = not list(_fake_quant("key", config, slot))
            try:
                spec_of(config)
                built = True
            except ValueError:
                built = False
            assert accepted == built, (kind, name, list(_fake_quant("key", config, slot)))
            assert accepted == (name in FACTS[config.kind].takes), (kind, name)


def test_widths_agree():
    for kind, bits in itertools.product(KIND_NAMES, [None, 1.0, 1.58, 2.0, 2.5, 3.0, 4.0, 8.0, 16.0]):
        config = FakeQuantConfig(kind=QuantizerKind[kind], bits=bits)
        slot, target = ("weight", WEIGHT) if FACTS[config.kind].weight else ("input", INPUT)
        accepted = not list(_fake_quant("key", config, slot))
        if bits is not None and bits > 8 and kind in ("elastic", "statsq"):
            assert not accepted, (kind, bits)  # narrower in validation: no published use
        else:
            assert accepted == builds(config, target), (kind, bits)


def test_granularities_that_validation_accepts_build():
    for kind, granularity in itertools.product(KIND_NAMES, Granularity):
        config = FakeQuantConfig(kind=QuantizerKind[kind], bits=bits_for(kind), granularity=granularity)
        facts = FACTS[config.kind]
        assert (granularity in facts.weight) == (not list(_fake_quant("key", config, "weight"))), (kind, granularity)
        assert (granularity in facts.input) == (not list(_fake_quant("key", config, "input"))), (kind, granularity)
        if granularity in facts.weight:
            assert builds(config, WEIGHT), (kind, granularity)
        if granularity in facts.input:
            assert builds(config, OPERAND), (kind, granularity)


def test_an_estimator_is_refused_at_composition_where_it_is_undefined():
    for kind, estimator in itertools.product(KIND_NAMES, EstimatorKind):
        config = Config(quantizer=QuantizerConfig(name="x"), data=DataConfig(name="d", kind=DataKind.digits))
        slot = "weight" if FACTS[QuantizerKind[kind]].weight else "activation"
        spec = FakeQuantConfig(kind=QuantizerKind[kind], bits=bits_for(kind))
        setattr(config.quantizer, slot, spec)
        rule = {"weight": spec} if slot == "weight" else {"bmm": spec}
        config.quantizer.rules = [RuleConfig(match=["attention" if slot == "activation" else "query"], **rule)]
        setattr(config.estimator, slot, EstimatorConfig(kind=estimator))
        problems = list(quantization_problems(config))
        try:
            spec_of(spec, EstimatorConfig(kind=estimator))
            defined = True
        except ValueError:
            defined = False
        assert defined == (not problems), (kind, estimator, problems)
        assert all(f"estimator.{slot}.kind={estimator.name}" in problem for problem in problems)


def test_scalar_noise_agrees():
    for kind in KIND_NAMES:
        config = FakeQuantConfig(kind=QuantizerKind[kind], bits=bits_for(kind), noise=NoiseUnit.row, noise_rate=0.5)
        facts = FACTS[config.kind]
        slot = "weight" if facts.weight else "input"
        accepted = not list(_fake_quant("key", config, slot))
        assert accepted == facts.noise, kind
        assert accepted == builds(config, WEIGHT if facts.weight else INPUT), kind


def test_gridless_kinds_are_those_without_codes():
    for kind in FACTS:
        if FACTS[kind].weight:
            config = FakeQuantConfig(kind=kind, bits=bits_for(kind.name), block_size=4 if kind in GRIDLESS else None)
            quantizer = build_quantizer(spec_of(config), WEIGHT)
            quantizer.initialize(torch.randn(8, 8))
            if kind in GRIDLESS:
                with pytest.raises(ValueError, match="grid"):
                    quantizer.codes(torch.randn(8, 8))
            else:
                codes = quantizer.codes(torch.randn(8, 8))
                assert torch.equal(codes, codes.round())


def test_a_pull_beyond_the_grid_is_refused():
    twn = FakeQuantConfig(kind=QuantizerKind.twn)
    quantizer = QuantizerConfig(name="x", weight=twn, rules=[RuleConfig(match=["query"], weight=twn)])
    correction = CorrectionConfig(kind=CorrectionKind.cage, strength=1000.0)
    (problem,) = quantization_problems(Config(quantizer=quantizer, method=NO_STAGES, correction=correction))
    assert problem.startswith("correction.strength=1000.0: times the learning rate")
    assert "below 1" in problem


def test_a_correction_without_a_grid_is_refused():
    for weight in (FakeQuantConfig(kind=QuantizerKind.ipq), FakeQuantConfig()):
        config = Config(
            quantizer=QuantizerConfig(name="x", weight=weight),
            method=NO_STAGES,
            correction=CorrectionConfig(kind=CorrectionKind.dampening, strength=0.1),
            oscillation=OscillationConfig(track=True),
        )
        problems = list(quantization_problems(config))
        assert any(problem.startswith("correction.kind=dampening") for problem in problems)
        assert any(problem.startswith("oscillation.track=true") for problem in problems)


def test_an_override_that_no_rule_uses_is_reported():
    overrides = ["quantizer=seq_w2", "quantizer.activation.kind=lsq", "quantizer.activation.bits=4"]
    with pytest.raises(ConfigError) as caught:
        load(overrides)
    for override, problem in zip(overrides[1:], caught.value.problems, strict=True):
        assert problem.startswith(f"{override}: has no effect, since no rule of quantizer=seq_w2 uses it")
    load(["quantizer=lsq_w4a4", "quantizer.activation.bits=3"])
    load(["quantizer.rules=[{match:[query],weight:{kind:twn}}]"])


def test_inputs_of_layers_have_no_heads():
    spec = FakeQuantConfig(kind=QuantizerKind.minmax_symmetric, bits=8, granularity=Granularity.head)
    rules = [RuleConfig(match=["attention"], bmm=spec), RuleConfig(match=["query"], input=spec)]
    (problem,) = quantization_problems(Config(quantizer=QuantizerConfig(name="x", activation=spec, rules=rules)))
    assert problem.startswith("quantizer.rules.1.input.granularity=head")
    with pytest.raises(ValueError, match="operands of the attention products"):
        build_quantizer(spec_of(spec), INPUT)
    assert builds(spec, OPERAND)


def test_the_learning_rate_of_every_stage_is_checked_against_the_pull():
    twn = FakeQuantConfig(kind=QuantizerKind.twn)
    stages = {"a": StageConfig(), "b": StageConfig(optimizer=OptimizerChanges(lr=0.2))}
    config = Config(
        quantizer=QuantizerConfig(name="x", weight=twn, rules=[RuleConfig(match=["query"], weight=twn)]),
        correction=CorrectionConfig(kind=CorrectionKind.cage),
        method=MethodConfig(name="m", stages=stages),
    )
    (problem,) = quantization_problems(config)
    assert "the learning rate 0.2" in problem

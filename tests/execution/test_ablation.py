"""The variants of an ablation: every one is a config that a run accepts, and differs where it says it does."""

from functools import cache

import pytest

from lowbit.config import identity
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load
from lowbit.execution.ablation import Variant, build_variants, effects, metric_of, plan_ablation
from lowbit.settings.run import Config


@cache
def resolved(*overrides: str) -> dict:
    return identity.resolved(load(list(overrides))[0])


def variants(slots: list[str], *overrides: str) -> dict[str, Variant]:
    found = build_variants(resolved(*overrides), slots)
    return {str(variant): variant for variant in found}


def config_of(variant: Variant, *overrides: str) -> Config:
    return load(variant.applied(overrides))[1]


def on(config: Config) -> list[str]:
    return [name for name, loss in config.method.losses.items() if loss.is_on]


def test_variants_of_teacher_intervention():
    """Each loss and each site left out, and alone; the other half of the schedule stays."""
    base = ("experiment=digits/ti_g",)
    found = variants(["losses", "intervention"], *base)
    terms, sites = ["logits", "hidden", "scores", "attn_block"], ["attn_out", "context", "probs"]
    assert list(found) == [
        *(f"losses: without {name}" for name in terms),
        *(f"losses: only {name}" for name in terms),
        "intervention: off",
        *(f"intervention: without {site}" for site in sites),
        *(f"intervention: only {site}" for site in sites),
    ]
    configs = {name: config_of(variant, *base) for name, variant in found.items()}
    for term in terms:
        assert on(configs[f"losses: without {term}"]) == [other for other in terms if other != term]
        assert on(configs[f"losses: only {term}"]) == [term]
    assert configs["intervention: off"].method.stages["intervene"].intervention is None
    for site in sites:
        phases = configs[f"intervention: only {site}"].method.stages["intervene"].intervention.phases
        assert [[s.name for s in phase.sites] for phase in phases] == [[site]]
        rest = configs[f"intervention: without {site}"].method.stages["intervene"].intervention.phases
        assert [s.name for phase in rest for s in phase.sites] == [other for other in sites if other != site]
    shares = configs["intervention: without context"].method.stages["intervene"].intervention.phases
    assert [phase.share for phase in shares] == [1, 4]


def test_variants_of_variation_aware():
    """Rules with inline settings keep them; what a regularizer alone would be is not run."""
    base = ("experiment=digits/variation_aware_w4a4", "quantizer.weight.bits=3")
    found = variants(["losses", "quantizer"], *base)
    assert {name for name, variant in found.items() if variant.problem} == {"losses: without logits"}
    assert "quantizer: without embedding" not in found  # images have none
    whole = load(list(base))[1].quantizer.rules
    for name, variant in found.items():
        if variant.problem:
            continue
        config = config_of(variant, *base)
        rules = config.quantizer.rules
        if name == "losses: without obr":
            assert on(config) == ["logits"]
        elif name == "quantizer: off":
            assert rules == []
        elif name == "quantizer: without weights":
            assert [r.input for r in rules if r.input] == [r.input for r in whole if r.input]
            assert [r.bmm for r in rules if r.bmm] == [r.bmm for r in whole if r.bmm]
            assert {tuple(r.match) for r in rules if r.weight} == {("word_embedding",)}
        elif name == "quantizer: weights only":
            assert not any(r.input or r.bmm for r in rules)
            kept = [r for r in whole if r.weight]
            assert [(r.match, r.weight, r.required) for r in rules] == [(r.match, r.weight, r.required) for r in kept]
            assert kept[0].weight.bits == 3


def test_variants_of_kd_qat_on_text():
    base = ("experiment=agreement/ternarybert", "method=kd_qat")
    found = variants(["intervention", "quantizer"], *base)
    assert "intervention: off" not in found
    without = config_of(found["quantizer: without embedding"], *base)
    assert not any("word_embedding" in rule.match for rule in without.quantizer.rules)
    assert any(rule.weight for rule in without.quantizer.rules)


def test_choices_of_a_group():
    found = variants(["estimator"], "experiment=digits/ti_g")
    assert "estimator: clipped_ste" in found
    assert "estimator: published" not in found
    words = found["estimator: ste"].applied(["experiment=digits/ti_g", "estimator.weight.delta=1", "seed=2"])
    assert words == ["experiment=digits/ti_g", "seed=2", "estimator=ste"]


def test_phases_of_one_site():
    """Phases that differ in their mixes alone are varied by their number."""
    phase = {"sites": ["probs"], "share": 1, "mix": 1.0, "mix_end": None, "ramp": "constant", "site_mix": {}}
    moving = {**phase, "mix_end": 0.0, "ramp": "linear", "site_mix": {"probs": {**phase, "mix": 0.5}}}
    stages = {"a": {"losses": {}, "intervention": {"phases": [phase, moving]}}}
    config = {"method": {"losses": {}, "stages": stages}}
    found = {str(variant): variant.overrides for variant in build_variants(config, ["losses", "intervention"])}
    assert found == {
        "intervention: off": ("method.stages.a.intervention=null",),
        "intervention: without phase 1": (
            "method.stages.a.intervention.phases=[{sites:[probs],mix_end:0.0,ramp:linear,site_mix:{probs:{mix:0.5}}}]",
        ),
        "intervention: only phase 1": ("method.stages.a.intervention.phases=[{sites:[probs]}]",),
    }


def test_plan_leaves_out_the_invalid_and_the_equal(tmp_path, finish):
    """And compares what has finished seed by seed."""
    base = ["experiment=digits/ti_g", f"paths.outputs={tmp_path}"]
    given = [
        Variant("a", "bad", ("model.dropout=3",)),
        Variant("a", "one", ("model.dropout=0.3",)),
        Variant("b", "two", ("model.dropout=0.30",)),
        Variant("b", "never", (), problem="no use"),
    ]
    arms, skipped = plan_ablation(base, given, ["seed=1", "seed=2"])
    assert [str(arm.variant) for arm in arms] == ["base: the recipe itself", "a: one"]
    assert [(one.variant.change, one.reason.split(":")[0]) for one in skipped] == [
        ("bad", "model.dropout=3.0"),
        ("two", "the same as a"),
        ("never", "no use"),
    ]
    assert metric_of(arms) is None
    assert [effect.reading for effect in effects(arms)] == ["not run", "not run"]
    for arm, scores in zip(arms, ((0.5, 0.75), (0.25,)), strict=True):
        for job, score in zip(arm.jobs, scores, strict=False):
            finish(job, metrics={"test/accuracy": score})
    _, one = effects(arms)
    assert one.differences == (-0.25,)
    assert (one.expected, metric_of(arms)) == (2, "test/accuracy")


def test_invalid_recipe_is_an_error():
    with pytest.raises(ConfigError, match="no such choice"):
        plan_ablation(["method=nonsense"], [], ["seed=1"])

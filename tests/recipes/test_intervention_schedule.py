"""Phase lengths of the shipped Teacher Intervention methods (specification, section 3)."""

from collections import Counter
from itertools import groupby

import pytest

from lowbit.config.compose import compose, to_config
from lowbit.modeling import Intervention
from lowbit.recipes import InterventionSchedule, Stage, build_recipe


def intervened_stage(method: str, *overrides: str) -> Stage:
    config = to_config(compose([f"method={method}", "budget.steps=200", *overrides]))
    stages = build_recipe(config, steps_per_epoch=10).stages
    assert [stage.name for stage in stages] == ["intervene", "plain"]
    assert stages[1].intervention is None
    return stages[0]


def site(intervention: Intervention | None) -> str:
    assert intervention is not None
    (only,) = intervention.sites
    return only


def lengths(stage: Stage) -> list[tuple[str, int]]:
    sites = [site(stage.intervention_at(step, seed=0)) for step in range(stage.steps)]
    return [(name, len(list(run))) for name, run in groupby(sites)]


@pytest.mark.parametrize(
    ("method", "steps", "expected"),
    [
        ("ti_o", 60, [("attn_out", 60)]),
        ("ti_c", 60, [("context", 60)]),
        ("ti_m", 60, [("probs", 60)]),
        ("ti_g", 60, [("attn_out", 10), ("context", 10), ("probs", 40)]),
        ("ti_g", 120, [("attn_out", 20), ("context", 20), ("probs", 80)]),
        ("ti_g", 7, [("attn_out", 2), ("context", 1), ("probs", 4)]),  # g < 7/6, g < 7/3, rest
        ("ti_inverted", 60, [("probs", 20), ("context", 20), ("attn_out", 20)]),
    ],
)
def test_phase_lengths(method: str, steps: int, expected: list[tuple[str, int]]):
    assert lengths(intervened_stage(method, f"method.stages.intervene.steps={steps}")) == expected


def test_sixty_steps_are_the_default():
    assert intervened_stage("ti_g").steps == 60


def test_stochastic_draws_every_mode_alike_and_repeats_its_draws():
    stage = intervened_stage("ti_stochastic")
    draws = [site(stage.intervention_at(step, seed=3)) for step in range(600)]
    assert draws == [site(stage.intervention_at(step, seed=3)) for step in range(600)]
    assert site(stage.intervention_at(599, seed=3)) == draws[599]  # a draw needs no earlier one
    assert draws != [site(stage.intervention_at(step, seed=4)) for step in range(600)]
    counts = Counter(draws)
    assert set(counts) == {"attn_out", "context", "probs"}
    assert min(counts.values()) > 150


def test_mix_layers_and_stop_gradient_reach_the_intervention():
    stage = intervened_stage(
        "ti_o",
        "method.stages.intervene.intervention.phases=[{sites: [probs, hidden], mix: 0.25}]",
        "method.stages.intervene.intervention.layers=[1, 3]",
        "method.stages.intervene.intervention.stop_gradient=false",
    )
    expected = Intervention(frozenset({"probs", "hidden"}), frozenset({1, 3}), mix=0.25, stop_gradient=False)
    assert stage.intervention_at(0, seed=0) == expected
    assert stage.intervention is not None
    assert stage.intervention.sites == {"probs", "hidden"}


def test_a_phase_of_no_steps_is_skipped():
    o, m = Intervention(frozenset({"attn_out"})), Intervention(frozenset({"probs"}))
    schedule = InterventionSchedule(((1, o), (9, m)))
    assert [schedule.at(step, 3, seed=0) for step in range(3)] == [o, m, m]
    assert schedule.at(3, 3, seed=0) == m  # past the end: the last phase
    assert schedule.sites == {"attn_out", "probs"}

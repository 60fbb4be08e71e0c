"""Phase lengths of the shipped Teacher Intervention methods (specification, section 3)."""

from collections import Counter
from itertools import groupby

import pytest

from lowbit.config.compose import compose, to_config
from lowbit.modeling import Intervention
from lowbit.recipes import InterventionSchedule, Stage, build_recipe
from lowbit.settings.fields import word
from lowbit.settings.losses import InterventionConfig, MixConfig, PhaseConfig, PhaseOrder, Ramp, Site


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
    schedule = InterventionSchedule(
        InterventionConfig([PhaseConfig(sites=["attn_out"]), PhaseConfig(sites=["probs"], share=9)])
    )
    assert [schedule.at(step, 3, seed=0) for step in range(3)] == [o, m, m]
    assert schedule.at(3, 3, seed=0) == m  # past the end: the last phase
    assert schedule.sites == {"attn_out", "probs"}


# --- mixes that move ------------------------------------------------------------------------------------------------


def mixes(stage: Stage, name: str) -> list[float]:
    interventions = [stage.intervention_at(step, seed=0) for step in range(stage.steps)]
    return [round(intervention.mix_of(name), 4) for intervention in interventions if intervention is not None]


PHASES = "method.stages.intervene.intervention.phases"


def test_a_mix_moves_from_the_first_to_the_last_step_of_its_phase():
    stage = intervened_stage(
        "ti_o",
        "method.stages.intervene.steps=8",
        f"{PHASES}=[{{sites: [attn_out]}}, {{sites: [probs], mix: 1, mix_end: 0, ramp: linear}}]",
    )
    assert mixes(stage, "attn_out") == [1, 1, 1, 1, 0, 0, 0, 0]
    assert mixes(stage, "probs") == [0, 0, 0, 0, 1, 0.6667, 0.3333, 0]


def test_each_site_may_have_a_mix_of_its_own():
    stage = intervened_stage(
        "ti_o",
        "method.stages.intervene.steps=5",
        f"{PHASES}=[{{sites: [probs, context, hidden], mix: 0.5, mix_end: 1, ramp: linear, "
        "site_mix: {context: {mix: 0.25}, hidden: {mix: 1, mix_end: 0, ramp: cosine}}}]",
    )
    assert mixes(stage, "probs") == [0.5, 0.625, 0.75, 0.875, 1]
    assert mixes(stage, "context") == [0.25] * 5
    # (1 + cos(pi p)) / 2 at p = 0, 1/4, 1/2, 3/4, 1
    assert mixes(stage, "hidden") == [1, 0.8536, 0.5, 0.1464, 0]


def test_random_phases_move_their_mix_over_the_whole_stage():
    phases = [
        PhaseConfig(mix_end=0.0, ramp=Ramp.linear, sites=[Site.attn_out]),
        PhaseConfig(sites=[Site.probs], site_mix={Site.probs: MixConfig(1.0, 0.0, Ramp.linear)}),
    ]
    schedule = InterventionSchedule(InterventionConfig(phases, PhaseOrder.random))
    drawn = [schedule.at(step, 11, seed=0) for step in range(11)]
    assert {site(intervention) for intervention in drawn} == {"attn_out", "probs"}
    values = [intervention.mix_of(site(intervention)) for intervention in drawn]
    assert values == pytest.approx([1 - step / 10 for step in range(11)])


@pytest.mark.parametrize(("end", "ramp"), [(None, Ramp.linear), (0.0, Ramp.constant)])
def test_a_ramp_and_its_end_go_together(end: float | None, ramp: Ramp):
    (problem,) = MixConfig(1.0, end, ramp).problems()
    assert problem == f"mix_end={word(end)}: `ramp: linear` or `cosine` and `mix_end` go together"


@pytest.mark.parametrize(
    ("choices", "steps"),
    [
        ([], 60),
        (["data=cola", "model=tinybert_6l"], 120),
        (["data=mrpc", "model=tinybert_4l"], 120),
        (["data=mrpc", "model=tinybert_6l"], 60),
        (["method.stages.intervene.steps=null", "method.stages.intervene.fraction=0.1"], 20),
    ],
)
def test_published_length_of_the_intervened_stage(choices: list[str], steps: int):
    """Specification, section 5: 60 steps, 120 for CoLA and 4-layer models; or a share of the budget."""
    assert intervened_stage("ti_g", *choices).steps == steps


@pytest.mark.parametrize(
    ("method", "compared"),
    [
        ("ti_g", {"logits", "hidden", "scores", "attn_block"}),
        ("ti_o_figure", {"logits", "hidden", "attn_out"}),
        ("ti_m_figure", {"logits", "hidden", "maps"}),
        ("ti_g_figure", {"logits", "hidden", "attn_out", "maps"}),
        ("ti_g_development", {"logits", "hidden", "maps", "attn_block", "task"}),
    ],
)
def test_internal_distillation(method: str, compared: set[str]):
    """Specification, section 7.1: the release, the paper's figure, the development tree."""
    assert set(intervened_stage(method).losses) == compared

"""build_recipe: step budgets of the stages, slots of each stage, and what a budget refuses."""

import pytest

from lowbit.config.budget import stage_steps
from lowbit.config.compose import compose, to_config
from lowbit.recipes import Recipe, build_recipe, build_teacher_stage
from lowbit.settings.losses import LossConfig, LossKind, Ramp
from lowbit.settings.recipe import BudgetConfig, StageConfig
from tests.helpers.losses import loss_of


def recipe(*overrides: str, steps_per_epoch: int = 10) -> Recipe:
    return build_recipe(to_config(compose(list(overrides))), steps_per_epoch)


def steps(budget: BudgetConfig, per_epoch: int = 10, **stages: dict[str, float]) -> dict[str, int]:
    return stage_steps({name: StageConfig(**kw) for name, kw in stages.items()}, budget, per_epoch)


# --- budgets --------------------------------------------------------------------------------------------------------


def test_the_second_stage_takes_the_rest_of_the_epochs():
    built = recipe("method=ti_g", "budget=epochs_3", steps_per_epoch=115)
    assert [(s.name, s.steps, s.first_step) for s in built.stages] == [("intervene", 60, 0), ("plain", 285, 60)]
    assert built.steps == 345
    assert built.name == "ti_g"


@pytest.mark.parametrize(
    ("budget", "stages", "expected"),
    [
        ({"steps": 100}, {"a": {}}, [100]),
        ({"epochs": 2.5}, {"a": {}}, [25]),
        ({"epochs": 0.25}, {"a": {}}, [3]),
        ({"steps": 7, "epochs": 3}, {"a": {}}, [7]),
        ({"steps": 100}, {"a": {"fraction": 0.3}, "b": {}, "c": {"steps": 5}}, [30, 65, 5]),
        ({}, {"a": {"epochs": 0.95}, "b": {"steps": 4}}, [10, 4]),
    ],
)
def test_steps_of_stages(budget: dict, stages: dict, expected: list[int]):
    resolved = steps(BudgetConfig(**budget), **stages)
    assert list(resolved) == list(stages)
    assert list(resolved.values()) == expected


@pytest.mark.parametrize(
    ("budget", "stages", "message"),
    [
        ({"steps": 9}, {"a": {"steps": 2, "epochs": 1}}, r"stages\.a sets steps and epochs: set one of them"),
        ({}, {"a": {}}, r"stages\.a needs a total: set budget\.steps=N or budget\.epochs=N"),
        ({}, {"a": {"fraction": 0.5}}, r"stages\.a needs a total"),
        ({"steps": 9}, {"a": {}, "b": {}}, "stages a and b both take the rest"),
        ({"steps": 60}, {"a": {"steps": 60}, "b": {}}, r"stages\.b is left with 0 of 60 steps, .* take a 60"),
        ({"steps": 5}, {"a": {"fraction": 0.01}, "b": {}}, r"stages\.a is left with 0 of 5 steps"),
    ],
)
def test_budgets_that_do_not_work_out(budget: dict, stages: dict, message: str):
    with pytest.raises(ValueError, match=message):
        steps(BudgetConfig(**budget), **stages)


def test_a_recipe_with_too_small_a_budget_is_refused():
    with pytest.raises(ValueError, match=r"method\.stages\.plain is left with -10 of 50 steps"):
        recipe("method=ti_o", "budget.steps=50")


# --- slots ----------------------------------------------------------------------------------------------------------


def test_slots_of_teacher_intervention():
    first, second = recipe("method=ti_c", "budget.steps=100").stages
    assert (first.student, second.student) == ("teacher", "previous")
    assert first.teacher
    assert second.teacher
    assert first.rules == second.rules
    assert len(first.rules) == 4
    assert first.losses == {
        "logits": loss_of("logits", reduction="sum"),
        "hidden": loss_of("hidden"),
        "scores": loss_of("scores"),
        "attn_block": loss_of("attn_block"),
    }
    assert first.fields == {"embeddings", "hidden", "scores", "attn_block"}


def test_slots_of_ternarybert_and_of_finetuning():
    (qat,) = recipe("method=ternarybert").stages
    assert qat.losses["logits"].settings.reduction == "mean"
    assert qat.intervention_at(0, seed=0) is None
    assert set(qat.losses) == {"logits", "hidden", "scores"}
    (plain,) = recipe("method=finetune").stages
    assert (plain.student, plain.teacher, plain.rules) == ("fresh", False, ())
    assert plain.losses == {"task": loss_of("task")}


def test_a_stage_changes_only_what_it_names():
    config = to_config(
        compose(
            [
                "method=ti_o",
                "budget.steps=100",
                "optimizer.lr=0.01",
                "optimizer.weight_decay=0.5",
                "method.stages.plain.optimizer.lr=0.002",
                "method.stages.plain.scheduler.warmup=0.0",
            ]
        )
    )
    ramp = LossConfig(LossKind.task, weight=0.5, weight_end=0.0, ramp=Ramp.linear)
    config.method.stages["plain"].losses = {"labels": ramp}
    first, second = build_recipe(config, 10).stages
    assert (first.optimizer.lr, second.optimizer.lr) == (0.01, 0.002)
    assert (first.optimizer.weight_decay, second.optimizer.weight_decay) == (0.5, 0.5)
    assert (first.scheduler.warmup, second.scheduler.warmup) == (0.1, 0.0)
    assert second.losses == {"labels": loss_of("task", weight=0.5, weight_end=0.0, ramp=Ramp.linear)}
    assert "labels" not in first.losses


def test_a_layer_map_reaches_every_stage():
    built = recipe("method=ternarybert", "+method.layer_map=[0, 3]")
    assert [stage.layer_map for stage in built.stages] == [(0, 3)]


def test_the_teacher_stage_is_full_precision_on_labels():
    config = to_config(compose(["teacher.budget.epochs=4"]))
    stage = build_teacher_stage(config.teacher, steps_per_epoch=12)
    assert (stage.steps, stage.rules, stage.teacher, stage.student) == (48, (), False, "fresh")
    assert stage.losses == {"task": loss_of("task")}

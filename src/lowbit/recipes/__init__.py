"""Recipes: a method is a list of stages; a stage fills six slots."""

from lowbit.recipes.builders import build_recipe, build_rules, build_teacher_stage
from lowbit.recipes.stage import InterventionSchedule, Mixing, Optimizer, Phase, Recipe, Scheduler, Stage

__all__ = [
    "InterventionSchedule",
    "Mixing",
    "Optimizer",
    "Phase",
    "Recipe",
    "Scheduler",
    "Stage",
    "build_recipe",
    "build_rules",
    "build_teacher_stage",
]

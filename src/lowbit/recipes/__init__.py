"""Recipes: a method is a list of stages; a stage fills six slots."""

from lowbit.recipes.builders import build_recipe, build_rules, build_teacher_stage
from lowbit.recipes.stage import InterventionSchedule, Recipe, Stage

__all__ = ["InterventionSchedule", "Recipe", "Stage", "build_recipe", "build_rules", "build_teacher_stage"]

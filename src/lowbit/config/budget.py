"""How many optimizer steps each stage of a recipe takes."""

import math

from lowbit.settings.data import DataConfig
from lowbit.settings.recipe import BudgetConfig, StageConfig


def epoch_steps(rows: int, batch_size: int) -> int:
    """Return the batches that cover every row once; the last one may be partial."""
    return -(-rows // batch_size)


def rows_per_step(data: DataConfig) -> int:
    """Return the training rows of one step: `batch_size` counts crops where each row gives several."""
    return data.batch_size if data.soft_labels is None else -(-data.batch_size // max(data.num_crops, 1))


def check_batch(data: DataConfig, rows: int) -> None:
    """Compare the training batch with the training rows.

    Raises:
        ValueError: every batch would be smaller than the config says.
    """
    if rows_per_step(data) > rows:
        raise ValueError(
            f"data.batch_size={data.batch_size}: {data.name} has {rows} training rows, and no batch could be that "
            f"large; set data.batch_size to {data.batch_size * rows // rows_per_step(data)} or less"
        )


def total_steps(budget: BudgetConfig, steps_per_epoch: int) -> int | None:
    """Return the recipe's total number of steps, or None if the budget names none."""
    if budget.steps is not None:
        return budget.steps
    return None if budget.epochs is None else math.ceil(budget.epochs * steps_per_epoch)


def stage_steps(stages: dict[str, StageConfig], budget: BudgetConfig, steps_per_epoch: int) -> dict[str, int]:
    """Resolve every stage's budget; a stage that names none takes what the others leave of the total.

    Raises:
        ValueError: naming the stage, what is wrong and what to set.
    """
    total = total_steps(budget, steps_per_epoch)
    resolved: dict[str, int] = {}
    open_stages = []
    for name, stage in stages.items():
        given = [key for key in ("steps", "epochs", "fraction") if getattr(stage, key) is not None]
        if len(given) > 1:
            raise ValueError(f"method.stages.{name} sets {' and '.join(given)}: set one of them")
        if stage.steps is not None:
            resolved[name] = stage.steps
        elif stage.epochs is not None:
            resolved[name] = math.ceil(stage.epochs * steps_per_epoch)
        elif total is None:
            raise ValueError(f"method.stages.{name} needs a total: set budget.steps=N or budget.epochs=N")
        elif stage.fraction is not None:
            resolved[name] = round(stage.fraction * total)
        else:
            open_stages.append(name)
    if len(open_stages) > 1:
        raise ValueError(f"stages {' and '.join(open_stages)} both take the rest: give all but one of them steps")
    for name in open_stages:
        resolved[name] = (total or 0) - sum(resolved.values())
    for name, steps in resolved.items():
        if steps < 1 and stages[name].steps != 0:  # 0 asks for no training: calibrate and evaluate
            others = ", ".join(f"{other} {taken}" for other, taken in resolved.items() if other != name)
            first = next((other for other in resolved if other != name), name)
            raise ValueError(
                f"method.stages.{name} is left with {steps} of {total} steps, since the other stages take {others}: "
                f"raise budget.steps (or budget.epochs), or lower method.stages.{first}.steps"
            )
    return {name: resolved[name] for name in stages}

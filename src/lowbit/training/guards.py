"""Stop where a loss, the weights or what they predict are not finite, naming what, and what to try."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lowbit.modeling.weights import not_finite
from lowbit.recipes import Stage


class NonFiniteError(RuntimeError):
    """A loss term, a weight or an output became NaN or infinite; no checkpoint and no record holds such weights."""


def check_loss(total: Tensor, terms: Mapping[str, Tensor], stage: Stage, step: int) -> None:
    """Raise if the total is not finite.

    Raises:
        NonFiniteError: naming the first bad term, the stage, the step and what to try.
    """
    if torch.isfinite(total):
        return
    bad = next((name for name, value in terms.items() if not torch.isfinite(value)), "total")
    value = float(terms.get(bad, total).detach())
    raise NonFiniteError(
        f"loss term {bad!r} is {value} at step {step} of stage {stage.name!r} (of {stage.steps}). The last good "
        f"checkpoint, if there is one yet, was kept. {_advice(stage)}, or a lower weight of {bad!r}."
    )


def check_weights(weights: Mapping[str, Tensor], stage: Stage) -> None:
    """Raise if the last update of a stage has left weights that are not finite: no loss is computed after it.

    Raises:
        NonFiniteError: naming the first such tensor, the stage and what to try.
    """
    bad = not_finite(weights)
    if bad is not None:
        raise NonFiniteError(
            f"after the last update of stage {stage.name!r} (of {stage.steps}), {bad} is not finite, and nothing was "
            f"recorded. {_advice(stage)}."
        )


def check_outputs(finite: Tensor, split: str, stage: Stage) -> None:
    """Raise if the outputs of an evaluation were not all finite: a score would count them as wrong answers.

    Raises:
        NonFiniteError: naming the split, the stage and what to try.
    """
    if not bool(finite):
        raise NonFiniteError(
            f"outputs on {split} are not finite in the evaluation of stage {stage.name!r} although its weights are, "
            f"and nothing was recorded. {_advice(stage)}, or trainer.precision=float32."
        )


def _advice(stage: Stage) -> str:
    return f"Try a lower {stage.optimizer_key}.lr (now {stage.optimizer.lr})"

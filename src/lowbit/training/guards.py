"""Stop at the first loss that is not finite, naming the term."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lowbit.recipes import Stage


class NonFiniteLossError(RuntimeError):
    """A loss term became NaN or infinite; a checkpoint never holds weights that are not finite."""


def check_finite(total: Tensor, terms: Mapping[str, Tensor], stage: Stage, step: int) -> None:
    """Raise if the total is not finite.

    Raises:
        NonFiniteLossError: naming the first bad term, the stage, the step and what to try.
    """
    if torch.isfinite(total):
        return
    bad = next((name for name, value in terms.items() if not torch.isfinite(value)), "total")
    value = float(terms.get(bad, total).detach())
    raise NonFiniteLossError(
        f"loss term {bad!r} is {value} at step {step} of stage {stage.name!r} (of {stage.steps}). The last good "
        f"checkpoint, if there is one yet, was kept. Try a lower optimizer.lr (now {stage.optimizer.lr}), or a lower "
        f"weight of {bad!r}."
    )

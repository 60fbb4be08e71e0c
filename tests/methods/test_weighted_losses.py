"""The loss of a step is the weighted sum of its terms, whatever the method."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from lowbit.recipes import Stage


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("ternarybert", {"logits": 0.5, "hidden": 0.25, "scores": 2.0}),
        ("kd_qat", {"logits": 1.0, "hidden": 1.0, "maps": 0.3, "attn_block": 4.0}),
        ("sdq", {"task": 0.2, "logits": 3.0, "maps": 0.7}),
    ],
)
def test_weights_of_the_config_are_those_of_the_step(
    method: str,
    weights: dict[str, float],
    stages_of: Callable[..., tuple[Stage, ...]],
    distil: Callable[..., Any],
    bert: Callable[..., nn.Module],
    batch: dict[str, Tensor],
):
    (stage,) = stages_of(
        f"method={method}", *[f"method.losses.{name}.weight={value}" for name, value in weights.items()]
    )
    total, terms = distil(stage, bert(), bert(seed=1)).losses(batch, 0)
    assert terms.keys() == weights.keys()
    assert total.item() == pytest.approx(sum(weights[name] * term.item() for name, term in terms.items()), rel=1e-6)


def test_a_weight_that_moves_is_read_at_the_step(
    stages_of: Callable[..., tuple[Stage, ...]],
    distil: Callable[..., Any],
    bert: Callable[..., nn.Module],
    batch: dict[str, Tensor],
):
    settings = {"weight": "2", "weight_end": "0", "ramp": "linear"}
    (stage,) = stages_of(*[f"method.losses.hidden.{key}={value}" for key, value in settings.items()])
    module = distil(stage, bert(), bert(seed=1))
    first, terms = module.losses(batch, 0)
    last, _ = module.losses(batch, stage.steps - 1)
    assert (first - last).item() == pytest.approx(2 * terms["hidden"].item(), rel=1e-5)

"""Every weight quantizer trains: a small network's loss goes down under every estimator, and in bfloat16 too."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.quantizers import QuantizerSpec, QuantLinear
from lowbit.quantizers.estimators import EWGS, STE, ClippedSTE, Estimator, StableQAT
from lowbit.quantizers.spec import KINDS
from lowbit.quantizers.state import begin_step, end_step

STEPS = 60
WIDTHS: dict[str, tuple[dict[str, object], ...]] = {
    "twn": ({}, {"granularity": "row", "clip": 2.5}),
    "lat": ({}, {"granularity": "row", "variant": "exact"}),
    "bwn": ({"granularity": "row"}, {"center": True}),
    "statsq": ({"bits": 2, "granularity": "row"},),
    "bitnet": ({},),
    "minmax_symmetric": ({"bits": 4, "clip": 2.5}, {"bits": 2, "granularity": "row"}),
    "minmax_asymmetric": ({"bits": 4}, {"bits": 2, "granularity": "row"}),
    "xtc": ({"bits": 4, "granularity": "row"},),
    "lsq": ({"bits": 2, "init": "mse"}, {"bits": 3, "granularity": "row", "offset": True, "grad_scale": "none"}),
    "seq": ({"bits": 1.58, "granularity": "row"}, {"bits": 2, "granularity": "row"}),
    "elastic": ({"bits": 1}, {"bits": 2}),
    "pact": ({"bits": 4}, {"bits": 4, "symmetric": False, "clip": 0.5}),
    "static": ({"bits": 4}, {"bits": 3, "symmetric": False, "granularity": "row"}),
}
ESTIMATORS: tuple[Estimator | None, ...] = (None, STE(), ClippedSTE(), EWGS(0.1), StableQAT())


def refused(kind: str, estimator: Estimator | None) -> bool:
    """TWN's thresholds do not lie half-way between levels; pact's mask is where its clip values learn."""
    return estimator is not None and (kind == "pact" or (kind == "twn" and estimator.uniform_only))


def pairs(*, allowed: bool) -> list[tuple[str, dict[str, object], Estimator | None]]:
    every = [(kind, settings, e) for kind in WIDTHS for settings in WIDTHS[kind] for e in ESTIMATORS]
    return [(k, s, e) for k, s, e in every if refused(k, e) is not allowed]


def label(value: object) -> str:
    return "-".join(map(str, value.values())) or "default" if isinstance(value, dict) else str(value).partition("(")[0]


def task() -> tuple[Tensor, Tensor]:
    """Return 128 points of 12 features in 4 classes, which a random network of the same shape has chosen."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 12, generator=generator)
    first, second = torch.randn(24, 12, generator=generator), torch.randn(4, 24, generator=generator)
    return x, (F.relu(x @ first.T) @ second.T).argmax(1)


def network(spec: QuantizerSpec, dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Linear(12, 32), nn.Linear(32, 4)]
    first, second = (QuantLinear.from_float(layer.to(dtype), spec, None) for layer in layers)
    return nn.Sequential(first, nn.ReLU(), second)


def losses(spec: QuantizerSpec, dtype: torch.dtype) -> list[float]:
    x, classes = task()
    model = network(spec, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    history = []
    for step in range(STEPS):
        begin_step(model, step, optimizer)
        loss = F.cross_entropy(model(x.to(dtype)).float(), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        end_step(model)
        history.append(loss.item())
    return history


def test_every_weight_quantizer_is_trained():
    assert set(WIDTHS) == set(KINDS) - {"block_noise", "ipq"}  # which are noise and a codebook, not grids
    assert all(estimator in {type(e) for e in ESTIMATORS} for estimator in (STE, ClippedSTE, EWGS, StableQAT))


@pytest.mark.parametrize(
    ("kind", "settings", "estimator", "dtype"),
    [
        # Each estimator once with each kind; with its other settings among the slow tests.
        pytest.param(*pair, torch.float32, marks=pytest.mark.slow if pair[2] and pair[1] != WIDTHS[pair[0]][0] else ())
        for pair in pairs(allowed=True)
    ]
    + [(*pair, torch.bfloat16) for pair in pairs(allowed=True) if pair[2] is None and pair[1] == WIDTHS[pair[0]][0]],
    ids=label,
)
def test_training_lowers_the_loss(kind: str, settings: dict, estimator: Estimator | None, dtype: torch.dtype):
    history = losses(QuantizerSpec(kind, estimator=estimator, **settings), dtype)
    first, last = history[0], sum(history[-5:]) / 5
    assert last < 0.8 * first, f"loss {first:.3f} became {last:.3f}"


@pytest.mark.parametrize("kind", ["twn", "lsq", "statsq", "bwn"])
def test_a_frozen_network_does_not_pass_this_test(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    settings = WIDTHS[kind][0]
    history = losses(QuantizerSpec(kind, **settings), torch.float32)
    assert sum(history[-5:]) / 5 > 0.95 * history[0]


@pytest.mark.parametrize(("kind", "settings", "estimator"), pairs(allowed=False), ids=label)
def test_a_pair_that_is_not_defined_is_refused_when_the_settings_are_made(
    kind: str, settings: dict, estimator: Estimator
):
    with pytest.raises(ValueError, match=rf"{kind}"):
        QuantizerSpec(kind, estimator=estimator, **settings)


def test_the_refused_pairs_are_those_of_twn_and_pact():
    names = {(kind, type(estimator).__name__) for kind, _, estimator in pairs(allowed=False)}
    assert names == {("twn", "EWGS"), ("twn", "StableQAT")} | set(
        itertools.product(["pact"], ["STE", "ClippedSTE", "EWGS", "StableQAT"])
    )

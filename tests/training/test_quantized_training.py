"""Training with quantizers that learn or keep numbers: resumed equals straight, stages hand them on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_TI, load_into

from lowbit.modeling import prepare
from lowbit.results import read_run
from lowbit.training.modules import FinetuneModule
from lowbit.training.train import train

WATCHED = ["oscillation=freeze", "oscillation.momentum=0.3", "oscillation.freeze_from=0.4", "oscillation.freeze_to=0.2"]
COMBINATIONS = {
    "lsq": ["quantizer=lsq_per_head", "correction=cage", "correction.silence=0.2", *WATCHED],
    "lsq_plus": ["quantizer=lsq_plus_w4a4", "optimizer=bert_adam", "optimizer.lr=1e-3"],
    "elastic": ["quantizer=bit_w1a1", "estimator=stable_qat", "quantizer.calibration_batches=2"],
    "static": ["quantizer=static_w8a8"],
    "lat": ["quantizer=lat_w2a8", "correction=dampening"],
    "noise": ["quantizer=quant_noise_int8", "quantizer.weight.refresh_every=2", "quantizer.embedding.refresh_every=2"],
    "ipq": ["quantizer=ipq", "quantizer.weight.centroids=8"],
    "seq": ["quantizer=seq_w2", "quantizer.weight.bits=1.58", "correction=cage_coupled", "correction.silence=0.0"],
}


# Learned scales, drawn noise and codebooks; the rest keeps numbers of the same kinds.
FAST = ("lsq", "noise", "ipq")


class DeathError(Exception):
    """Stands for whatever ends a process."""


def run(overrides: Sequence[str], outputs: Path) -> None:
    train(*load_into(outputs, *TINY_TI, "trainer.threads=1", *overrides))


def dies_at(monkeypatch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    original = FinetuneModule.losses

    def losses(self: FinetuneModule, batch: Any, at: int) -> Any:
        if self.stage.name == stage and at == step:
            monkeypatch.setattr(FinetuneModule, "losses", original)
            raise DeathError
        return original(self, batch, at)

    monkeypatch.setattr(FinetuneModule, "losses", losses)


def only_run(outputs: Path) -> Path:
    (file,) = outputs.glob("runs/*/*/*/run.json")
    return file.parent


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return {f"{path.parent.name}/{k}": v for path in run.rglob("*.safetensors") for k, v in load_file(path).items()}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in COMBINATIONS]
)
def test_resumed_is_straight_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    overrides = COMBINATIONS[name]
    run(overrides, tmp_path / "straight")
    # Before the first checkpoint of the run there is nothing to resume, so one combination shows it.
    early = [("intervene", 0)] if name == "lsq" else []
    for stage, step in (*early, ("intervene", 5), ("plain", 8)):
        dies_at(monkeypatch, stage, step)
        with pytest.raises(DeathError):
            run(overrides, tmp_path / "broken")
    run(overrides, tmp_path / "broken")
    straight, broken = only_run(tmp_path / "straight"), only_run(tmp_path / "broken")
    expected, found = tensors(straight), tensors(broken)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
    assert read_run(broken)["metrics"] == read_run(straight)["metrics"]
    assert (broken / "metrics.csv").read_text() == (straight / "metrics.csv").read_text()


@pytest.fixture
def trained(tmp_path: Path) -> Callable[[Sequence[str]], Path]:
    def train_once(overrides: Sequence[str]) -> Path:
        run(overrides, tmp_path)
        return only_run(tmp_path)

    return train_once


def test_weights_lie_under_plain_keys_and_scales_beside_them(trained: Callable[[Sequence[str]], Path]):
    folder = trained(["quantizer=lsq_w4a4"]) / "stages"
    for stage in ("intervene", "plain"):
        plain = load_file(folder / stage / "model.safetensors")
        scales = load_file(folder / stage / "quantizers.safetensors")
        assert not any("quantizer" in key for key in plain)
        assert scales
        assert all("_quantizer." in key for key in scales)
        assert all(scales[key] for key in scales if key.endswith("initialized"))


def test_a_stage_goes_on_with_the_scales_of_the_last_one(trained: Callable[[Sequence[str]], Path]):
    """At learning rate 0 in the second stage, its scales are those that the first one learned."""
    folder = trained(["quantizer=lsq_w4a4", "method.stages.plain.optimizer.lr=1e-30"]) / "stages"
    first, second = (load_file(folder / stage / "quantizers.safetensors") for stage in ("intervene", "plain"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    steps = [value for key, value in first.items() if key.endswith("step_size")]
    assert len({float(step.flatten()[0]) for step in steps}) == len(steps), "every scale is its own"


def test_a_stage_without_quantizers_writes_none(trained: Callable[[Sequence[str]], Path]):
    folder = trained(["quantizer=w2a8"]) / "stages"
    assert not list(folder.rglob("quantizers.safetensors"))


def test_quantizer_state_of_other_rules_is_refused(zoo_free_model):
    instrument = prepare(zoo_free_model)
    with pytest.raises(ValueError, match="does not fit the rules"):
        instrument.load_quantizer_state({"x.weight_quantizer.step_size": torch.ones(1)})


@pytest.fixture
def zoo_free_model() -> torch.nn.Module:
    from timm import create_model

    return create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=16, num_heads=2)


def test_oscillation_is_logged_and_weights_are_pulled_to_their_grid(trained: Callable[[Sequence[str]], Path]):
    run_folder = trained(["quantizer=lsq_w4a4", *WATCHED])
    header = (run_folder / "metrics.csv").read_text().splitlines()[0]
    assert "train/oscillation_percent" in header


def distance_to_grid(folder: Path) -> float:
    """Mean |w - Q(w)| / step over the LSQ weights of the last stage."""
    weights = load_file(folder / "stages" / "plain" / "model.safetensors")
    scales = load_file(folder / "stages" / "plain" / "quantizers.safetensors")
    found = []
    for key, scale in scales.items():
        if key.endswith("intermediate.dense.weight_quantizer.step_size"):
            v = weights[key.replace("weight_quantizer.step_size", "weight")] / scale
            found.append((v - v.round().clamp(-8, 7)).abs().mean())
    return float(torch.stack(found).mean())


@pytest.mark.slow
def test_cage_ends_nearer_to_the_grid(tmp_path: Path):
    distances = []
    for name, correction in (
        ("plain", []),
        (
            "cage",
            ["correction=cage", "correction.silence=0.0", "correction.strength=900", "correction.schedule=constant"],
        ),
    ):
        run(["quantizer=lsq_w4a4", "estimator=clipped_ste", *correction], tmp_path / name)
        distances.append(distance_to_grid(only_run(tmp_path / name)))
    assert distances[1] < 0.6 * distances[0]

"""Recipes whose stages build on each other: the same weights after an interruption, and what each stage hands on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_quantized_training import DeathError, dies_at, only_run, tensors
from tiny import TINY_TI, load_into

from lowbit.results import read_run
from lowbit.training import train as run_module
from lowbit.training.train import train

SHORT = [o for o in TINY_TI if not o.startswith(("method", "budget"))]
CHAINS = {
    "bit_chain": ["method=bit_chain", "quantizer=bit_chain"],
    "binarybert": ["method=binarybert", "quantizer=binarybert"],
    "xtc_layers": ["method=xtc_layers", "quantizer=xtc_w1a8", "method.layer_map=[1]"],
    "sdq_ipq": ["method=sdq_ipq", "quantizer=sdq_ipq"],
}
LAST = {"bit_chain": "binary", "binarybert": "binary", "xtc_layers": "qat", "sdq_ipq": "attention"}


def run(overrides: Sequence[str], outputs: Path, steps: int = 24) -> Path:
    budget = f"budget={{steps: {steps}, epochs: null}}"
    train(*load_into(outputs, *SHORT, "trainer.threads=1", budget, *overrides))
    return only_run(outputs)


@pytest.mark.parametrize(
    "name",
    ["bit_chain", "sdq_ipq", *(pytest.param(name, marks=pytest.mark.slow) for name in ("binarybert", "xtc_layers"))],
)
def test_interrupted_in_the_last_stage_is_straight(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    straight = run(CHAINS[name], tmp_path / "straight")
    for step in (0, 4):
        dies_at(monkeypatch, LAST[name], step)
        with pytest.raises(DeathError):
            run(CHAINS[name], tmp_path / "broken")
    broken = run(CHAINS[name], tmp_path / "broken")
    expected, found = tensors(straight), tensors(broken)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert read_run(broken)["metrics"] == read_run(straight)["metrics"]


def stage_file(run: Path, stage: str, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "stages" / stage / f"{name}.safetensors")


def test_codebooks_of_earlier_stages_go_on(tmp_path: Path):
    """At learning rate 0 the last stage leaves the FFN's codebooks as the stages before made them."""
    folder = run([*CHAINS["sdq_ipq"], "+method.stages.attention.optimizer.lr=1e-30"], tmp_path)
    before, after = (stage_file(folder, stage, "quantizers") for stage in ("embedding", "attention"))
    shared = [key for key in before if "intermediate" in key and key.endswith(("centroids", "assignments"))]
    assert shared
    assert all(torch.equal(before[key], after[key]) for key in shared)
    assert any("query" in key for key in after.keys() - before.keys())


def test_a_stage_of_another_width_starts_its_scales_anew_and_keeps_its_shifts(tmp_path: Path):
    lr = "+method.stages.binary.optimizer.lr=1e-30"
    folder = run([*CHAINS["bit_chain"], lr], tmp_path)
    before, after = (stage_file(folder, stage, "quantizers") for stage in ("qat", "binary"))
    shifts = [key for key in before if key.endswith(".shift")]
    assert any(before[key].abs().sum() > 0 for key in shifts)
    assert all(torch.equal(before[key], after[key]) for key in shifts)
    steps = [key for key in before if key.endswith("p_bmm_quantizer.step_size")]
    assert steps
    assert all(after[key] > 1.2 * before[key] for key in steps), "an unsigned 1-bit step is sqrt(3) times a 2-bit one"


def test_the_layer_map_drives_weights_and_supervision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    original = run_module.reduce_layers

    def reduce_layers(model: Any, layers: Any) -> Any:
        reduced = original(model, layers)
        seen.append((model, reduced, tuple(layers)))
        return reduced

    monkeypatch.setattr(run_module, "reduce_layers", reduce_layers)
    run(CHAINS["xtc_layers"], tmp_path)
    teacher, student, layers = seen[0]
    assert layers == (1,)
    assert len(student.bert.encoder.layer) == 1
    assert len(teacher.bert.encoder.layer) == 2

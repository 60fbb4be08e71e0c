"""The quantizers reproduce vectors computed by the published code (tests/golden/README.md)."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lowbit.quantizers import functional

OPS = ("twn_ternarize", "minmax_symmetric", "minmax_asymmetric")
FOLDER = Path(os.environ.get("LOWBIT_VECTORS") or Path(__file__).parents[1] / "golden") / "ops"


def cases() -> list[dict[str, Any]]:
    every = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
    return [case for case in every if case["op"] in OPS]


def name(case: dict[str, Any]) -> str:
    return "-".join([case["op"], *(str(v) for v in case["kwargs"].values()), case["outputs"]["y"].split(".")[0]])


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "tensors.safetensors")


@pytest.mark.parametrize("op", OPS)
def test_the_folder_holds_cases_of_every_operation(op: str):
    found = [case for case in cases() if case["op"] == op]
    assert found, f"no vector of {op} in {FOLDER}: set LOWBIT_VECTORS to a folder that has them"
    assert any("grads" in case for case in found)


@pytest.mark.parametrize("case", cases(), ids=name)
def test_values_and_gradients_equal_the_published_ones(case: dict[str, Any], tensors: dict[str, torch.Tensor]):
    inputs = {key: tensors[where].clone().requires_grad_() for key, where in case["inputs"].items()}
    y = getattr(functional, case["op"])(**inputs, **case["kwargs"])
    torch.testing.assert_close(y, tensors[case["outputs"]["y"]], rtol=1e-6, atol=1e-7)
    if "grads" in case:
        y.backward(tensors[case["upstream"]])
        for key, where in case["grads"].items():
            torch.testing.assert_close(inputs[key].grad, tensors[where], rtol=1e-4, atol=1e-6)

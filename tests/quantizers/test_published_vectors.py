"""The quantizers reproduce vectors computed by the published code (tests/golden/README.md).

Every case of the folder must be computed: one that names an unknown operation or keyword fails, it is not skipped.
"""

import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lowbit.quantizers import functional

FOLDER = Path(os.environ.get("LOWBIT_VECTORS") or Path(__file__).parents[1] / "golden") / "ops"
CASES: list[dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))


def name(case: dict[str, Any]) -> str:
    return "-".join([case["op"], *(str(v) for v in case["kwargs"].values()), case["outputs"]["y"].split(".")[0]])


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(FOLDER / "tensors.safetensors")


def call(op: str, inputs: dict[str, Tensor], kwargs: dict[str, Any]) -> Tensor:
    """Inputs go by position in the order of the case, but by keyword where the function takes them so only."""
    assert op in functional.__all__, f"op {op!r} of {FOLDER} is no public function: {', '.join(functional.__all__)}"
    function = getattr(functional, op)
    parameters = inspect.signature(function).parameters
    named = [key for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(kwargs.keys() - set(named))
    assert not unknown, f"{op} takes no keyword {', '.join(unknown)}: it takes {', '.join(named)}"
    positional = [tensor for key, tensor in inputs.items() if key not in named]
    assert len(positional) <= len(parameters) - len(named), f"{op} takes fewer tensors than {', '.join(inputs)}"
    by_keyword = {key: tensor for key, tensor in inputs.items() if key in named}
    result: Tensor = function(*positional, **by_keyword, **kwargs)
    return result


def check(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    grads = case.get("grads") or {}
    inputs = {key: tensors[where].clone().requires_grad_(key in grads) for key, where in case["inputs"].items()}
    y = call(case["op"], inputs, case["kwargs"])
    torch.testing.assert_close(y.detach(), tensors[case["outputs"]["y"]], rtol=1e-6, atol=1e-7)
    if grads:
        y.backward(tensors[case["upstream"]])
    for key, where in grads.items():
        assert inputs[key].grad is not None, f"{case['op']}: no gradient reached {key}"
        torch.testing.assert_close(inputs[key].grad, tensors[where], rtol=1e-4, atol=1e-6)


def test_the_folder_holds_cases():
    assert CASES, f"{FOLDER / 'cases.json'} is empty: set LOWBIT_VECTORS to a folder that has vectors"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_values_and_gradients_equal_the_published_ones(case: dict[str, Any], tensors: dict[str, Tensor]):
    check(case, tensors)


# --- the check itself fails where it should -------------------------------------------------------------------------


def made_up(**changes: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a case of lsq that holds (alpha 1, offset 1: codes 1 and 0, an element above and one inside)."""
    tensors = {
        "x": torch.tensor([4.0, 1.2]),
        "a": torch.tensor([1.0]),
        "o": torch.tensor([1.0]),
        "y": torch.tensor([2.0, 1.0]),
        "gy": torch.tensor([3.0, 5.0]),
        "gx": torch.tensor([0.0, 5.0]),
        "go": torch.tensor([3.0]),
    }
    case = {
        "op": "lsq",
        "kwargs": {"bits": 2, "grad_scale": "none"},
        "inputs": {"w": "x", "alpha": "a", "offset": "o"},
        "outputs": {"y": "y"},
        "upstream": "gy",
        "grads": {"w": "gx", "offset": "go"},
    }
    return {**case, **changes}, tensors


def test_a_keyword_only_input_and_a_renamed_positional_one_are_passed():
    check(*made_up())


@pytest.mark.parametrize("without", ["grads", "upstream"])
def test_a_case_without_gradients_is_checked_by_its_values(without: str):
    case, tensors = made_up(grads={})
    del case[without]
    check(case, tensors)
    with pytest.raises(AssertionError, match="not close"):
        check(case, {**tensors, "y": tensors["y"] + 1e-4})


@pytest.mark.parametrize("key", ["y", "gx", "go"])
def test_a_wrong_number_fails(key: str):
    case, tensors = made_up()
    with pytest.raises(AssertionError, match="not close"):
        check(case, {**tensors, key: tensors[key] * 1.001 + 0.001})


@pytest.mark.parametrize("op", ["made_up", "fake_quantize", "core"])
def test_an_unknown_operation_fails(op: str):
    with pytest.raises(AssertionError, match=f"op '{op}' .* is no public function"):
        check(*made_up(op=op))


def test_an_unknown_keyword_fails():
    with pytest.raises(AssertionError, match="lsq takes no keyword groups"):
        check(*made_up(kwargs={"bits": 2, "grad_scale": "none", "groups": 4}))


def test_an_unknown_input_fails():
    with pytest.raises(AssertionError, match="lsq takes fewer tensors than w, alpha, beta"):
        check(*made_up(inputs={"w": "x", "alpha": "a", "beta": "o"}))


def test_a_listed_gradient_that_does_not_arrive_fails():
    case, tensors = made_up(op="static_range", kwargs={"bits": 2}, inputs={"x": "x", "low": "a", "high": "h"})
    tensors["h"], tensors["y"] = torch.tensor([4.0]), torch.tensor([4.0, 1.0])
    case["grads"] = {"low": "a"}
    with pytest.raises((AssertionError, RuntimeError), match=r"no gradient|does not require grad"):
        check(case, tensors)

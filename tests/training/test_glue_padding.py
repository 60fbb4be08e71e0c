"""Padding is no part of the input where activations have a scale per token."""

from pathlib import Path

import pytest
import torch

from lowbit.config.validate import load
from lowbit.recipes import build_recipe
from lowbit.training.setup import make_datamodule, make_instrument, make_model


def logits(glue: Path, tiny_bert: Path, tmp_path: Path, *overrides: str) -> torch.Tensor:
    """Return the ternary model's logits of the development rows, in order."""
    files = [f"model.path={tiny_bert}", f"data.dir={glue}", f"paths.outputs={tmp_path}"]
    _, config = load(["data=mrpc", "model=hf", *files, "data.max_length=64", *overrides])
    data = make_datamodule(config, 1)
    student = make_instrument(make_model(config, data.info, 1), build_recipe(config, 4).stages[0].rules)
    with torch.no_grad():
        return torch.cat([student.run(batch).logits for batch in data.val_dataloader()])


@pytest.mark.parametrize(("granularity", "same"), [("token", True), ("tensor", False)])
def test_logits_of_both_paddings(granularity: str, same: bool, glue: Path, tiny_bert: Path, tmp_path: Path):
    scales = f"quantizer.activation.granularity={granularity}"
    longest = logits(glue, tiny_bert, tmp_path, scales, "data.eval_batch_size=1")
    fixed = logits(glue, tiny_bert, tmp_path, scales, "data.padding=max_length")
    assert (torch.allclose(longest, fixed, rtol=0, atol=1e-6)) == same

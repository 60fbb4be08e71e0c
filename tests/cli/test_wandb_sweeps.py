"""The W&B sweep files: no choices of lowbit, and every parameter set is a valid command."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lowbit.config import compose as C
from lowbit.config.validate import load

WANDB_SWEEPS = sorted((C.shipped_root() / "sweeps" / "wandb").iterdir())


def test_files_of_wandb_sweeps_are_no_choices():
    assert len(WANDB_SWEEPS) >= 1
    with C.hydra_session():
        assert not [name for name in C.choices("sweeps") if "wandb" in name]


@pytest.mark.parametrize("file", WANDB_SWEEPS, ids=lambda file: file.name)
def test_every_parameter_set_of_a_wandb_sweep_is_a_valid_command(file: Path):
    """Rendered by W&B's own function: the corners of the ranges, in the words that an agent would run."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    content = yaml.safe_load(file.read_text())
    assert content["metric"] == {"name": "score", "goal": "maximize"}
    parameters = content["parameters"]
    for last in (False, True):
        values = {name: _corner(p, last=last) for name, p in parameters.items()}
        made = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
        words = []
        for word in content["command"]:
            words += made[word[2:-1]] if word.startswith("${") and word != "${env}" else [word]
        assert words[:3] == ["${env}", "lowbit", "train"]
        cfg, config = load(words[3:])
        assert config.optimizer.lr == pytest.approx(values["optimizer.lr"])
        assert cfg.quantizer.name == values["quantizer"]


def _corner(parameter: dict[str, Any], *, last: bool) -> Any:
    if "values" in parameter:
        return parameter["values"][-1 if last else 0]
    return parameter["max" if last else "min"]

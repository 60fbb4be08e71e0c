"""Optimizers, schedulers and callbacks that `_target_` names: of torch and Lightning, or of the user."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_TI, load_into

from lowbit.config import identity
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load
from lowbit.results import read_run
from lowbit.training.train import train

SGD = ("optimizer._target_=torch.optim.SGD", "+optimizer.options={momentum: 0.9}", "optimizer.lr=0.05")
STEPS = ("scheduler._target_=torch.optim.lr_scheduler.StepLR", "+scheduler.options={step_size: 3, gamma: 0.5}")


def weights(outputs: Path) -> dict[str, torch.Tensor]:
    (file,) = outputs.glob("runs/**/stages/plain/model.safetensors")
    return load_file(file)


def test_adamw_of_torch_is_our_adamw(tmp_path: Path):
    """The same groups, gradients, clipping and schedule, hence the same weights."""
    train(*load_into(tmp_path / "ours", *TINY_TI, "optimizer.beta2=0.98"))
    own = ("optimizer._target_=torch.optim.AdamW", "+optimizer.options={betas: [0.9, 0.98], fused: true}")
    train(*load_into(tmp_path / "own", *TINY_TI, *own))
    ours, theirs = weights(tmp_path / "ours"), weights(tmp_path / "own")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_scheduler_of_torch_sets_the_rate(tmp_path: Path):
    train(*load_into(tmp_path, *TINY_TI, *SGD, *STEPS))
    (file,) = tmp_path.glob("runs/*/*/*/metrics.csv")
    header, *rows = (line.split(",") for line in file.read_text().splitlines())
    column = header.index("train/lr")
    rates = [float(row[column]) for row in rows if row[column]]
    assert rates == pytest.approx([0.05 * 0.5 ** (step // 3) for step in range(9)] * 2)  # fresh in each stage


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["optimizer._target_=torch.optim.Sgd"],
            "optimizer._target_=torch.optim.Sgd: the module torch.optim has no Sgd",
        ),
        (["optimizer._target_=torch.nn.Linear"], "torch.nn.Linear: has no add_param_group"),
        ([*SGD[:1], "+optimizer.options={momentun: 0.9}"], "optimizer.options.momentun: .*did you mean momentum?"),
        ([*SGD, "optimizer.scale_update=sgd", "optimizer.scale_lr=1"], "optimizer.scale_update=sgd: only kind adamw"),
        (["+optimizer.options={momentum: 0.9}"], "optimizer.options: are of an optimizer that `_target_` names"),
        (STEPS[:1], "scheduler.options.step_size: no value"),
        (["optimizer=bert_adam", *STEPS], "optimizer=bert_adam has a schedule of its own; choose optimizer=adamw"),
        ([*SGD[:1], "optimizer.options={momentum: 1}"], "begin the override with +"),
    ],
)
def test_what_does_not_fit_is_refused(overrides: list[str], problem: str):
    with pytest.raises(ConfigError, match=problem):
        load(["experiment=digits/ternarybert", *overrides])


@pytest.mark.parametrize(
    ("callback", "problem"),
    [
        ("{_target_: lightning.pytorch.callbacks.EarlyStoping}", "callbacks.own._target_=.* has no EarlyStoping"),
        ("{_target_: torch.nn.Linear}", "torch.nn.Linear: has no on_train_batch_end"),
        ("{_target_: lightning.pytorch.callbacks.EarlyStopping, monitr: x}", "own.monitr: .*did you mean monitor?"),
        ("{_target_: lightning.pytorch.callbacks.EarlyStopping}", "callbacks.own.monitor: no value"),
        ("{monitor: x}", "callbacks.own: write {_target_: module.Class}"),
    ],
)
def test_a_callback_that_does_not_fit_is_refused(callback: str, problem: str):
    with pytest.raises(ConfigError, match=problem):
        load(["experiment=digits/ternarybert", f"+callbacks.own={callback}"])


def test_early_stopping_ends_a_stage_and_the_record_says_when(tmp_path: Path):
    stop = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "trainer.eval_every=2")
    train(*load_into(tmp_path, *TINY_TI, *stop, "+callbacks.early_stopping.stopping_threshold=100"))
    (file,) = tmp_path.glob("runs/*/*/*/run.json")
    assert read_run(file.parent)["steps"] == 4  # two stages of the first look each
    assert identity.run_id(load(TINY_TI)[0]) != file.parent.name
    assert identity.run_id(load([*TINY_TI, "callbacks=none"])[0]) == identity.run_id(load(TINY_TI)[0])

"""A run on several devices: every rank trains on its share, and together they do what one process does."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_TI
from torch import Tensor

from lowbit.config.validate import load
from lowbit.data import StepRows
from lowbit.data.shares import Share, take_weights
from lowbit.recipes import build_recipe
from lowbit.settings.run import Config
from lowbit.training.modules import DistillationModule
from lowbit.training.quantization import calibrate_student
from lowbit.training.ranks import Ranks, call_on_leader, is_leader, is_several, mean_over_ranks
from lowbit.training.setup import make_datamodule, make_instrument, make_metric, make_model

TINY = tuple(word for word in TINY_TI if not word.startswith("method"))
ROWS = [3, 1, 4, 15, 9, 2, 6]
EXACT = ("trainer.precision=float64", "model.dropout=0", "data.batch_size=7")
NO_QUANTIZER, LEARNED, PER_TENSOR = "quantizer=none", "quantizer=lsq_w4a4", "quantizer=w2a8"
WEIGHTS_ONLY = "quantizer=seq_w2"
HIDDEN_AND_SCORES = "method=ternarybert"


def module_of(config: Config) -> DistillationModule:
    data = make_datamodule(config, 1)
    stage = build_recipe(config, data.steps_per_epoch).stages[0]
    student = make_instrument(make_model(config, data.info, 1), stage.rules)
    teacher = make_instrument(make_model(config, data.info, 2))
    module = DistillationModule(student, teacher, stage, make_metric(data), seed=1)
    calibrate_student(student, data, stage)
    return module


@contextmanager
def step_of(module: DistillationModule, share: Share | None, rows: list[int], config: Config) -> Iterator[Tensor]:
    """Give the loss of one rank's share of a batch, or of the whole batch, with gradients afterwards."""
    batch = make_datamodule(config, 1).splits.train.__getitems__(StepRows(0, rows, share))
    weights = take_weights(dict(batch))
    module.on_before_batch_transfer(batch, 0)
    whole = 1.0 if weights is None or share is None or not weights["rows"] else share.world / weights["rows"]
    module.quantization.begin(0, None, whole)
    total, _ = module.losses(batch, 0)
    total.backward()
    yield total.detach()
    module.zero_grad()


def gradients(module: DistillationModule) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.student.named_parameters() if p.grad is not None}


def averaged(
    module: DistillationModule, world: int, rows: list[int], config: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return means over the ranks: of the losses, and of the gradients, as DistributedDataParallel takes them."""
    loss, found = torch.zeros((), dtype=torch.float64), {}
    for rank in range(world):
        with step_of(module, Share(rank, world), rows, config) as part:
            loss += part / world
            for name, gradient in gradients(module).items():
                found[name] = found.get(name, 0) + gradient / world
    return loss, found


@pytest.mark.parametrize(
    "overrides",
    [
        (HIDDEN_AND_SCORES, NO_QUANTIZER),
        (HIDDEN_AND_SCORES, LEARNED),
        (HIDDEN_AND_SCORES, NO_QUANTIZER, "method.losses.hidden.mask=valid", "method.losses.scores.mask=valid"),
        ("method=ti_g", LEARNED, "method.stages.intervene.steps=9"),
    ],
)
def test_mean_of_the_shares_is_the_loss_and_gradient_of_the_batch(overrides: tuple[str, ...]):
    config = load([*TINY, *EXACT, *overrides])[1]
    module = module_of(config)
    for rows in (ROWS, [5]):  # with one row, two of the three ranks have none
        with step_of(module, None, rows, config) as expected:
            wanted = gradients(module)
        loss, found = averaged(module, 3, rows, config)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-13, msg=name)
        assert any(gradient.abs().max() > 1e-6 for gradient in wanted.values())


def test_scale_per_tensor_is_that_of_the_share():
    """As in the published code, where every GPU computes its own: close to one process, not equal."""
    config = load([*TINY, *EXACT, HIDDEN_AND_SCORES, PER_TENSOR])[1]
    module = module_of(config)
    with step_of(module, None, ROWS, config) as expected:
        pass
    loss, _ = averaged(module, 2, ROWS, config)
    assert loss != expected
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)


def test_one_process_leads_itself():
    config = load(["method=finetune"])[1].trainer
    ranks = Ranks(config)
    assert ranks.leads
    assert is_leader()
    assert not is_several(config)
    assert call_on_leader(lambda: 3) == 3
    values = torch.ones(2)
    assert mean_over_ranks(values) is values


def train(outputs: Path, *overrides: str) -> str:
    """Run `lowbit train` with two trained stages in a process of its own; return what it prints."""
    command = [sys.executable, "-m", "lowbit.cli", "train", *TINY_TI, *EXACT, *overrides, f"paths.outputs={outputs}"]
    own = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    words = ["data.eval_batch_size=8", "trainer.accelerator=cpu", "budget.steps=12"]
    environment = {**os.environ, **own}
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def difference(first: Path, second: Path) -> float:
    """Return the largest difference of any weight or learned scale of two output folders, teachers included."""
    files = sorted(file.relative_to(first) for file in first.rglob("*.safetensors"))
    assert files == sorted(file.relative_to(second) for file in second.rglob("*.safetensors"))
    pairs = [(load_file(first / file), load_file(second / file)) for file in files]
    return max(float((ours[k].double() - theirs[k].double()).abs().max()) for ours, theirs in pairs for k in ours)


def rows_of(outputs: Path) -> list[dict[str, str]]:
    (file,) = outputs.glob("runs/*/*/*/metrics.csv")
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


@pytest.mark.slow
@pytest.mark.parametrize(("quantizer", "bound"), [(LEARNED, 1e-9), (WEIGHTS_ONLY, 1e-9), (PER_TENSOR, 0.1)])
def test_two_processes_end_with_the_weights_of_one(tmp_path: Path, quantizer: str, bound: float):
    """Shares are uneven here, and the last batch of an epoch has one row."""
    train(tmp_path / "one", quantizer)
    printed = train(tmp_path / "two", quantizer, "trainer.devices=2")
    assert printed.count("run agreement/") == 1, "only the leader prints"
    found = difference(tmp_path / "one", tmp_path / "two")
    assert found < bound
    if bound == 1e-9:
        assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")
    else:
        assert found > 1e-6, "scales per tensor are those of the shares"
    (run,) = (tmp_path / "two").glob("runs/*/*/*/run.json")
    assert json.loads(run.read_text())["status"] == "finished"
    assert "finished before" in train(tmp_path / "two", quantizer, "trainer.devices=2")

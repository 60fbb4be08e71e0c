"""Interrupted equals uninterrupted, bit for bit; one run is run by one process."""

import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_TI

from lowbit.config.validate import load
from lowbit.results import read_run

Start = Callable[..., ForkServerProcess]


def train_here(overrides: Sequence[str]) -> None:
    from lowbit.training.train import train

    torch.set_num_threads(1)
    train(*load(list(overrides)))


def train_until(stage: str, step: int, overrides: Sequence[str]) -> None:
    """Train, and die by SIGKILL in the given training step."""
    from lowbit.training.modules import FinetuneModule

    original = FinetuneModule.losses

    def losses(self: FinetuneModule, batch: Any, at: int) -> Any:
        if self.stage.name == stage and at == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch, at)

    FinetuneModule.losses = losses
    train_here(overrides)


def train_until_test(overrides: Sequence[str]) -> None:
    """Train, and die by SIGKILL when all stages are done and only run.json is missing."""
    from lowbit.training import train

    train.model_size = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    train_here(overrides)


def train_slowly(log: Path, waiting: Any, go: Any, overrides: Sequence[str]) -> None:
    """Train, and wait at the first training step until told to go on."""
    from lowbit.training.modules import FinetuneModule

    original = FinetuneModule.losses

    def losses(self: FinetuneModule, batch: Any, at: int) -> Any:
        waiting.set()
        assert go.wait(60)
        return original(self, batch, at)

    FinetuneModule.losses = losses
    train_logged(log, overrides)


def train_logged(log: Path, overrides: Sequence[str]) -> None:
    with log.open("w") as sys.stdout:
        train_here(overrides)


def only_run(outputs: Path) -> Path:
    (file,) = outputs.glob("runs/*/*/*/run.json")
    return file.parent


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "stages" / "plain" / "model.safetensors")


@pytest.mark.parametrize("precision", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_killed_in_both_stages_and_resumed_is_bit_identical(
    precision: str, start: Start, outputs: Path, tmp_path: Path
) -> None:
    overrides = [*TINY_TI, f"trainer.precision={precision}"]
    draw = random.SystemRandom()
    first, second = draw.randrange(1, 9), draw.randrange(0, 9)
    for stage, step in (("teacher", 2), ("intervene", first), ("plain", second)):
        process = start(train_until, stage, step, overrides=overrides)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"{stage} {step}"
        assert not list(outputs.glob("runs/*/*/*/run.json"))
    process = start(train_until_test, overrides=overrides)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    process = start(train_here, overrides=overrides)
    process.join(120)
    assert process.exitcode == 0

    process = start(train_here, overrides=overrides, outputs=tmp_path / "straight")
    process.join(120)
    assert process.exitcode == 0

    resumed, straight = only_run(outputs), only_run(tmp_path / "straight")
    assert resumed.name == straight.name
    for name, expected in weights(straight).items():
        assert torch.equal(weights(resumed)[name], expected), f"killed at intervene {first}, plain {second}: {name}"
    teachers = [load_file(next(o.glob("teachers/*/model.safetensors"))) for o in (outputs, tmp_path / "straight")]
    assert all(torch.equal(teachers[0][name], tensor) for name, tensor in teachers[1].items())
    assert read_run(resumed)["metrics"] == read_run(straight)["metrics"]
    rows = [(run / "metrics.csv").read_text() for run in (resumed, straight)]
    assert rows[0] == rows[1]
    assert not list(outputs.rglob("*.ckpt")), "a finished run keeps weights, not optimizer states"


def test_a_second_process_says_so_and_leaves(start: Start, context: Any, outputs: Path, tmp_path: Path) -> None:
    waiting, go = context.Event(), context.Event()
    first = start(train_slowly, tmp_path / "first.log", waiting, go, overrides=TINY_TI)
    assert waiting.wait(60)
    second = start(train_logged, tmp_path / "second.log", overrides=TINY_TI)
    second.join(60)
    go.set()
    first.join(120)

    assert (first.exitcode, second.exitcode) == (0, 0)
    assert f"process {first.pid} on " in (tmp_path / "second.log").read_text()
    assert "is running it" in (tmp_path / "second.log").read_text()
    assert "training" not in (tmp_path / "second.log").read_text()
    assert read_run(only_run(outputs))["status"] == "finished"


def test_two_runs_share_one_teacher(start: Start, outputs: Path, tmp_path: Path) -> None:
    short = [o for o in TINY_TI if not o.startswith("method")]
    processes = [
        start(train_logged, tmp_path / f"{seed}.log", overrides=[*short, "method=ternarybert", f"seed={seed}"])
        for seed in (1, 2)
    ]
    for process in processes:
        process.join(120)
    logs = "".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert logs.count(": training") == 1
    assert len(list(outputs.glob("teachers/*/model.safetensors"))) == 1

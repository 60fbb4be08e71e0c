"""Tiny runs in processes of their own."""

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture(scope="session")
def context() -> Any:
    """Processes that start in a tenth of a second: the fork server has the imports behind it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lowbit.training.train", "transformers.models.bert.modeling_bert"])
    return context


@pytest.fixture
def start(context: Any, outputs: Path) -> Callable[..., ForkServerProcess]:
    """Start `target(*args, overrides)` in its own process, with its results in `outputs`."""

    def start(
        target: Callable[..., None], *args: Any, overrides: Sequence[str], outputs: Path = outputs
    ) -> ForkServerProcess:
        process = context.Process(target=target, args=(*args, [*overrides, f"paths.outputs={outputs}"]))
        process.start()
        return process

    return start

"""Runs through the command line, in this process: starting one imports torch and Lightning anew, for ten seconds."""

import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from lowbit.config import compose as C

# Small enough for some tenths of a second per run; every part of a run is there.
TINY = [
    "debug=fast",
    "logger=none",
    "data.train_size=40",
    "data.eval_size=20",
    "data.batch_size=20",
    "model.num_layers=1",
    "trainer.progress=false",
    "trainer.checkpoint_every=1000",
    "trainer.log_every=50",
    "trainer.threads=1",  # the machine may be busy, and these models are too small for two
]


@pytest.fixture(autouse=True)
def _process_is_left_clean() -> Iterator[None]:
    """No verb may leave Hydra initialised or the arguments of the process changed."""
    argv = [*sys.argv]
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if threads is not None:
        sys.modules["torch"].set_num_threads(threads)
    assert not GlobalHydra.instance().is_initialized()
    assert sys.argv == argv


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    return list(TINY)


@cache
def stage_steps(choices: tuple[str, ...]) -> dict[str, int | None]:
    """Return the stages of a method, which nothing but the choice of experiment and method decides."""
    return {name: stage.steps for name, stage in C.to_config(C.compose([*choices])).method.stages.items()}


@pytest.fixture(scope="session")
def few_steps() -> Callable[[list[str]], list[str]]:
    """Return a function: the overrides, and those that give each stage of their method two or three steps."""

    def shortened(overrides: list[str]) -> list[str]:
        stages = stage_steps(tuple(o for o in overrides if o.startswith(("experiment=", "method"))))
        fixed = [f"method.stages.{name}.steps=3" for name, steps in stages.items() if steps]
        return [*overrides, *TINY, *fixed, f"budget.steps={4 * len(stages)}"]

    return shortened


@pytest.fixture(scope="session")
def many_glue_rows(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of the GLUE fixtures ten times over: as many as `TINY` asks for."""
    folder = tmp_path_factory.mktemp("glue")
    for file in glue.glob("*/*.tsv"):
        lines = file.read_text().splitlines(keepends=True)
        header = 0 if file.parent.name == "CoLA" else 1
        (folder / file.parent.name).mkdir(exist_ok=True)
        (folder / file.parent.name / file.name).write_text("".join(lines[:header] + 10 * lines[header:]))
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One outputs folder for the module, so that its runs share the teachers."""
    return tmp_path_factory.mktemp("outputs")


def read_runs(outputs: Path) -> dict[str, dict[str, Any]]:
    """Return every run.json below the folder, by run id."""
    return {path.parent.name: json.loads(path.read_text()) for path in outputs.glob("runs/**/run.json")}


@pytest.fixture(scope="session")
def runs_in() -> Callable[[Path], dict[str, dict[str, Any]]]:
    return read_runs

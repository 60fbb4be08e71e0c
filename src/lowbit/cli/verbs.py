"""What the verbs share: how one is added to the parser, expanded into jobs, and how errors are told."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from omegaconf import DictConfig

from lowbit.config import compose as C
from lowbit.config.problems import CONFIG_ERRORS, ConfigError, check_overrides, explain, nearest
from lowbit.config.sources import file_problems
from lowbit.config.validate import load
from lowbit.execution.state import state_of_run
from lowbit.results.selection import Found, choose_runs
from lowbit.settings.run import Config

OVERRIDES = "settings as KEY=VALUE; `lowbit ls` lists what there is, `lowbit check` tests a combination"
SWEEP = "file name in sweeps/, without .yaml"


class AddVerb(Protocol):
    """Adds a verb to the parser: its name, what runs it, one line of help, one example."""

    def __call__(
        self, name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str
    ) -> argparse.ArgumentParser:
        """Return the verb's own parser, for its arguments."""


def describe_error(error: BaseException) -> str:
    """Return an error for people: its text, and where the traceback is."""
    kind = "" if isinstance(error, (*CONFIG_ERRORS, OSError, ConfigError)) else f"{type(error).__name__}: "
    return "\n".join([f"error: {kind}{explain(error)}", *getattr(error, "__notes__", [])])


def chosen_runs(overrides: list[str], words: list[str]) -> tuple[Path, list[Found]]:
    """Return the folder of outputs, and the runs in it that the words choose; `paths.outputs=DIR` may be among them."""
    own = [word for word in words if word.startswith("paths.")]
    outputs = Path(C.compose([*overrides, *own]).paths.outputs)
    filters = [word for word in words if word not in own]
    return outputs, choose_runs(outputs, filters, lambda folder: state_of_run(folder).value)


def known_sweep(name: str) -> None:
    """Raise ConfigError for a name without a file in sweeps/."""
    with C.hydra_session():
        known = C.choices("sweeps")
    if name not in known:
        raise ConfigError([f"sweep {name!r}: no such file. {nearest(name, known)}Sweeps: {', '.join(known)}"])


def jobs_of(overrides: list[str]) -> list[list[str]]:
    """Expand overrides into jobs, those of a sweep's file included where `+sweeps=NAME` is among them."""
    sweep = next((o.split("=", 1)[1] for o in overrides if o.startswith("+sweeps=")), None)
    rest = [o for o in overrides if not o.startswith(("+sweeps=", "sweep="))]
    try:
        return C.expand(overrides if sweep is None else C.sweep_overrides(sweep, rest))
    except CONFIG_ERRORS as error:
        in_files = [problem for found in file_problems(overrides).values() for problem in found]
        raise ConfigError(in_files or check_overrides(overrides)[1] or [explain(error)]) from error


def check_jobs(jobs: list[list[str]]) -> list[tuple[DictConfig, Config]]:
    """Return the configs of all jobs, before any is run; raise ConfigError with all problems, each once."""
    loaded: list[tuple[DictConfig, Config]] = []
    problems: dict[str, None] = {}
    for job in jobs:
        try:
            loaded.append(load(job))
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise ConfigError(list(problems))
    return loaded

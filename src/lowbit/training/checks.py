"""What `lowbit check` looks at beyond the settings: one check per subject, for what `lowbit train` would refuse.

A check is a function in its subject's own room, and a line in `CHECKS`. It may read rows, tokenizers and the weights
with which a run begins; it trains nothing and writes no runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lowbit.config.problems import CONFIG_ERRORS, ConfigError, explain
from lowbit.config.teacher import teacher_data, trains_teacher
from lowbit.data.image_sets import unusable_images
from lowbit.data.text_rows import row_problems
from lowbit.hub import OutOfReachError
from lowbit.modeling.inputs import build_tokenizer
from lowbit.settings.data import TokenizerKind
from lowbit.settings.run import Config
from lowbit.training.preview import preview
from lowbit.training.setup import device_problems, model_problems, outputs_problems


@dataclass(frozen=True)
class Check:
    """A check of one subject.

    Attributes:
        subject: What stays unchecked where its files are out of reach.
        reads: The parts of the config that decide the outcome: jobs of a sweep that share them are checked once.
        problems: Yields or raises (ValueError, ConfigError, OSError) what `lowbit train` would refuse, and raises
            OutOfReachError, or a ConfigError from it, where that cannot be known here.
    """

    subject: str
    reads: Callable[[Config], object]
    problems: Callable[[Config], Iterable[str]]


def _read_by_models(config: Config) -> object:
    students = [stage.student for stage in config.method.stages.values()]
    return config.data, config.model, config.teacher, students, config.trainer.precision


def _tokenizer_problems(config: Config) -> Iterator[str]:
    if config.data.tokenizer is TokenizerKind.model:
        build_tokenizer(config.model)
    yield from ()


def _row_problems(config: Config) -> Iterator[str]:
    yield from row_problems(config.data)
    if config.data.train_file is not None and trains_teacher(config):  # it reads the task's own rows
        yield from row_problems(teacher_data(config))


CHECKS = (
    Check("the outputs", lambda config: config.paths, lambda config: outputs_problems(Path(config.paths.outputs))),
    Check("the device", lambda config: config.trainer, lambda config: device_problems(config.trainer)),
    Check("the models", _read_by_models, model_problems),
    Check("the tokenizer", lambda config: (config.data.tokenizer, config.model), _tokenizer_problems),
    Check("the rows of the data", lambda config: (config.data, trains_teacher(config)), _row_problems),
    Check("the images of the data", lambda config: config.data, lambda config: unusable_images(config.data)),
)


@dataclass
class Findings:
    """What is wrong with a job, what could not be checked for each reason, and lines on what it would do."""

    problems: list[str] = field(default_factory=list)
    unchecked: dict[str, list[str]] = field(default_factory=dict)
    preview: list[str] = field(default_factory=list)


def examine(jobs: Iterable[Config]) -> Iterator[Findings]:
    """Run every check on every job, and preview the job."""
    known: dict[str, Findings] = {}
    for config in jobs:
        found = Findings()
        for check in CHECKS:
            key = f"{check.subject}: {check.reads(config)!r}"
            if key not in known:
                known[key] = Findings()
                _collect(check.subject, check.problems, config, known[key], known[key].problems)
            found.problems += known[key].problems
            for reason, subjects in known[key].unchecked.items():
                found.unchecked.setdefault(reason, []).extend(subjects)
        _collect("the stages and rules", preview, config, found, found.preview)
        yield found


def _collect(
    subject: str, lines: Callable[[Config], Iterable[str]], config: Config, found: Findings, into: list[str]
) -> None:
    """Put the lines of a function into a list, and what it raises among the problems or what is unchecked."""
    try:
        into.extend(lines(config))
    except (ConfigError, *CONFIG_ERRORS, OSError) as error:
        problems = error.problems if isinstance(error, ConfigError) else [explain(error)]
        if isinstance(error, OutOfReachError) or isinstance(error.__cause__, OutOfReachError):
            for problem in problems:
                found.unchecked.setdefault(problem, []).append(subject)
        else:
            found.problems += [problem for problem in problems if problem not in found.problems]

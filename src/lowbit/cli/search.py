"""`lowbit search`: the best of N trials that Optuna chooses from the space of a sweep's file."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from lowbit.cli.launchers import add_options, make_launcher
from lowbit.cli.sweep import tell_failures
from lowbit.cli.verbs import OVERRIDES, AddVerb, known_sweep
from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.problems import ConfigError
from lowbit.execution.search import Search, Space, open_study, parse_space


def add(verb: AddVerb) -> None:
    """Add the verb."""
    example = "lowbit search search_digits --trials 12"
    search = verb("search", _search, "let Optuna choose the runs of sweeps/NAME.yaml; resumes", example)
    search.add_argument("name", help="file name in sweeps/, without .yaml; its parameters may be intervals")
    search.add_argument("overrides", nargs="*", default=[], help=OVERRIDES)
    search.add_argument(
        "--trials", type=int, required=True, metavar="N", help="trials in total, earlier calls included"
    )
    add_options(search)


def _search(args: argparse.Namespace) -> int:
    known_sweep(args.name)
    if args.trials < 1:
        raise ConfigError([f"--trials {args.trials}: must be 1 or greater"])
    space = parse_space(C.sweep_overrides(args.name, args.overrides))
    cfg = C.compose(list(space.fixed))
    outputs = Path(cfg.paths.outputs)
    with open_study(args.name, space, outputs, identity.run_id(cfg)) as study:
        if args.dry_run:
            _tell_trials(study, args.trials)
            return 0
        search = Search(study, space, args.trials)
        launcher, view = make_launcher(args, args.name, outputs, [])
        search.run(launcher, view)
        _tell_best(study, space)
    tell_failures(search.failures, args.trials, "they count as trials and are not retried; a greater --trials adds new")
    return 1 if search.failures else 0


def _tell_trials(study: Any, trials: int) -> None:
    for trial in study.get_trials(deepcopy=False):
        value = "" if trial.value is None else f"  {trial.value:.4f}"
        parameters = " ".join(f"{key}={value_}" for key, value_ in trial.params.items())
        print(f"trial {trial.number}  {trial.state.name.lower()}{value}  {parameters}")
    print(f"{len(study.trials)} of {trials} trials")


def _tell_best(study: Any, space: Space) -> None:
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None]
    if not complete:
        print("no trial has finished")
        return
    best = study.best_trial
    print(f"best of {len(complete)} trials: trial {best.number}, {best.value:.4f} on the validation split")
    print(f"  lowbit train {shlex.join(space.overrides(best.params))}")

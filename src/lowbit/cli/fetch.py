"""`lowbit fetch`: data and weights into their caches, so that runs need no network."""

from __future__ import annotations

import argparse
import sys

from lowbit.cli.verbs import AddVerb, describe_error
from lowbit.config import compose as C
from lowbit.config.problems import CONFIG_ERRORS, ConfigError, check_overrides, explain

_PARTS = ("data", "model", "teacher")


def add(verb: AddVerb) -> None:
    """Add the verb."""
    summary = "fetch data sets and weights once, with network access"
    fetch = verb("fetch", _fetch, summary, "lowbit fetch data=cola model=bert_base")
    fetch.add_argument("overrides", nargs="+", help="data=..., model=..., teacher=..., or an experiment for all of its")


def _fetch(args: argparse.Namespace) -> int:
    # Not validated: that files are missing is why this runs.
    try:
        config = C.to_config(C.compose(args.overrides))
    except CONFIG_ERRORS as error:
        raise ConfigError(check_overrides(args.overrides)[1] or [explain(error)]) from error
    named = {_part(override) for override in args.overrides}
    parts = tuple(part for part in _PARTS if part in named or "experiment" in named)
    if not parts:
        raise ConfigError(["fetch: name what to fetch, for example `lowbit fetch data=cola model=bert_base`"])
    from lowbit.training.fetch import fetch

    try:
        for line in fetch(config, parts):
            print(line, flush=True)
    except ValueError as error:
        print(describe_error(error), file=sys.stderr)
        return 1
    return 0


def _part(override: str) -> str:
    """Return the part of the config that an override is of: `teacher` for +model@teacher.model=bert_base."""
    group, _, package = override.partition("=")[0].lstrip("+").partition("@")
    return (package or group).split(".")[0]

"""`lowbit VERB ...`: the console script. Imports neither torch nor transformers until a config has passed."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial

from lowbit import __version__
from lowbit.cli import ablate, bench, compare, configs, fetch, report, search, softlabels, sweep, table, train
from lowbit.cli.verbs import describe_error
from lowbit.config.problems import CONFIG_ERRORS, ConfigError
from lowbit.execution.process import follow_parent, use_own_temporary_folder

_VERBS = (train, sweep, search, ablate, table, report, compare, configs, fetch, softlabels, bench)

_TRAINING = ("train", "softlabels")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code, as docs/sweeps.md lists them."""
    # Idle OpenMP threads that spin make two threads several times slower on a shared machine; torch reads this once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    follow_parent()
    args = _arguments(argv)
    if argv is None and args.verb in _TRAINING:  # in a process of its own
        use_own_temporary_folder()
    try:
        code = int(args.run(args) or 0)
        sys.stdout.flush()  # here: an error at exit could not be caught
        return code
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has what it wants: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell says of a program that SIGPIPE has ended
    except (*CONFIG_ERRORS, OSError) as error:
        print(describe_error(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # argparse takes the positional arguments up to the first option only; overrides may also follow it.
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    args.command = shlex.join(["lowbit", *(sys.argv[1:] if argv is None else argv)])
    return args


def _parser() -> argparse.ArgumentParser:
    about = "Train Transformers with weights of 1 to 8 bits, compare the methods that do so, and print tables of them."
    layout = partial(argparse.HelpFormatter, max_help_position=15)  # room for a line of each verb
    more = "`lowbit VERB --help` says more of a verb."
    parser = argparse.ArgumentParser(prog="lowbit", description=about, epilog=more, formatter_class=layout)
    parser.add_argument("--version", action="version", version=f"lowbit {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    parser.set_defaults(run=lambda _: parser.print_help())

    def verb(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
        sub.set_defaults(run=run)
        return sub

    for module in _VERBS:
        module.add(verb)
    return parser

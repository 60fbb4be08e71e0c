"""`lowbit bench quantizers|step|job`: run the benchmarks of a checkout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lowbit.cli.verbs import AddVerb
from lowbit.config.problems import ConfigError

_CHECKOUT = Path(__file__).resolve().parents[3]
_MISSING = (
    "bench: the benchmarks are in a checkout of lowbit, not in the installed package. Clone the repository, install it "
    "with `pip install -e .`, and run this command again"
)


def add(verb: AddVerb) -> None:
    """Add the verb."""
    bench = verb("bench", _bench, "measure quantizers, a training step or a whole job", "lowbit bench step --rounds 4")
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="quantizers, step or job, and its options")


def _bench(args: argparse.Namespace) -> int:
    if not (_CHECKOUT / "benchmarks" / "__main__.py").is_file():
        raise ConfigError([_MISSING])
    sys.path.insert(0, str(_CHECKOUT))
    from benchmarks.__main__ import run

    return run(args.arguments)

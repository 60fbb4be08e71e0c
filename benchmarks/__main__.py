"""`python -m benchmarks quantizers|step|job`: measure the quantizers, a distillation step, or a whole job."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lowbit.config.problems import ConfigError
from lowbit.config.validate import load


def run(argv: Sequence[str]) -> int:
    """Measure what the words ask for and print the report.

    Raises:
        ConfigError: the overrides are wrong, or do not go with --shape.
        ValueError: a size, a shape, a device or a function that cannot be measured.
    """
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (args.what == "quantizers" or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes overrides up to the first option only
        args.overrides = [*args.overrides, *rest]
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler writes two lines per function otherwise
    args.run(args)
    return 0


def _quantizers(args: argparse.Namespace) -> None:
    from benchmarks.quantizers import bench_quantizers

    bench_quantizers(args.size, args.rounds, args.device, args.kind)


def _step_or_job(args: argparse.Namespace) -> None:
    if args.overrides and args.shape is not None:
        raise ConfigError([f"bench {args.what}: give --shape or an experiment's overrides, not both"])
    config = load(args.overrides)[1] if args.overrides else None

    from benchmarks.job import bench_job
    from benchmarks.step import bench_step

    measure = bench_job if args.what == "job" else bench_step
    print(measure(config, args.shape, args.rounds, args.threads))


class _Parser(argparse.ArgumentParser):
    """Prints an error as one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m benchmarks", description=__doc__)
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    quantizers = what.add_parser("quantizers", help="time and memory of every quantizer function")
    quantizers.add_argument("--size", type=_size, default=(4096, 768), help="rows x columns; 4096x768 if not given")
    quantizers.add_argument("--rounds", type=int, default=7, help="timed rounds (default 7)")
    quantizers.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    quantizers.add_argument("--kind", help="one function, or the first words of its name, such as lsq or minmax")
    quantizers.set_defaults(run=_quantizers)
    for name, summary in (
        ("step", "a distillation step against its parts"),
        ("job", "a run against a bare loop that does the same arithmetic"),
    ):
        sub = what.add_parser(name, help=summary, description=summary)
        sub.add_argument("overrides", nargs="*", help="an experiment to measure; none: TernaryBERT at --shape")
        sub.add_argument("--shape", help="hidden=384,layers=6,heads=12,ffn=1536,vocab=30522,batch=32,length=64")
        sub.add_argument("--rounds", type=int, default=8, help="timed rounds; each runs every part once (default 8)")
        sub.add_argument("--threads", type=int, help="torch threads; default: all cores")
        sub.set_defaults(run=_step_or_job)
    return parser


def _size(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    try:
        return int(rows), int(columns or rows)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give rows x columns, such as 4096x768") from None


if __name__ == "__main__":
    from lowbit.cli import main  # reports errors, and sets up OpenMP before torch is imported

    raise SystemExit(main(["bench", *sys.argv[1:]]))

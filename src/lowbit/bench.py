"""`python -m lowbit.bench quantizers`: time and memory of the quantizer functions."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

_MIB = 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 2 for arguments that cannot be measured."""
    args = _parser().parse_args(argv)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler writes two lines per function otherwise

    from lowbit.quantizers.bench import DEFAULT_ROUNDS, DEFAULT_SIZE, benchmark
    from lowbit.training.environment import device_name, keep_freed_memory

    keep_freed_memory()
    size = args.size or DEFAULT_SIZE
    try:
        rows = benchmark(size, DEFAULT_ROUNDS if args.rounds is None else args.rounds, args.device, args.kind)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    import torch
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Forward + backward, {size[0]}x{size[1]} float32\n{device_name(args.device)}, torch {torch.__version__}",
        caption="x copy: against x.clone() forward and a clone of the gradient backward, timed in turn",
    )
    table.add_column("function", no_wrap=True)
    table.add_column("estimator", no_wrap=True)
    for heading in ("ms", "x copy", "peak MiB", "x copy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        numbers = (row.milliseconds, row.time_ratio, row.peak_bytes / _MIB, row.memory_ratio)
        table.add_row(row.name, row.estimator, *(f"{number:.2f}" for number in numbers))
    Console().print(table)
    return 0


class _Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m lowbit.bench", description=__doc__)
    parser.add_argument("what", choices=("quantizers",), help="what to measure")
    parser.add_argument("--size", type=_size, help="rows x columns, such as 4096x768 (default), or one number for both")
    parser.add_argument("--rounds", type=int, help="timed rounds (default 7)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--kind", help="one function, or the first words of its name, such as lsq or minmax")
    return parser


def _size(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    try:
        return int(rows), int(columns or rows)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give rows x columns, such as 4096x768") from None


if __name__ == "__main__":
    raise SystemExit(main())

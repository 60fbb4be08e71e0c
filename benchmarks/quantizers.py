"""What each quantizer function costs, forward and backward, against a plain copy of the tensor."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.workload import milliseconds
from lowbit.quantizers import functional as Q
from lowbit.quantizers.estimators import EWGS, StableQAT
from lowbit.training.environment import device_name, keep_freed_memory

Function = Callable[[Tensor], Tensor]
_MIB = 2**20
NOT_MEASURED = ("lsq_mse_init",)
"""Public functions that are no quantizers: they run once, without a gradient."""


@dataclass(frozen=True)
class Row:
    """Cost of one function: median milliseconds and peak bytes of a forward and a backward.

    Attributes:
        name: of the function.
        estimator: gradient estimator, `published` or a class name.
        milliseconds: median over the rounds.
        time_ratio: the same in copies: one in the forward, one of the gradient in the backward. Every function's turn
            comes right after a copy's; the median is that of all of them.
        peak_bytes: most memory allocated at one time, the input aside.
        memory_ratio: the same in copies.
    """

    name: str
    estimator: str
    milliseconds: float
    time_ratio: float
    peak_bytes: int
    memory_ratio: float


def bench_quantizers(size: Sequence[int], rounds: int, device: str, kind: str | None) -> None:
    """Measure the functions as `benchmark` does, and print a table.

    Raises:
        ValueError: a size, a number of rounds, a device or a function that cannot be measured.
    """
    keep_freed_memory()
    rows = benchmark(size, rounds, device, kind)
    table = Table(
        title=f"Forward + backward, {size[0]}x{size[1]} float32\n{device_name(device)}, torch {torch.__version__}",
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


def functions(kind: str | None = None) -> tuple[str, ...]:
    """Return the functions that are measured: all, or those whose name is `kind` or begins with it."""
    names = (name for name in Q.__all__ if name not in NOT_MEASURED)
    return tuple(name for name in names if kind is None or f"{name}_".startswith(f"{kind}_"))


def benchmark(size: Sequence[int], rounds: int, device: str = "cpu", kind: str | None = None) -> list[Row]:
    """Measure every quantizer function; the grids with half-way thresholds also under two other estimators.

    All functions take turns, each right after a copy, so that noise of the machine hits both.

    Args:
        size: rows and columns of the weight.
        rounds: timed turns, after an untimed one.
        device: `cpu` or `cuda`.
        kind: name of a function, or its first words: `elastic` is both elastic grids.

    Raises:
        ValueError: a size, a number of rounds, a device or a function that cannot be measured.
    """
    check(size, rounds, device, kind)
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(*size, generator=generator) * 0.05).to(device).requires_grad_()
    upstream = torch.randn(*size, generator=generator).to(device)
    cases = {key: run for key, run in _cases(weight).items() if key[0] in functions(kind)}
    copy_bytes = _peak_bytes(_Copy.apply, weight, upstream)
    peaks = {key: _peak_bytes(run, weight, upstream) for key, run in cases.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in cases}
    copies = []
    for _ in range(rounds):
        for key, run in cases.items():
            copies.append(milliseconds(lambda: _forward_backward(_Copy.apply, weight, upstream), weight.device))
            step = functools.partial(_forward_backward, run, weight, upstream)
            times[key].append(milliseconds(step, weight.device))
    copied = statistics.median(copies)
    rows = []
    for (name, estimator), peak in peaks.items():
        own = statistics.median(times[name, estimator])
        rows.append(Row(name, estimator, own, own / copied, peak, peak / copy_bytes))
    return rows


def check(size: Sequence[int], rounds: int, device: str, kind: str | None) -> None:
    """Refuse what cannot be measured.

    Raises:
        ValueError: what is wrong, and what is allowed.
    """
    if len(size) != 2 or min(size) < 8 or size[1] % 8:
        shown = "x".join(str(n) for n in size)
        raise ValueError(f"size {shown}: give rows x columns, at least 8x8, the columns a multiple of 8")
    if rounds < 1:
        raise ValueError(f"rounds {rounds}: must be at least 1")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r}: allowed are cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': this machine has no CUDA device that torch can use; take cpu")
    if not functions(kind):
        raise ValueError(f"kind {kind!r}: no function of this name; there are {', '.join(functions())}")


class _Copy(torch.autograd.Function):
    """The least that a quantizer could do: write the output once, and the gradient once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0].clone()


def _cases(w: Tensor) -> dict[tuple[str, str], Function]:
    """Return each function with typical settings, by name and estimator."""
    device, rows = w.device, w.shape[0]
    step = torch.full((1, 1), 0.03, device=device, requires_grad=True)
    row_steps = torch.full((rows, 1), 0.1, device=device, requires_grad=True)
    low, high = torch.full((1, 1), -0.15, device=device), torch.full((1, 1), 0.15, device=device)
    least, most = low.clone().requires_grad_(), high.clone().requires_grad_()
    moments = w.detach().square()
    selected = torch.rand(w.shape, device=device) < 0.5
    kept = torch.rand(rows, w.shape[1] // 8, device=device) < 0.9
    uniform: dict[str, Callable[..., Tensor]] = {
        "bitnet_ternarize": Q.bitnet_ternarize,
        "bwn_binarize": functools.partial(Q.bwn_binarize, granularity="tensor"),
        "elastic_signed": functools.partial(Q.elastic_signed, alpha=step, bits=4),
        "elastic_unsigned": functools.partial(Q.elastic_unsigned, alpha=step, bits=4),
        "lat_ternarize": functools.partial(Q.lat_ternarize, second_moment=moments, granularity="tensor"),
        "lsq": functools.partial(Q.lsq, alpha=step, bits=4, grad_scale="lsq"),
        "minmax_asymmetric": functools.partial(Q.minmax_asymmetric, bits=4, granularity="tensor"),
        "minmax_symmetric": functools.partial(Q.minmax_symmetric, bits=4, granularity="tensor"),
        "seq": functools.partial(Q.seq, alpha=row_steps, bits=4),
        "static_range": functools.partial(Q.static_range, low=low, high=high, bits=4),
        "statsq": functools.partial(Q.statsq, bits=4),
        "xtc_symmetric": functools.partial(Q.xtc_symmetric, bits=4, granularity="tensor"),
    }
    published: dict[str, Function] = {
        **uniform,
        "drop_blocks": lambda x: Q.drop_blocks(x, kept, rate=0.1),
        "pact": functools.partial(Q.pact, low=least, high=most, bits=4),
        "quant_noise": lambda x: Q.quant_noise(x, Q.minmax_symmetric(x, bits=4, granularity="tensor"), selected),
        "twn_ternarize": lambda x: Q.twn_ternarize(x, granularity="tensor"),
    }
    cases = {}
    for name in functions():
        cases[name, "published"] = published[name]
        for estimator in (StableQAT(), EWGS()) if name in uniform else ():
            cases[name, type(estimator).__name__] = functools.partial(uniform[name], estimator=estimator)
    return cases


def _forward_backward(run: Function, weight: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    y = run(weight)
    learned = [weight, *_leaves(run)]
    return y, *torch.autograd.grad(y, learned, upstream)


def _leaves(run: Any) -> list[Tensor]:
    """Return the learned scales among a partial's settings."""
    settings = run.keywords.values() if isinstance(run, functools.partial) else ()
    return [value for value in settings if isinstance(value, Tensor) and value.requires_grad]


def _peak_bytes(run: Function, weight: Tensor, upstream: Tensor) -> int:
    """Return the most bytes allocated at one time beyond what is there before; the first run of each function."""
    if weight.is_cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = _forward_backward(run, weight, upstream)
        torch.cuda.synchronize()
        del results
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        results = _forward_backward(run, weight, upstream)
    del results
    kineto: Any = found.profiler
    events = [e for e in kineto.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak

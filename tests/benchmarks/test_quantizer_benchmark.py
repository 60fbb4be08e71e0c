"""`lowbit bench quantizers`: every function has a row, memory is counted right, errors are one line."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import quantizers as bench
from lowbit.cli import main
from lowbit.quantizers import functional

SMALL = (256, 256)
BYTES = 4 * SMALL[0] * SMALL[1]


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], bench.Row]:
    return {(row.name, row.estimator): row for row in bench.benchmark(SMALL, rounds=1)}


def test_every_quantizer_function_is_measured(rows: dict[tuple[str, str], bench.Row]):
    assert {name for name, estimator in rows if estimator == "published"} == set(functional.__all__) - {"lsq_mse_init"}
    for estimator in ("StableQAT", "EWGS"):
        with_estimator = {name for name, used in rows if used == estimator}
        assert with_estimator == {name for name, _ in rows} - {"drop_blocks", "pact", "quant_noise", "twn_ternarize"}
    assert all(row.milliseconds > 0 and row.time_ratio > 0 for row in rows.values())


def test_memory_is_counted_in_copies(rows: dict[tuple[str, str], bench.Row]):
    for row in rows.values():
        assert row.peak_bytes >= BYTES, row  # the output
        assert row.peak_bytes / (2 * BYTES) == pytest.approx(row.memory_ratio, rel=0.01), row
        assert row.memory_ratio <= 3.2, row
    assert rows["minmax_symmetric", "published"].memory_ratio <= 2
    assert rows["lsq", "published"].peak_bytes < 2.5 * BYTES  # output, gradient and a mask of bytes


@pytest.mark.parametrize("temporaries", [0, 1, 5])
def test_the_peak_is_what_is_held_at_one_time(temporaries: int):
    w = torch.zeros(SMALL, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        y = bench._Copy.apply(x)
        with torch.no_grad():
            held = [torch.ones_like(x) for _ in range(temporaries)]
            del held
            for _ in range(3):  # one after the other: no more than one at a time
                torch.ones_like(x)
        return y

    peak = bench._peak_bytes(run, w, torch.ones(SMALL))
    assert peak == pytest.approx(BYTES * max(2, 1 + temporaries), rel=0.01)


def test_the_command_prints_every_function(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "quantizers", "--size", "64x32", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert "64x32" in out
    assert all(f" {name} " in out for name in functional.__all__ if name != "lsq_mse_init")


@pytest.mark.parametrize(
    ("kind", "names"),
    [("lsq", {"lsq"}), ("elastic", {"elastic_signed", "elastic_unsigned"}), ("twn_ternarize", {"twn_ternarize"})],
)
def test_one_kind_alone(kind: str, names: set[str]):
    assert {row.name for row in bench.benchmark((16, 16), 1, kind=kind)} == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "nf4"], "error: kind 'nf4': no function of this name; there are bitnet_ternarize, "),
        (["--kind", ""], "error: kind ''"),
        (["--size", "abc"], "error: argument --size: 'abc' is no size: give rows x columns, such as 4096x768"),
        (["--size", "10x10"], "error: size 10x10: give rows x columns, at least 8x8, the columns a multiple of 8"),
        (["--size", "0"], "error: size 0x0"),
        (["--rounds", "0"], "error: rounds 0: must be at least 1"),
        (["--device", "tpu"], "error: device 'tpu': allowed are cpu, cuda"),
        (["--device", "cuda"], "error: device 'cuda': this machine has no CUDA device"),
        (["--colour"], "error: unrecognized arguments: --colour"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code: Any
    try:
        code = main(["bench", "quantizers", *arguments])
    except SystemExit as stopped:  # argparse's way
        code = stopped.code
    streams = capsys.readouterr()
    assert code == 2
    assert streams.err.startswith(message)
    assert streams.err.count("\n") == 1
    assert streams.out == ""


@pytest.mark.slow
def test_it_runs_as_a_module():
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", "quantizers", "--kind", "xtc", "--size", "16", "--rounds", "1"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "xtc_symmetric" in ran.stdout
    assert ran.stderr == ""  # the profiler is quiet


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda():
    (row, *_) = bench.benchmark((1024, 1024), 2, "cuda", "minmax_symmetric")
    assert row.milliseconds > 0
    assert 0.4 < row.memory_ratio <= 2

"""The terminal table fits in 80 columns and is followed by what to do next."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from lowbit.results import Row, print_grid, tabulate_rows

MakeRow = Callable[..., Row]


def printed(rows: list[Row], width: int = 80) -> str:
    """Return what the terminal shows."""
    buffer = io.StringIO()
    print_grid(tabulate_rows(rows, "demo [1/2]"), Console(file=buffer, width=width, force_terminal=False))
    return buffer.getvalue()


@pytest.mark.parametrize("width", [80, 60, 200])
def test_terminal_never_wraps_numbers(row: MakeRow, rows: list[Row], width: int) -> None:
    """The widest realistic row keeps each number whole; words give way instead."""
    wide = row(label="ti_g, quantizer=w2a8, data=glue_stsb", values=[0.97, 0.98, 0.99], n=3, expected=5,
               bits="32-32-32", simulated_mb=0.00456, compression=31.9, steps=123456, seconds=1234567.0)  # fmt: skip
    # A second metric adds a column of words, so that space is really short.
    shown = printed([*rows, wide, row(metric="test/matthews")], width)
    table = shown[: shown.index("commit ")].splitlines()
    assert max(map(len, table)) <= width
    for number in ("98.00 ± 1.00 (3)", "32-32-32", "0.00456", "31.9x", "123456", "1234567"):
        assert any(f" {number} " in line and line.strip().startswith("ti_g,") for line in table), "in its method's line"
    assert "…" not in shown
    start = next(place for place, line in enumerate(table) if line.strip().startswith("ti_g,"))
    method = [line.strip().split("  ")[0].removesuffix(" test accuracy") for line in table[start : start + 3]]
    assert " ".join(method).startswith("ti_g, quantizer=w2a8, data=glue_stsb")


def test_terminal_keeps_usual_methods_whole_at_80_columns(row: MakeRow) -> None:
    """The status breaks before the name of a method does."""
    part = row(label="ti_g, variation_aware=on", values=[0.9, 0.92], n=2, expected=3)
    first, second = [line for line in printed([part]).splitlines() if "ti_g," in line or "seeds" in line]
    assert (first.split()[0], first.split()[-3:]) == ("ti_g,", ["2", "of", "3"])
    assert second.split() == ["variation_aware=on", "seeds"]


def test_terminal_shows_provenance_and_commands(row: MakeRow, rows: list[Row]) -> None:
    """A command is one line that can be copied, brackets included."""
    command = "lowbit train 'losses=[logits,hidden]' " + "trainer.long_override=1 " * 5
    shown = printed([*rows, row(label="a[b]", missing=[command], values=[], n=0)])
    assert "demo [1/2]" in shown
    assert "a[b]" in shown
    after = shown[shown.index("status") :]
    assert "\ncommit abc1234; device cpu x86_64; checkpoint last\n" in after
    commands = after[after.index("To fill the missing cells:") :].splitlines()
    wanted = ["lowbit train method=bit seed=1", "lowbit train method=xtc seed=0", command.strip()]
    assert [line.strip() for line in commands[1:]] == wanted
    assert "To fill" not in printed([row()])


def test_provenance_admits_a_difference(row: MakeRow) -> None:
    """Runs of two commits are never shown as if they were one."""
    mixed = [row(commits=("a", "b"), devices=("cpu",)), row(commits=("b",), devices=("gpu",))]
    assert tabulate_rows(mixed).notes[-1] == "commits differ: a, b; devices differ: cpu, gpu; checkpoint last"
    assert tabulate_rows([row()]).notes[-1] == "no run has finished"

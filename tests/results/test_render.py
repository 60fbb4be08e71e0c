"""The writers of a grid: Markdown, LaTeX, pages, and terminals of any width."""

import io
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from lowbit.results import Row, format_of, print_grid, tabulate_rows
from lowbit.results.render import Grid, write_grid

NASTY = '<script>alert("x")</script> & | 50% a_b'
GRID = Grid(
    heads=[(NASTY, "left"), ("n", "right")],
    lines=[[NASTY, "1"], ["b", "2"]],
    title=NASTY,
    styles={(0, 1): "match"},
    groups=frozenset({1}),
    notes=[NASTY],
    commands=["lowbit train 'a=[<b>]'"],
)


class Tags(HTMLParser):
    """Checks that every tag is closed, and collects what a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not {key for key, _ in attrs} & {"src", "href", "onclick"}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_is_whole_and_escaped() -> None:
    """Nothing of the text becomes a tag, and nothing is fetched from elsewhere."""
    page = Tags()
    page.feed(write_grid(GRID, "html"))
    page.close()
    assert page.open == []
    assert "script" not in page.seen
    assert page.text.count(NASTY) == 5  # title, heading, head, cell, note
    assert "lowbit train 'a=[<b>]'" in page.text


def test_styles_and_groups_of_the_page() -> None:
    """Verdicts have a class, groups a line above them."""
    page = write_grid(GRID, "html")
    assert '<td class="right match">1</td></tr>' in page
    assert '<tr class="new"><td class="left">b</td>' in page


def test_markdown_keeps_commands_whole() -> None:
    """As a code block, with the pipes of cells escaped."""
    text = write_grid(GRID, "md")
    assert r"& \| 50% a_b | 1 |" in text
    assert text.endswith("\nTo fill the missing cells:\n\n    lowbit train 'a=[<b>]'\n")


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\f", "\u2028"])
def test_line_ends_in_overrides_end_nothing(end: str) -> None:
    """A command stays a comment or a block to its end, a cell stays in its row."""
    nasty = f"a{end}\\input{{evil}} | b"
    grid = Grid(heads=[(nasty, "left")], lines=[[nasty]], notes=[nasty], commands=[f"lowbit train 'x={nasty}'"])
    latex = write_grid(grid, "latex")
    assert all("evil" not in line or line.startswith("%") or "textbackslash" in line for line in latex.splitlines())
    markdown = write_grid(grid, "md").splitlines()
    assert all(line.startswith(("|", "    ")) for line in markdown if "evil" in line and line[0] != "a")


def test_latex_has_notes_inside_and_commands_as_comments() -> None:
    """So that the tabular can be pasted as it is."""
    lines = write_grid(GRID, "latex").splitlines()
    assert lines.index(r"\addlinespace") == 5
    assert lines[lines.index(r"\bottomrule") + 1].startswith(r"\multicolumn{2}{p{0.95\linewidth}}{\footnotesize ")
    assert r"50\% a\_b" in lines[4]
    assert lines[-1] == "%   lowbit train 'a=[<b>]'"


@pytest.mark.parametrize(
    ("name", "fmt"), [("a.md", "md"), ("a.TEX", "latex"), ("a.csv", "csv"), ("a.b.html", "html"), ("a.htm", "html")]
)
def test_format_of_a_file(name: str, fmt: str) -> None:
    """By its suffix."""
    assert format_of(Path(name)) == fmt


@pytest.mark.parametrize("name", ["table", "table.pdf"])
def test_suffix_without_a_format(name: str) -> None:
    """The message says which ones there are."""
    with pytest.raises(ValueError, match=r"names no format; end in \.md, \.csv, \.tex, \.html, \.htm, or add --format"):
        format_of(Path(name))


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

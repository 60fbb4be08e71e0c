"""Text cells as Markdown, LaTeX and HTML."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from lowbit.results import format_of
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

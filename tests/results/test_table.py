"""Tables by row and by language: every format shows the same rows."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lowbit.results import (
    Cell,
    Format,
    Grid,
    Row,
    collect,
    print_grid,
    read_papers,
    tabulate_languages,
    tabulate_rows,
    write_grid,
)

MakeCell = Callable[..., Cell]
MakeRow = Callable[..., Row]
STORED = Path(__file__).parents[1] / "fixtures" / "runs"


def to_text(rows: list[Row]) -> list[Sequence[str]]:
    """Return the header and the lines."""
    grid = tabulate_rows(rows)
    return [[name for name, _ in grid.heads], *grid.lines]


def render(rows: list[Row], fmt: Format, title: str = "") -> str:
    """Return the table as text."""
    return write_grid(tabulate_rows(rows, title), fmt)


def test_text_cells(rows: list[Row]) -> None:
    """Columns, digits and status, against numbers worked out by hand."""
    found, *lines = to_text(rows)
    head = ["method", "test accuracy", "bits (W-E-A)", "size (MB)", "compression", "steps", "seconds", "status"]
    assert found == head
    assert lines == [
        ["teacher", "97.00", "32-32-32", "1.23", "1.0x", "600", "12.0", "done"],
        ["ti_g", "92.00 ± 2.00 (3)", "2-2-8", "0.123", "10.0x", "900", "40.0", "done"],
        ["kd", "97.33", "2-2-8", "0.123", "10.0x", "900", "40.0", "done"],
        ["bit", "90.00", "2-2-8", "0.123", "10.0x", "900", "40.0", "1 of 2 seeds"],
        ["xtc", "-", "-", "-", "-", "-", "-", "not run"],
    ]


@pytest.mark.parametrize(
    ("changes", "column", "text"),
    [
        ({"metric": "test/matthews", "values": [-0.0123]}, "test matthews", "-1.23"),
        ({"metric": "test/loss", "values": [2.34567, 2.34767]}, "test loss", "2.347 ± 0.001 (2)"),
        ({"metric": "test/loss", "values": [0.0]}, "test loss", "0.000"),
        ({"metric": "test/loss", "values": [float("nan")]}, "test loss", "nan"),
        ({"metric": "test/loss", "values": [12345.6]}, "test loss", "12346"),
        ({"simulated_mb": 417.6}, "size (MB)", "418"),
        ({"simulated_mb": 13.44}, "size (MB)", "13.4"),
        ({"simulated_mb": 0.00456}, "size (MB)", "0.00456"),
        ({"seconds": 12345.6}, "seconds", "12346"),
        ({"compression": 14.94}, "compression", "14.9x"),
    ],
)
def test_digits(row: MakeRow, changes: dict[str, Any], column: str, text: str) -> None:
    """No number shows more digits than it is worth, none loses its integer part."""
    head, line = to_text([row(**changes)])
    assert dict(zip(head, line, strict=True))[column] == text


def test_several_metrics_and_teachers_are_told_apart(row: MakeRow) -> None:
    """A sweep over data sets names the metric of each row and its teacher."""
    teachers = [row(label="teacher", teacher_id="t1"), row(label="teacher", teacher_id="t2", metric="test/matthews")]
    head, *lines = to_text([*teachers, row(metric=None, values=[], n=0)])
    assert head[:3] == ["method", "metric", "score"]
    assert [line[:2] for line in lines] == [
        ["teacher t1", "test accuracy"],
        ["teacher t2", "test matthews"],
        ["ti_g", "-"],
    ]


def test_markdown(row: MakeRow, rows: list[Row]) -> None:
    """A GitHub table, with numbers to the right and pipes escaped."""
    lines = render(rows, "md").splitlines()
    assert lines[0].startswith("| method | test accuracy | bits (W-E-A) |")
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    assert lines[3] == "| ti_g | 92.00 ± 2.00 (3) | 2-2-8 | 0.123 | 10.0x | 900 | 40.0 | done |"
    assert lines[2 + len(rows) :][:2] == ["", "commit abc1234; device cpu x86_64; checkpoint last"]
    assert lines[-2:] == ["    lowbit train method=bit seed=1", "    lowbit train method=xtc seed=0"]
    assert "| a\\|b |" in render([row(label="a|b")], "md")


@pytest.mark.parametrize("fmt", ["md", "latex", "html"])
def test_damaged_runs_are_marked(fmt: Any, make_cell: MakeCell) -> None:
    """A row of one seed, a row of two; what can be read is shown, with the file and the remedy in a note."""
    cells = [make_cell(), make_cell("kd", seed=0), make_cell("kd", seed=1)]
    for cell in cells[:2]:
        (cell.run_dir / "run.json").write_text("{")
    rows = collect(cells)
    assert [row.status for row in rows] == ["damaged", "done", "1 of 2 seeds, 1 damaged"]
    text = render(rows, fmt)
    assert text.count("is not valid JSON") == 2
    assert "Delete that file" in text


def test_latex(rows: list[Row]) -> None:
    """A booktabs tabular in which every line has eight cells."""
    lines = render(rows, "latex").splitlines()
    assert lines[:2] == [r"\begin{tabular}{lrrrrrrl}", r"\toprule"]
    assert r"\bottomrule" in lines
    assert r"\end{tabular}" in lines
    assert r"ti\_g & 92.00 $\pm$ 2.00 (3) & 2-2-8 & 0.123 & 10.0x & 900 & 40.0 & done \\" in lines
    assert {line.count("&") for line in lines if line.endswith(r"\\") and "multicolumn" not in line} == {7}


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        ("ti_g", r"ti\_g"),
        ("50%", r"50\%"),
        ("a&b#c$d{e}", r"a\&b\#c\$d\{e\}"),
        ("a\\_", r"a\textbackslash{}\_"),
        ("~^<", r"\textasciitilde{}\textasciicircum{}\textless{}"),
    ],
)
def test_latex_escapes(row: MakeRow, raw: str, escaped: str) -> None:
    """A label is text, never a command."""
    (line,) = [line for line in render([row(label=raw)], "latex").splitlines() if " & 50.00 & " in line]
    assert line.startswith(f"{escaped} & ")


def test_csv_has_raw_numbers(rows: list[Row]) -> None:
    """Every digit, unscaled, one column each; nothing where nothing has run."""
    records = list(csv.DictReader(io.StringIO(render(rows, "csv"))))
    full = records[1]
    assert (float(full["mean"]), float(full["std"])) == (rows[1].mean, rows[1].std)
    assert float(full["std"]) == pytest.approx(0.02)
    assert (full["metric"], full["n"], full["expected"]) == ("test/accuracy", "3", "3")
    assert (full["size_mb"], full["commit"], full["device"]) == ("0.123456", "abc1234", "cpu x86_64")
    assert (full["bits"], full["compression"], full["steps"], full["seconds"]) == ("2-2-8", "10.0", "900", "40.0")
    assert (records[0]["method"], records[0]["teacher_id"], records[2]["std"]) == ("teacher", "t1", "")
    assert (records[4]["mean"], records[4]["n"], records[4]["status"]) == ("", "0", "not run")


def test_published_values_are_columns(stored_cells: list[Cell]) -> None:
    """Beside the score, with the rule and the sources below; only where a row has one."""
    records = read_papers([STORED / "conf" / "paper"])
    found = collect(stored_cells, records=records)
    head, *lines = to_text(found)
    assert head[:5] == ["method", "test accuracy", "published", "difference", "vs paper"]
    assert [line[2:5] for line in lines] == [
        ["97", "-0.33", "match"],
        ["95 to 96", "-0.50", "match"],
        ["94.5", "+2.00", "above"],
        ["97.5 ± 0.75", "-2.25", "below"],
        ["97.9", "+0.10", "match"],
    ]
    text = render(found, "md")
    assert "\nmatch: |difference| <= max(" in text
    assert "\nPublished: Nobody (2026), Table 1.\n" in text
    raw = list(csv.DictReader(io.StringIO(render(found, "csv"))))
    assert (raw[3]["published"], raw[3]["tolerance"], raw[3]["vs_paper"]) == ("97.5", "0.75", "below")
    plain = collect(stored_cells)
    assert "published" not in to_text(plain)[0]
    assert "published" not in render(plain, "csv")


def test_page(rows: list[Row]) -> None:
    """The page of HTML also says where the numbers come from and how to get the rest."""
    page = render(rows, "html", "a<b")
    assert "<h1>a&lt;b</h1>" in page
    assert '<td class="left not-run">not run</td>' in page
    assert "<p>commit abc1234; device cpu x86_64; checkpoint last</p>" in page
    assert "lowbit train method=xtc seed=0</pre>" in page


def test_unknown_format_lists_the_choices() -> None:
    """The error says what to write instead."""
    with pytest.raises(ValueError, match="unknown table format 'pdf', choose one of md, csv, latex, html"):
        render([], "pdf")  # type: ignore[arg-type]


@pytest.mark.parametrize("fmt", ["md", "csv", "latex", "html"])
def test_no_rows_is_a_header(fmt: Any) -> None:
    """An empty sweep is a table without lines."""
    assert "method" in render([], fmt)
    assert len(to_text([])) == 1


TEACHER_SCORES = {"val/accuracy": 0.9, "val_de/accuracy": 0.8, "val_fr/accuracy": 0.7, "val_mean/accuracy": 0.8}
TEACHER_SIZE = {"float_bytes": 4, "simulated_bytes": 4, "compression": 1.0, "bits": "32-32-32"}
TEACHER = {"id": "t1", "metrics": TEACHER_SCORES, "size": TEACHER_SIZE, "steps": 6, "seconds": 1.0}


@pytest.fixture
def make(make_cell: Callable[..., Cell]) -> Callable[..., Cell]:
    """Return a maker of cells by method, seed and accuracy in each language."""

    def build(method: str, seed: int, **scores: float) -> Cell:
        metrics = {f"val_{key}/accuracy".replace("val_en", "val"): value for key, value in scores.items()}
        metrics |= {"val_mean/accuracy": sum(scores.values()) / len(scores), "val_de_intervened/accuracy": 0.1}
        data: dict[str, Any] = {"name": "xnli", "xglue_task": "xnli", "language": "en"}
        config = {"data": data, "model": {"name": "hf"}, "method": {"name": method}, "quantizer": {"name": "w2a8"}}
        changes = {"config": config, "metrics": metrics, "primary_metric": "val_mean/accuracy", "teacher": TEACHER}
        return make_cell(method, seed, **changes)

    return build


@pytest.fixture
def table(make: Callable[..., Cell]) -> Grid:
    ti_g = [make("ti_g", 0, en=0.5, de=0.3, fr=0.1), make("ti_g", 1, en=0.7, de=0.3, fr=0.3)]
    return tabulate_languages([*ti_g, make("kd_qat", 0, en=0.6, de=0.4)], "xnli")


def test_a_column_per_language_and_their_mean(table: Grid):
    assert write_grid(table, "md").splitlines()[:5] == [
        "| method | en | de | fr | mean | status |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
        "| teacher | 90.00 | 80.00 | 70.00 | 80.00 | done |",
        "| ti_g | 60.00 ± 14.14 (2) | 30.00 ± 0.00 (2) | 20.00 ± 14.14 (2) | 36.67 ± 9.43 (2) | done |",
        "| kd_qat | 60.00 | 40.00 | - | 50.00 of 2 | done |",
    ]


def test_other_formats_hold_the_same_numbers(table: Grid, capsys: pytest.CaptureFixture[str]):
    rows = list(csv.DictReader(io.StringIO(write_grid(table, "csv"))))
    assert len(rows) == 3 * 4
    found = {(row["method"], row["language"]): row for row in rows}
    assert float(found["ti_g", "en"]["mean"]) == pytest.approx(0.6)
    assert found["ti_g", "en"]["metric"] == "val/accuracy"
    assert float(found["ti_g", "mean"]["mean"]) == pytest.approx(1.1 / 3)
    assert (found["kd_qat", "fr"]["mean"], found["kd_qat", "fr"]["n"]) == ("", "0")
    assert r"kd\_qat & 60.00 & 40.00 & - & 50.00 of 2 & done \\" in write_grid(table, "latex")
    print_grid(table)
    out = capsys.readouterr().out
    assert "xnli" in out
    assert "commit abc1234" in out


@pytest.mark.parametrize("width", [30, 60, 200])
def test_a_narrow_terminal_shows_every_digit(
    width: int, table: Grid, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", str(width))
    print_grid(table)
    lines = capsys.readouterr().out.splitlines()
    for head, cell in (("en", "60.00 ± 14.14 (2)"), ("fr", "20.00 ± 14.14 (2)"), ("mean", "36.67 ± 9.43 (2)")):
        (above,) = [number for number, line in enumerate(lines) if head in line.split()]
        below = next(line for line in lines[above:] if line.strip().startswith("ti_g "))
        end = lines[above].index(f" {head} ") + len(head) + 1
        assert below[:end].endswith(f" {cell}"), "under its head, in a line of its method"
    assert (sum(line.strip().startswith("kd_qat ") for line in lines) == 1) == (width == 200)


def test_runs_of_one_language_have_no_such_table(make_cell: Callable[..., Cell]):
    with pytest.raises(ValueError, match="no finished run was scored in several languages"):
        tabulate_languages([make_cell(), make_cell("kd", run=False)])

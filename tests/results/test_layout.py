"""Layouts of papers' tables: faulty ones, the table from stored runs byte for byte, and cells that are incomplete."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lowbit.results import Cell, Grid, print_grid, read_layout, read_papers, tabulate_layout, write_grid
from lowbit.results.layout import Layout, Part

ROOT = Path(__file__).resolve().parents[2]


def test_shipped_layouts_name_papers_that_are_there() -> None:
    """That their cells are of jobs: tests/config/test_sweeps.py."""
    layouts = [layout for file in (ROOT / "sweeps").glob("*.yaml") if (layout := read_layout([file])) is not None]
    assert len(layouts) == 21
    papers = {paper for layout in layouts for paper in layout.papers or ()}
    assert {path.stem for path in (ROOT / "conf" / "paper").glob("*.yaml")} >= papers


def test_no_layout(tmp_path: Path) -> None:
    """Some sweeps have none."""
    (tmp_path / "a.yaml").write_text("hydra: {mode: MULTIRUN}\n")
    (tmp_path / "b.yaml").write_text("")
    assert read_layout([tmp_path / "a.yaml", tmp_path / "b.yaml"]) is None


def test_the_last_file_counts(tmp_path: Path) -> None:
    """A user's layout replaces the shipped one."""
    for name in ("a", "b"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(f"seed: 1\ntable: {{title: {name}, rows: [method.name], columns: [data.name]}}\n")
    layout = read_layout([tmp_path / "a.yaml", tmp_path / "b.yaml"])
    assert layout is not None
    assert (layout.title, layout.rows, layout.papers) == ("b", ["method.name"], None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{rows: [method.name]}", "table: missing keys ['columns']"),
        ("{rows: [method.name], columns: [data.name], colums: 1}", "unknown keys ['colums']; allowed: columns, papers"),
        ("{rows: [{match: {a: 1}}], columns: [data.name]}", "table: rows.1: missing keys ['label']"),
        ("{rows: method.name, columns: [data.name]}", "table: rows: a list of config keys"),
        ("[]", "expected keys columns, papers, rows, title"),
        ("{rows: [method.name, {label: x}], columns: [data.name]}", "rows.1: 'method.name': expected keys label"),
    ],
)
def test_faulty_layout(text: str, said: str, tmp_path: Path) -> None:
    """The message names file, place and key."""
    (tmp_path / "t.yaml").write_text(f"table: {text}\n")
    with pytest.raises(ValueError, match=r"t\.yaml") as caught:
        read_layout([tmp_path / "t.yaml"])
    assert said in str(caught.value)


STORED = Path(__file__).parents[1] / "fixtures" / "runs"
EXPECTED = STORED / "expected"
RECORDS = read_papers([STORED / "conf" / "paper"])


def layout() -> Layout:
    found = read_layout([STORED / "sweeps" / "fixture.yaml"])
    assert found is not None
    return found


def entry(table: Grid, row: str, column: str) -> dict[str, Any]:
    """Return the line of CSV of one cell."""
    head, *lines = table.numbers
    (found,) = [each for line in lines if (each := dict(zip(map(str, head), line, strict=True)))["row"] == row
                and each["column"] == column]  # fmt: skip
    return found


def change(cell: Cell, **values: Any) -> None:
    file = cell.run_dir / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(("fmt", "file"), [("md", "table.md"), ("csv", "table.csv"), ("latex", "table.tex")])
def test_expected_table(fmt: Any, file: str, stored_cells: list[Cell]) -> None:
    """Byte for byte: these files were read by a person."""
    assert write_grid(tabulate_layout(stored_cells, layout(), RECORDS), fmt).encode() == (EXPECTED / file).read_bytes()


def test_expected_page(stored_cells: list[Cell]) -> None:
    """The page of HTML, with the title escaped."""
    page = write_grid(tabulate_layout(stored_cells, layout(), RECORDS), "html")
    assert page.encode() == (EXPECTED / "table.html").read_bytes()
    assert "<h1>Stored runs &amp; &lt;invented&gt; numbers</h1>" in page


def test_expected_terminal(stored_cells: list[Cell]) -> None:
    """What a terminal of 100 columns shows."""
    output = io.StringIO()
    print_grid(tabulate_layout(stored_cells, layout(), RECORDS), Console(file=output, width=100))
    assert output.getvalue().encode() == (EXPECTED / "table.txt").read_bytes()


def test_removed_runs_are_not_run(stored_cells: list[Cell]) -> None:
    """Their cell says so and names the commands of both seeds; its published value stays."""
    for cell in stored_cells[2:4]:
        shutil.rmtree(cell.run_dir)
    table = tabulate_layout(stored_cells, layout(), RECORDS)
    gone = entry(table, "TernaryBERT", "4-8 (%)")
    assert (gone["status"], gone["n"], gone["published"]) == ("not run", 0, 94.5)
    assert gone["command"] == "; ".join(cell.command for cell in stored_cells[2:4])
    lines = write_grid(table, "md").splitlines()
    assert "| TernaryBERT | 94.50 ± 0.71 (2) | not run | 0.5722 ± 0.0000 (2) |" in lines
    assert f"    {stored_cells[2].command}" in lines


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}'])
def test_damaged_runs_are_marked(text: str, stored_cells: list[Cell]) -> None:
    """One of two seeds, and both: the cell says so, a note names the file and the remedy; the others stay."""
    for cell in (stored_cells[0], *stored_cells[2:4]):
        (cell.run_dir / "run.json").write_text(text)
    table = tabulate_layout(stored_cells, layout(), RECORDS)
    assert entry(table, "TernaryBERT", "4-8 (%)")["status"] == "damaged"
    page = write_grid(table, "md")
    line = next(line for line in page.splitlines() if line.startswith("| TernaryBERT"))
    assert "1 of 2, 1 damaged | damaged |" in line
    assert f"Damaged: {stored_cells[0].run_dir / 'run.json'} " in page
    assert "Delete that file and run the same command again" in page
    assert f"    {stored_cells[2].command}" in page.splitlines()


def test_teacher_of_no_run_names_one_command(stored_cells: list[Cell]) -> None:
    """Any student trains the teacher that it shares with the others."""
    for cell in stored_cells:
        shutil.rmtree(cell.run_dir, ignore_errors=True)
    table = tabulate_layout(stored_cells, layout(), RECORDS)
    teacher = entry(table, "teacher", "4-8 (%)")
    assert (teacher["status"], teacher["command"]) == ("not run", stored_cells[2].command)
    assert teacher["published"] == entry(table, "teacher", "2-8 (%)")["published"] == 97


def test_status_is_one_of_each(stored_cells: list[Cell]) -> None:
    """Computed from the numbers, in the last but few columns of the raw ones."""
    lines = csv.DictReader(io.StringIO(write_grid(tabulate_layout(stored_cells, layout(), RECORDS), "csv")))
    found = {(line["row"], line["column"]): line["status"] for line in lines}
    assert found["TernaryBERT", "2-8 (%)"] == "match"
    assert found["TernaryBERT", "4-8 (%)"] == "above"
    assert found["TI-G_full", "2-8 (%)"] == "below"
    assert found["TI-G_full", "2-8 MiB"] == "not published"


def test_rows_and_columns_from_keys(stored_cells: list[Cell]) -> None:
    """Without a score it is the primary metric; jobs that no cell holds are named below the table."""
    table = tabulate_layout(stored_cells, Layout("t", ["method.name"], ["quantizer.name"]), RECORDS)
    assert [name for name, _ in table.heads] == ["", "w2a8", "w4a8"]
    assert [line[0] for line in table.numbers[1:]] == ["ternarybert"] * 2 + ["ti_g"] * 2
    assert entry(table, "ti_g", "w4a8")["metric"] == "test/accuracy"
    assert not any("In no cell" in note for note in table.notes)
    only = tabulate_layout(stored_cells, Layout("t", [Part("A", {"method.name": "ti_g"})], ["quantizer.name"]), [])
    assert "In no cell: method=ternarybert quantizer=w2a8; method=ternarybert quantizer=w4a8." in write_grid(only, "md")


def test_cell_without_a_job(stored_cells: list[Cell]) -> None:
    """It is neither run nor missing: this sweep does not have it."""
    table = tabulate_layout(stored_cells, Layout("t", [Part("A", {"method.name": "xtc"})], ["quantizer.name"]), RECORDS)
    assert {entry(table, "A", column)["status"] for column in ("w2a8", "w4a8")} == {"not in the sweep"}
    assert "| A | - | - |" in write_grid(table, "md")


def test_jobs_that_differ_in_more_than_the_seed_are_not_averaged(stored_cells: list[Cell]) -> None:
    """The message names them and says what to do."""
    with pytest.raises(ValueError, match=r"'A / w2a8'.* method=ternarybert quantizer=w2a8; method=ti_g .*Add what"):
        tabulate_layout(stored_cells, Layout("t", [Part("A")], ["quantizer.name"]), [])


def test_runs_of_other_models_are_not_averaged(stored_cells: list[Cell]) -> None:
    """Also where the labels of the jobs do not tell."""
    change(stored_cells[0], size={"float_bytes": 1, "simulated_bytes": 1, "compression": 1.0, "bits": "8-8"})
    with pytest.raises(ValueError, match="not comparable"):
        tabulate_layout(stored_cells, layout(), [])


def test_score_that_runs_lack(stored_cells: list[Cell]) -> None:
    """The message lists what they have."""
    wrong = replace(layout(), columns=[Part("F1", {"quantizer.name": "w2a8"}, "test/f1")])
    with pytest.raises(ValueError, match=r"no metric 'test/f1'.* Metrics: val/accuracy, test/accuracy"):
        tabulate_layout(stored_cells, wrong, [])


def test_run_directory_counts_once(stored_cells: list[Cell]) -> None:
    """Jobs of one id are one run."""
    twice = tabulate_layout([*stored_cells, *stored_cells], layout(), RECORDS)
    assert write_grid(twice, "md").encode() == (EXPECTED / "table.md").read_bytes()

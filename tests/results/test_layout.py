"""Layouts of tables in the files of sweeps: those that ship, and what is said about faulty ones."""

from pathlib import Path

import pytest

from lowbit.results import read_layout

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

"""Table layouts: those that ship, and what is said about faulty ones."""

from pathlib import Path

import pytest

from lowbit.results import read_layout

ROOT = Path(__file__).resolve().parents[2]
PAPERS = ROOT / "conf" / "paper"


@pytest.mark.parametrize("file", sorted((PAPERS / "tables").iterdir()), ids=lambda path: path.name)
def test_shipped_layout_belongs_to_a_sweep(file: Path) -> None:
    """Its name is a sweep's and its papers are there; that its cells are of jobs: tests/config/test_sweeps.py."""
    layout = read_layout([file.parent], file.stem)
    assert layout is not None
    assert (ROOT / "sweeps" / file.name).is_file()
    assert all((PAPERS / f"{paper}.yaml").is_file() for paper in layout.papers or ())


def test_no_layout(tmp_path: Path) -> None:
    """Most sweeps have none."""
    assert read_layout([tmp_path, tmp_path / "none"], "demo") is None


def test_the_last_folder_counts(tmp_path: Path) -> None:
    """A user's layout replaces the shipped one."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.yaml").write_text(f"title: {name}\nrows: [method.name]\ncolumns: [data.name]\n")
    layout = read_layout([tmp_path / "a", tmp_path / "b"], "t")
    assert layout is not None
    assert (layout.title, layout.rows, layout.papers) == ("b", ["method.name"], None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows: [method.name]\n", "missing keys ['columns']"),
        ("rows: [method.name]\ncolumns: [data.name]\ncolums: 1\n", "unknown keys ['colums']; allowed: columns, papers"),
        ("rows: [{match: {a: 1}}]\ncolumns: [data.name]\n", "rows.1: missing keys ['label']"),
        ("rows: method.name\ncolumns: [data.name]\n", "rows: a list of config keys"),
        ("[]", "expected keys columns, papers, rows, title"),
        ("rows: [method.name, {label: x}]\ncolumns: [data.name]\n", "rows.1: 'method.name': expected keys label"),
    ],
)
def test_faulty_layout(text: str, said: str, tmp_path: Path) -> None:
    """The message names file, place and key."""
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"t\.yaml") as caught:
        read_layout([tmp_path], "t")
    assert said in str(caught.value)

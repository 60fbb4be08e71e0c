"""The table by language: columns, means over fewer languages, formats."""

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest

from lowbit.results import Cell, Grid, print_grid, tabulate_languages, write_grid

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

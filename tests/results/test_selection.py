"""Runs that are found on disk, whatever made them: `lowbit ls runs` and `lowbit table --runs`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowbit.cli import main
from lowbit.files import write_json
from lowbit.results import collect
from lowbit.results.selection import cells_of_runs, choose_runs


@pytest.fixture
def outputs(tmp_path: Path, payload: Callable[..., dict[str, Any]]) -> Path:
    """Two methods with two seeds, another learning rate of one, one run without a result, one that is damaged."""
    runs = {
        "digits/ti_g/aaa000000001": payload("ti_g", 1, 0.9),
        "digits/ti_g/aaa000000002": payload("ti_g", 2, 0.92),
        "digits/kd/bbb000000001": payload("kd", 1, 0.5),
        "digits/kd/bbb000000002": payload("kd", 1, 0.6),
    }
    for place, run in runs.items():
        lr = 1e-3 if place.endswith("bbb000000002") else 1e-4
        config = {**run["config"], "optimizer": {"lr": lr}, "paths": {"outputs": place}, "trainer": {"threads": lr}}
        write_json(tmp_path / "runs" / place / "run.json", {**run, "config": config})
    (tmp_path / "runs" / "digits" / "ti_g" / "ccc000000001").mkdir()
    write_json(tmp_path / "runs" / "digits" / "ti_g" / "ddd000000001" / "run.json", {"schema": 7})
    (tmp_path / "runs" / "digits" / "ti_g" / "aaa000000001" / "stages" / "eee000000001").mkdir(parents=True)  # no run
    return tmp_path


def chosen(outputs: Path, *words: str) -> list[str]:
    return sorted(run.folder.name[:3] + run.folder.name[-1] for run in choose_runs(outputs, words, lambda _: "missing"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ["aaa1", "aaa2", "bbb1", "bbb2", "ccc1", "ddd1"]),
        (("method=ti_g",), ["aaa1", "aaa2", "ccc1", "ddd1"]),
        (("method=ti_g", "seed=2"), ["aaa2"]),
        (("method=ti_g,kd", "seed=1"), ["aaa1", "bbb1", "bbb2"]),
        (("method=ti_g", "method=kd", "state=done"), ["aaa1", "aaa2", "bbb1", "bbb2"]),
        (("optimizer.lr=0.001",), ["bbb2"]),
        (("optimizer.lr=1e-3",), ["bbb2"]),
        (("data=digits", "method.name=kd"), ["bbb1", "bbb2"]),
        (("name=digits/t*", "bits=2-2-8"), ["aaa1", "aaa2"]),
        (("aaa",), ["aaa1", "aaa2"]),
        (("aaa000000001", "digits/kd/*"), ["aaa1", "bbb1", "bbb2"]),
        (("digits/*", "seed=1"), ["aaa1", "bbb1", "bbb2"]),
    ],
)
def test_filters(words: tuple[str, ...], expected: list[str], outputs: Path):
    assert chosen(outputs, *words) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("method=x", "seed=1"), "no run has method=x; method is kd, ti_g. 1 runs are damaged: lowbit ls runs"),
        (("method=kd", "seed=2"), "no run meets all of them"),
        (("methd=kd",), "no finished run has the key 'methd'. Did you mean 'method'"),
        (("zzz=null",), "no finished run has the key 'zzz'"),
    ],
)
def test_filter_of_no_run(words: tuple[str, ...], said: str, outputs: Path):
    with pytest.raises(ValueError, match=said):
        choose_runs(outputs, words, lambda _: "missing")


def test_rows_are_called_by_what_differs(outputs: Path):
    """A label for the setting that tells two runs of one method apart; not for paths, hardware or the seed."""
    rows = collect(cells_of_runs(run for run in choose_runs(outputs, ["state=done"], lambda _: "missing")))
    assert {row.label: row.n for row in rows} == {
        "teacher": 1,
        "ti_g, optimizer.lr=0.0001": 2,
        "kd, optimizer.lr=0.0001": 1,
        "kd, optimizer.lr=0.001": 1,
    }
    alone = collect(cells_of_runs(run for run in choose_runs(outputs, ["aaa"], lambda _: "missing")))
    assert {row.label: row.n for row in alone} == {"teacher": 1, "ti_g": 2}


def test_ls_runs(outputs: Path, capsys):
    """One line for each run, in columns; what cannot be read says so."""
    assert main(["ls", "runs", f"paths.outputs={outputs}", "--filter", "method=ti_g"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["id", "name", "method", "data", "bits", "seed", "score", "state", "when"]
    by_id = {line.split()[0]: line.split()[1:-2] for line in lines}
    assert by_id == {
        "aaa000000001": ["digits/ti_g", "ti_g", "digits", "2-2-8", "1", "test/accuracy", "0.9000", "done"],
        "aaa000000002": ["digits/ti_g", "ti_g", "digits", "2-2-8", "2", "test/accuracy", "0.9200", "done"],
        "ccc000000001": ["digits/ti_g", "ti_g", "digits", "-", "-", "-", "missing"],
        "ddd000000001": ["digits/ti_g", "ti_g", "digits", "-", "-", "-", "damaged"],
    }
    assert main(["ls", "method", "--filter", "seed=1"]) == 2
    assert main(["ls", "runs", "--filter", "seed=7", f"paths.outputs={outputs}"]) == 2


def test_table_of_runs(outputs: Path, tmp_path: Path, capsys):
    """What has not finished is told; what is damaged is in a note."""
    file = tmp_path / "table.md"
    words = ["table", f"paths.outputs={outputs}", "--runs", "digits/*", "--out", str(file)]
    assert main(words) == 0
    assert "not in the table, missing: " in capsys.readouterr().err
    text = file.read_text()
    assert "| ti_g, optimizer.lr=0.0001 | 91.00 ± 1.41 (2) |" in text
    assert "Damaged: " in text
    assert main(["table", f"paths.outputs={outputs}", "--runs", "ccc"]) == 2
    assert main(["table", f"paths.outputs={outputs}"]) == 2

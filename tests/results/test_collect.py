"""Cells become rows: seeds are grouped, teachers come first, unlike runs are never averaged."""

import math
from collections.abc import Callable

import pytest

from lowbit.results import Cell, collect

MakeCell = Callable[..., Cell]
SIZE = {"float_bytes": 2_000_000, "simulated_bytes": 500_000, "compression": 4.0, "bits": "8-8-8"}


def test_seeds_become_one_row(make_cell: MakeCell) -> None:
    """Mean and std by hand: deviations -0.02, 0, 0.02, so std = sqrt(0.0008 / 2) = 0.02."""
    cells = [make_cell(seed=0, accuracy=0.90, seconds=30.0), make_cell(seed=1, accuracy=0.92, seconds=50.0)]
    cells.append(make_cell(seed=2, accuracy=0.94, seconds=70.0))
    _, row = collect(cells)
    assert (row.label, row.metric, row.values) == ("ti_g", "test/accuracy", [0.90, 0.92, 0.94])
    assert row.mean == pytest.approx(0.92)
    assert row.std == pytest.approx(0.02)
    assert (row.bits, row.compression) == ("2-2-8", 10.0)
    assert row.simulated_mb == pytest.approx(0.123456)
    assert (row.steps, row.seconds) == (900, 50.0)
    assert (row.n, row.expected, row.missing, row.status) == (3, 3, [], "done")
    assert (row.teacher_id, row.commits, row.devices) == ("t1", ("abc1234",), ("cpu x86_64",))


def test_teacher_comes_once_before_its_first_student(make_cell: MakeCell) -> None:
    """The teacher is one full-precision run, whatever the number of students."""
    other = {
        "id": "t2",
        "metrics": {"test/accuracy": 0.5},
        "size": {**SIZE, "bits": "32-32-32"},
        "steps": 7,
        "seconds": 2.0,
    }
    cells = [make_cell("plain", teacher=None), make_cell("ti_g"), make_cell("ti_o"), make_cell("bit", teacher=other)]
    rows = collect(cells)
    assert [row.label for row in rows] == ["plain", "teacher", "ti_g", "ti_o", "teacher", "bit"]
    assert [row.teacher_id for row in rows] == [None, "t1", "t1", "t1", "t2", "t2"]
    teacher = rows[4]
    assert (teacher.metric, teacher.values, teacher.bits) == ("test/accuracy", [0.5], "32-32-32")
    assert (teacher.simulated_mb, teacher.compression) == (2.0, 1.0)
    assert (teacher.steps, teacher.seconds, teacher.status) == (7, 2.0, "done")


def test_teacher_without_the_metric_has_no_value(make_cell: MakeCell) -> None:
    """Stored soft labels come from a teacher that nobody tested."""
    stored = {"id": "t", "metrics": {}, "size": SIZE, "steps": 0, "seconds": 0.0}
    teacher, _ = collect([make_cell(teacher=stored)])
    assert (teacher.values, teacher.mean, teacher.status) == ([], None, "done")


def test_order_and_labels(make_cell: MakeCell) -> None:
    """Rows keep the order of first appearance; method and experiment are bare, other keys are named."""
    cells = [
        make_cell(labels={"quantizer": "w2a8", "method": "ti_g", "seed": "1"}, seed=1, teacher=None),
        make_cell(labels={"quantizer": "w1a8", "seed": "1"}, teacher=None),
        make_cell(labels={"method": "ti_g", "quantizer": "w2a8", "seed": "0"}, seed=0, teacher=None),
    ]
    rows = collect(cells)
    assert [(row.label, row.n) for row in rows] == [("ti_g, quantizer=w2a8", 2), ("quantizer=w1a8", 1)]
    assert collect([make_cell(labels={"seed": "1", "experiment": "digits/xtc"})])[-1].label == "digits/xtc"


def test_without_labels_the_row_is_the_method(make_cell: MakeCell) -> None:
    """Cells that only sweep the seed share the row of the method, also those that have not run."""
    cells = [make_cell("ti_o", seed=seed, labels={"seed": str(seed)}, run=seed != 0) for seed in range(3)]
    _, row = collect(cells)
    assert (row.label, row.n, row.expected) == ("ti_o", 2, 3)
    apart = collect([make_cell("a", labels={}), make_cell("b", labels={})])
    assert [row.label for row in apart] == ["teacher", "a", "b"]


def test_missing_cells_keep_their_commands(make_cell: MakeCell) -> None:
    """A row says how much of it has run and how to run the rest."""
    cells = [make_cell(seed=0), make_cell(seed=1, run=False), make_cell(seed=2, status="interrupted")]
    cells.append(make_cell("bit", run=False))
    _, partial, empty = collect(cells)
    assert (partial.n, partial.expected, partial.status) == (1, 3, "1 of 3 seeds")
    assert partial.missing == ["lowbit train method=ti_g seed=1", "lowbit train method=ti_g seed=2"]
    assert (empty.label, empty.status, empty.missing) == ("bit", "not run", ["lowbit train method=bit seed=0"])
    assert (empty.metric, list(empty.values), empty.mean, empty.std, empty.bits) == (None, [], None, None, None)
    assert (empty.simulated_mb, empty.compression, empty.steps, empty.seconds) == (None, None, None, None)


def test_a_directory_listed_twice_counts_once(make_cell: MakeCell) -> None:
    """Otherwise a doubled sweep entry would shrink the standard deviation."""
    cell = make_cell()
    _, row = collect([cell, cell])
    assert (row.n, row.expected) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"primary_metric": "test/f1", "metrics": {"test/f1": 0.5}},
            "primary_metric='test/accuracy'.*primary_metric='test/f1'",
        ),
        ({"size": SIZE}, "size.bits='2-2-8'.*size.bits='8-8-8'"),
        ({"config": {"data": {"name": "digits"}}}, "model.name='vit'.*model.name=None"),
    ],
)
def test_unlike_runs_are_never_averaged(make_cell: MakeCell, changes: dict[str, object], message: str) -> None:
    """The error names both files and what differs."""
    first, second = make_cell(seed=0), make_cell(seed=1, **changes)
    with pytest.raises(ValueError, match=message) as error:
        collect([first, second])
    assert str(first.run_dir / "run.json") in str(error.value)
    assert str(second.run_dir / "run.json") in str(error.value)


def test_one_seed_has_no_std_and_divergence_is_not_an_error(make_cell: MakeCell) -> None:
    """A diverged run is a result."""
    _, one = collect([make_cell()])
    assert one.std is None
    _, diverged = collect([make_cell(seed=0), make_cell(seed=1, accuracy=math.inf)])
    assert diverged.mean == math.inf
    assert diverged.std is not None
    assert math.isnan(diverged.std)

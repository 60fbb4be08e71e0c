"""Effect sizes against scipy, and how they are shown."""

import csv
import io
from dataclasses import replace

import pytest
from scipy import stats

from lowbit.results import write_grid
from lowbit.results.compare import Effect, confidence_interval, effects_grid, ranked

BASE = (0.90, 0.92, 0.91, 0.95)


def effect(change: str, scores: tuple[float, ...], expected: int = 4) -> Effect:
    return Effect("losses", change, expected, scores, tuple(a - b for a, b in zip(scores, BASE, strict=False)))


@pytest.fixture
def effects() -> list[Effect]:
    base = Effect("base", "the recipe itself", 4, BASE, ())
    noisy = effect("without hidden", (0.95, 0.90, 0.90, 0.96))
    return [
        base,
        effect("only maps", ()),
        noisy,
        effect("better", (0.97, 0.98, 0.98, 0.999)),
        effect("worse", (0.5, 0.55, 0.52, 0.6)),
    ]


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("other", [(0.95, 0.90, 0.90, 0.96), (0.5, 0.55, 0.52, 0.6)])
def test_interval_is_that_of_the_paired_t_test(other, count):
    found = effect("x", other[:count])
    expected = stats.ttest_rel(other[:count], BASE[:count]).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high), rel=1e-9)
    low, high = found.interval
    includes_zero = stats.ttest_rel(other[:count], BASE[:count]).pvalue >= 0.05
    assert (found.reading == "interval includes 0") == includes_zero == (low <= 0 <= high)


def test_one_seed_has_no_interval():
    assert confidence_interval([0.3]) is None
    assert effect("x", (0.8,), expected=1).reading == "one seed: no interval"
    grid = effects_grid([Effect("base", "b", 1, (0.9,), ()), effect("x", (0.8,), expected=1)], "test/accuracy")
    assert grid.lines[1] == ["losses", "x", "80.00", "-10.00", "-", "one seed: no interval"]
    assert any(note.startswith("No interval") for note in grid.notes)


def test_order_and_readings(effects):
    """The recipe, then what costs most; what has not run is last."""
    assert [one.change for one in ranked(effects)] == [
        "the recipe itself",
        "worse",
        "without hidden",
        "better",
        "only maps",
    ]
    readings = [line[-1] for line in effects_grid(effects, "test/accuracy").lines]
    assert readings == ["-", "worse", "interval includes 0", "better", "not run"]


def test_grid_is_in_per_cent_and_counts_unfinished_seeds(effects):
    effects[2] = replace(effects[2], expected=5)
    grid = effects_grid(effects, "test/accuracy")
    assert [name for name, _ in grid.heads][2] == "test accuracy"
    assert grid.lines[0][2:] == ["92.00 ± 2.16 (4)", "-", "-", "-"]
    assert grid.lines[2][2].endswith(", 4 of 5")
    assert grid.lines[2][3] == "+0.75"
    assert any(note.startswith("Of 3 such 95 % intervals about 0.2 miss 0") for note in grid.notes)


def test_csv_has_raw_numbers(effects):
    rows = list(csv.DictReader(io.StringIO(write_grid(effects_grid(effects, "test/accuracy"), "csv"))))
    assert [row["change"] for row in rows][:2] == ["the recipe itself", "worse"]
    worse = rows[1]
    assert float(worse["difference"]) == pytest.approx(-0.3775)
    assert (float(worse["low"]), float(worse["high"])) == pytest.approx(effects[4].interval)
    assert rows[-1]["difference"] == rows[-1]["low"] == ""

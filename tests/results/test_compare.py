"""Which run a word means, what differs between two, and the effects of an ablation."""

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from lowbit.results import write_grid
from lowbit.results.compare import ABSENT, Difference, Effect, confidence_interval, differences, effects_grid, ranked
from lowbit.results.selection import find_run

STORED = Path(__file__).parents[1] / "fixtures" / "runs"
IDS = {"digits/ternarybert/3fa10000beef": "ternarybert-w2a8-1", "digits/ti_g/3fa2111122ff": "ti_g-w2a8-1"}


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    for place, name in IDS.items():
        folder = tmp_path / "runs" / place
        folder.mkdir(parents=True)
        shutil.copy(STORED / f"{name}.json", folder / "run.json")
    (tmp_path / "runs" / "digits" / "ti_g" / "9c0712345678").mkdir()
    return tmp_path


@pytest.mark.parametrize("word", ["3fa2", "3fa2111122ff", "digits/ti_g/3fa2", "{}", "{}/run.json"])
def test_word_for_a_run(word: str, outputs: Path) -> None:
    """A unique beginning of its id, of its path, its folder or its file."""
    folder = outputs / "runs" / "digits" / "ti_g" / "3fa2111122ff"
    assert find_run(outputs, word.format(folder))[0] == folder


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "3fa",
            "3fa: 2 runs begin so: digits/ternarybert/3fa10000beef, digits/ti_g/3fa2111122ff. Give more of the id.",
        ),
        ("abc", "Finished runs: digits/ternarybert/3fa10000beef, digits/ti_g/3fa2111122ff."),
        ("9c07", "9c07: digits/ti_g/9c0712345678 has not finished"),
        ("{}", "no run.json in this folder"),
    ],
)
def test_word_for_no_run(word: str, said: str, outputs: Path) -> None:
    """The message says what there is instead."""
    with pytest.raises(ValueError, match="run") as caught:
        find_run(outputs, word.format(outputs))
    assert said in str(caught.value)


def test_no_run_at_all(tmp_path: Path) -> None:
    """Also where there is no such folder."""
    with pytest.raises(ValueError, match="No run has finished there"):
        find_run(tmp_path / "none", "abc")


def test_differences_by_section() -> None:
    """Every key that differs, nested ones by their dotted name, and only those."""
    size = {"float_bytes": 8, "bits": "2-8"}
    base = {"metrics": {"val/f1": 0.5, "nan": float("nan")}, "size": size, "teacher": None, "steps": 10, "seconds": 4.0}
    left = {**base, "config": {"seed": 1, "method": {"name": "a"}, "rules": [{"match": ["query"]}], "flag": True}}
    right = {
        **base,
        "metrics": {"val/f1": 0.75, "nan": float("nan")},
        "config": {
            "seed": 1,
            "method": {"name": "b"},
            "rules": [{"match": ["query", "key"]}],
            "flag": False,
            "new": 0,
            "unset": None,
            "loss": {"kind": "task", "start": None},
        },
        "teacher": {"id": "t", "metrics": {"val/f1": 0.9}},
    }
    found = differences(left, right)
    assert found["config"] == [
        Difference("method.name", "a", "b"),
        Difference("rules.0.match", ["query"], ["query", "key"]),
        Difference("flag", True, False),
        Difference("new", ABSENT, 0),
        Difference("loss", ABSENT, {"kind": "task", "start": None}),
    ]
    assert found["metrics"] == [Difference("val/f1", 0.5, 0.75)]
    assert found["teacher"] == [Difference("id", ABSENT, "t"), Difference("metrics", ABSENT, {"val/f1": 0.9})]
    assert [name for name, each in found.items() if not each] == ["size", "cost", "versions", "circumstances"]
    assert found["metrics"][0].change == 0.25
    assert {each.change for each in found["config"]} == {None}


def test_differences_of_stored_runs(outputs: Path) -> None:
    """Two methods at one bit width."""
    left, right = (find_run(outputs, place)[1] for place in IDS)
    found = {name: [each.key for each in section] for name, section in differences(left, right).items()}
    assert found["config"] == ["method.name", "method.losses.maps.weight"]
    assert found["metrics"] == ["val/accuracy", "test/accuracy"]
    assert found["size"] == found["cost"] == found["teacher"] == []


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

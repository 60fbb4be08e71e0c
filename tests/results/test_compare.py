"""Which run a word means, and what differs between two."""

import shutil
from pathlib import Path

import pytest

from lowbit.results.compare import ABSENT, Difference, differences
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

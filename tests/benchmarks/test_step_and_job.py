"""`lowbit bench step|job` runs, says what it measured, and refuses what it cannot read."""

import re
from pathlib import Path

import pytest

from lowbit.cli import main

TINY = "hidden=16,layers=2,heads=2,ffn=32,vocab=50,batch=4,length=8"


def test_report_of_a_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--shape", TINY, "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    assert TINY in out
    assert "float32" in out
    assert len(re.findall(r"min +[\d.]+ ms   median +[\d.]+ ms", out)) == 3
    assert re.search(r"c / \(a \+ b\): [\d.]+ of the minima, [\d.]+ median", out)


def test_report_of_an_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "experiment=digits/ti_g", "--rounds", "1", "model.num_layers=1"]) == 0
    assert "(c) distillation step, ti_g" in capsys.readouterr().out


@pytest.mark.parametrize("shape", ["hidden=16", "hidden=x,layers=2,heads=2,ffn=32,vocab=50,batch=4,length=8", "a"])
def test_bad_shapes_are_refused_in_words(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--shape", shape]) == 2
    assert "give hidden, layers, heads" in capsys.readouterr().err


def test_shape_and_experiment_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--shape", TINY, "experiment=digits/ti_g"]) == 2
    assert "not both" in capsys.readouterr().err


def test_report_of_a_job_beside_a_bare_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "job", "--shape", TINY, "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"clock +a step of the run +[\d.]+ ms, of the bare loop +[\d.]+ ms; ratio [\d.]+, median", out)
    assert "CPU time" in out


def test_without_a_checkout_the_verb_says_where_the_benchmarks_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowbit.cli.bench._CHECKOUT", tmp_path)
    assert main(["bench", "step"]) == 2
    assert "in a checkout of lowbit, not in the installed package" in capsys.readouterr().err


def test_an_unknown_benchmark_or_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["steps"], ["step", "--colour"]):
        with pytest.raises(SystemExit) as stopped:
            main(["bench", *words])
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1

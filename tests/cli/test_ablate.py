"""`lowbit ablate`: what it runs, what it prints, what it refuses."""

import csv
import io

import pytest

from lowbit.cli import main


@pytest.fixture
def words(tiny: list[str], outputs) -> list[str]:
    steps = ["method.stages.intervene.steps=2", "budget.steps=4"]
    return ["method=ti_o", "over=intervention", *tiny, *steps, f"paths.outputs={outputs}", "--launcher", "basic"]


def test_effect_of_the_intervention(words, runs_in, outputs, capsys):
    """Two seeds with and without; the second start runs nothing, and the table alone goes to the output."""
    assert main(["ablate", *words, "seed=1,2"]) == 0
    out = capsys.readouterr().out
    assert "intervention" in out
    assert "95 % interval" in out
    runs = runs_in(outputs)
    assert sorted(run["seeds"]["run"] for run in runs.values()) == [1, 1, 2, 2]
    phases = [run["config"]["method"]["stages"]["intervene"]["intervention"] for run in runs.values()]
    assert sum(phase is None for phase in phases) == 2

    assert main(["ablate", *words, "seed=1,2", "--format", "csv"]) == 0
    captured = capsys.readouterr()
    assert "4 jobs: 4 done" in captured.err
    base, off = csv.DictReader(io.StringIO(captured.out))
    assert (base["slot"], off["change"], off["n"]) == ("base", "off", "2")
    by_seed = {(run["seeds"]["run"], phase is None): run for run, phase in zip(runs.values(), phases, strict=True)}
    score = {key: run["metrics"]["test/accuracy"] for key, run in by_seed.items()}
    difference = (score[1, True] - score[1, False] + score[2, True] - score[2, False]) / 2
    assert float(off["difference"]) == pytest.approx(difference)

    assert main(["ablate", *words, "seed=1", "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("| slot | change | test accuracy |")
    assert "one seed: no interval" in out


def test_dry_run_tells_what_is_left_out(words, runs_in, outputs, capsys):
    before = runs_in(outputs)
    more = ["--with", "model.dropout=3", "--with", "optimizer.lr=1e-4"]
    assert main(["ablate", *words, "seed=7", "--dry-run", *more]) == 0
    out = capsys.readouterr().out
    assert "left out: --with: model.dropout=3: model.dropout=3.0: must be at least 0" in out
    assert "missing" in out
    assert "--with: optimizer.lr=1e-4, seed=7" in out
    assert runs_in(outputs) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["method=ti_o"], "over=...: name what is varied: losses, intervention"),
        (["method=ti_o", "over=loses"], "Did you mean 'losses'?"),
        (["method=ti_o", "over=losses", "optimizer.lr=1e-3,1e-4"], "only the seed may have several values"),
        (["method=ti_o", "over=losses", "seed=1,1"], "every seed once"),
        (["method=qat_task", "over=intervention"], "nothing of it can be left out"),
        (["method=nonsense", "over=losses"], "no such choice"),
    ],
    ids=" ".join,
)
def test_refused(words, told, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["ablate", *words]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

"""`lowbit table` of a sweep with a layout, and `lowbit compare`, on stored runs; nothing is trained here."""

import shlex
import shutil
from pathlib import Path

import pytest

from lowbit.cli import main
from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.batch import load_jobs
from lowbit.config.validate import load

STORED = Path(__file__).parents[1] / "fixtures" / "runs"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep, its layout and paper, and the stored runs where the sweep would have left them."""
    folder = tmp_path_factory.mktemp("workplace")
    for part in ("conf", "sweeps"):
        shutil.copytree(STORED / part, folder / part)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for cfg, config in load_jobs(C.expand(C.sweep_overrides("fixture", []))):
            file = STORED / f"{config.method.name}-{config.quantizer.name}-{config.seed}.json"
            if file.is_file():
                run_dir = folder / identity.run_folder(cfg, config)
                run_dir.mkdir(parents=True)
                shutil.copy(file, run_dir / "run.json")
    return folder


@pytest.fixture
def in_workplace(workplace, monkeypatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


def test_table_of_a_layout_and_its_missing_command(in_workplace, capsys):
    """The committed table, byte for byte; the command of its empty cell passes the checks and leads to that cell."""
    assert main(["table", "fixture", "--out", "new/table.html"]) == 0
    assert capsys.readouterr().out == "wrote new/table.html\n"
    page = (in_workplace / "new" / "table.html").read_text(encoding="utf-8")
    assert page == (STORED / "expected" / "table.html").read_text(encoding="utf-8")
    command = page.split("<pre>")[1].split("</pre>")[0]
    cfg, config = load(shlex.split(command)[2:])
    assert (config.method.name, config.quantizer.name, config.seed) == ("ti_g", "w2a8", 2)
    assert not identity.run_folder(cfg, config).exists()
    assert identity.run_folder(cfg, config).parent.is_dir()


def test_rows_of_the_same_sweep(in_workplace, capsys):
    """A row per method on request; values of the user's own paper are beside the shipped ones."""
    assert main(["table", "fixture", "--rows", "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("| method | test accuracy | published | difference | vs paper |")
    assert "| ternarybert, quantizer=w4a8 | 96.50 ± 0.71 (2) | 94.5 | +2.00 | above |" in out


def test_suffix_without_a_format(in_workplace, capsys):
    assert main(["table", "fixture", "--out", "table.pdf"]) == 2
    assert "the suffix names no format" in capsys.readouterr().err
    assert not (in_workplace / "table.pdf").exists()


def test_compare(in_workplace, capsys):
    """Ids or folders; what is equal is not shown."""
    runs = sorted(path.parent for path in (in_workplace / "outputs").rglob("run.json"))
    left = next(path for path in runs if path.parent.name == "ternarybert")
    right = next(path for path in runs if path.parent.name == "ti_g")
    assert main(["compare", left.name[:8], str(right)]) == 0
    out = capsys.readouterr().out
    assert f"left   outputs/runs/digits/ternarybert/{left.name}" in out
    lines = [line.split() for line in out.splitlines()]
    assert lines.index(["method"]) < lines.index(["name", "ternarybert", "ti_g"])
    assert ["losses.maps.weight", "0", "1"] in lines
    change = next(line for line in lines if line[:1] == ["test/accuracy"])
    assert float(change[3]) == pytest.approx(float(change[2]) - float(change[1]), abs=1e-6)
    assert "data" not in out


def test_compare_of_unknown_runs(tmp_path, capsys):
    """Both words are judged at once."""
    assert main(["compare", "abc", "def", f"paths.outputs={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: abc: no such run below {tmp_path / 'runs'}")
    assert "\ndef: no such run" in err
    assert "Traceback" not in err


def test_published_values_are_no_part_of_a_run(capsys):
    assert main(["check", "paper=ternarybert"]) == 2
    assert "paper=ternarybert: published values are no part of a run" in capsys.readouterr().err

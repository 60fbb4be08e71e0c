"""Sweeps of real runs, in processes of their own: minutes, since each imports torch."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowbit.execution.state import is_running
from lowbit.results.run_file import HOLDER_FILE

WORDS = [
    "debug=fast",
    "logger=none",
    "data.train_size=60",
    "data.eval_size=40",
    "data.batch_size=20",
    "model.num_layers=1",
    "teacher.budget.steps=20",
    "budget.steps=70",
    "trainer.checkpoint_every=10",
    "trainer.threads=1",
]


def command(verb: str, outputs: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "lowbit.cli", *verb.split(), *WORDS, f"paths.outputs={outputs}", *words]


def run(verb: str, outputs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(verb, outputs, *words), capture_output=True, text=True)


def results(outputs: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text())["metrics"] for path in outputs.glob("runs/**/run.json")}


def stamps(outputs: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in outputs.glob("runs/**/run.json")}


def table(verb: str, outputs: Path) -> list[dict[str, str]]:
    """Every column but the seconds, and the commit, which may come in between."""
    done = run(verb.replace("sweep", "table"), outputs, "--format", "csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    return [{key: value for key, value in row.items() if key not in ("seconds", "commit")} for row in rows]


@pytest.mark.slow
def test_killed_twice_and_finished_by_the_third_start(tmp_path):
    """Every run exists once, none that had finished is computed again, and the table is that of a calm sweep."""
    sweep, jobs = "sweep ablation_ti_digits method=ternarybert,ti_o,ti_g", 6
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(sweep, whole, "--launcher", "basic").returncode == 0
    moments = random.Random(0)
    finished: dict[str, int] = {}
    for _ in range(2):
        process = subprocess.Popen(command(sweep, killed, "--jobs", "2"), stdout=subprocess.DEVNULL)
        count = len(finished)
        while len(stamps(killed)) == count:  # a moment at which there is something to lose
            time.sleep(0.1)
        time.sleep(moments.uniform(0, 5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert {id_: stamp for id_, stamp in stamps(killed).items() if id_ in finished} == finished
        finished = stamps(killed)
    while any(is_running(holder.parent) for holder in killed.glob(f"runs/**/{HOLDER_FILE}")):
        time.sleep(0.1)  # the killed jobs have not let go of their locks yet
    last = run(sweep, killed, "--jobs", "2")
    assert last.returncode == 0, last.stderr
    assert {id_: stamp for id_, stamp in stamps(killed).items() if id_ in finished} == finished
    assert results(killed) == results(whole)
    assert len(results(killed)) == jobs
    assert len(list((killed / "teachers").glob("*.partial"))) == 0
    assert table(sweep, killed) == table(sweep, whole)


@pytest.mark.slow
def test_launchers_agree(tmp_path):
    """This process, two processes at once, and submitit's local executor; the runs and the table are the same."""
    pytest.importorskip("submitit")
    sweep = "sweep ablation_ti_digits method=ternarybert,ti_g seed=1"
    launchers = {
        "basic": ("--launcher", "basic"),
        "processes": ("--jobs", "2"),
        "submitit": ("--launcher", "submitit", "--cluster", "local"),
    }
    for name, words in launchers.items():
        done = run(sweep, tmp_path / name, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(results(tmp_path / "basic")) == 2
    assert results(tmp_path / "basic") == results(tmp_path / "processes") == results(tmp_path / "submitit")
    tables = {name: table(sweep, tmp_path / name) for name in launchers}
    assert tables["basic"] == tables["processes"] == tables["submitit"]


@pytest.mark.slow
def test_interrupted_sweep_resumes_from_a_checkpoint(tmp_path):
    """Ctrl-C reaches the job once, which ends by itself; its log says how far it came."""
    sweep = "train -m method=ternarybert seed=1 budget.steps=4000"
    process = subprocess.Popen(command(sweep, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list(tmp_path.glob("runs/**/last.ckpt")):
        time.sleep(0.2)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode == 130, out
    (log,) = tmp_path.glob("runs/**/job.log")
    assert "interrupted" in log.read_text()
    shown = run(sweep, tmp_path, "--dry-run").stdout
    assert shown.startswith("missing")
    assert "resumes after step" in shown


@pytest.mark.slow
def test_search_of_real_runs(tmp_path):
    pytest.importorskip("optuna")
    for trials in (1, 2):
        done = run("search search_digits", tmp_path, "--trials", str(trials), "--launcher", "basic")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"best of {trials} trials" in done.stdout
    assert len(results(tmp_path)) == 2
    best = done.stdout.splitlines()[-1].split()
    assert best[:2] == ["lowbit", "train"]

"""SIGKILL at random moments and at file operations: the same command ends with the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY_TI

from lowbit.files import read_json
from lowbit.results.run_folder import read_attempt

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

SEED = 20
KILLS_PER_LIFE = 6
Begin = Callable[[Path], Any]
"""Starts the command whose results lie in a folder; returns its process."""

# Of one attempt, not of the result: who ran it and how it ended, what it printed, locks.
NOT_COMPARED = (".lock", "holder.json", "attempt.json", "job.log")
TIMES = ("seconds", "started", "finished")


def without_times(content: Any) -> Any:
    """Return the content of a JSON file without its dates and durations."""
    if isinstance(content, list):
        return [without_times(value) for value in content]
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if key not in TIMES}
    return content


def contents(life: Path) -> dict[str, Any]:
    """Return every file of a life by its path: bytes, or what a JSON file says but for times and the life's own path."""
    found: dict[str, Any] = {}
    for path in sorted(life.rglob("*")):
        if path.is_file() and not path.name.endswith(NOT_COMPARED):
            if path.suffix == ".json":
                text = json.dumps(without_times(read_json(path))).replace(str(life), "LIFE")
                found[str(path.relative_to(life))] = text
            else:
                found[str(path.relative_to(life))] = path.read_bytes()
    return found


def assert_same(life: Path, straight: Path, story: str) -> None:
    """The same files with the same content, and nothing that a killed process has left."""
    mine, theirs = contents(life), contents(straight)
    assert not [name for name in mine if any(word in name for word in (".tmp", ".partial", ".damaged"))], story
    assert sorted(mine) == sorted(theirs), story
    assert not [name for name in theirs if mine[name] != theirs[name]], story


def in_log(arguments: Sequence[str], log: Path) -> None:
    """Run a command line in this process, with what it prints at the end of a log."""
    from lowbit.cli import main

    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(arguments))


def log_of(life: Path) -> Path:
    return life.with_name(f"{life.name}.log")


@pytest.fixture
def command(context: Any) -> Callable[..., Begin]:
    """Return a function: from the command line of a life to what starts it in a process of its own."""

    def command(arguments: Callable[[Path], Sequence[str]], target: Callable[..., None] = in_log) -> Begin:
        def begin(life: Path) -> Any:
            process = context.Process(target=target, args=(arguments(life), log_of(life)))
            process.start()
            return process

        return begin

    return command


def undisturbed(begin: Begin, life: Path) -> float:
    """Run a command to its end; return the seconds it took."""
    start = time.monotonic()
    finish(begin, life)
    return time.monotonic() - start


def finish(begin: Begin, life: Path, story: str = "") -> None:
    process = begin(life)
    process.join(600)
    assert process.exitcode == 0, f"{story}\n{log_of(life).read_text()}"


def live(begin: Begin, life: Path, moments: Iterable[Callable[[Any], None]], phase_of: Callable[[Path], str]) -> list[str]:
    """Start a command, kill it at the first moment, and so on; then let it finish. Return the phase of each kill."""
    hit: list[str] = []
    for wait in moments:
        process = begin(life)
        wait(process)
        process.kill()
        process.join(60)
        story = f"seed {SEED}, killed in {hit}"
        if process.exitcode == 0:  # it was faster
            return hit
        assert process.exitcode == -signal.SIGKILL, f"{story}\n{log_of(life).read_text()}"
        hit.append(phase_of(life))
    finish(begin, life, f"seed {SEED}, killed in {hit}")
    return hit


def at_random(draw: random.Random, seconds: float, count: int) -> list[Callable[[Any], None]]:
    """Return moments, drawn uniformly from the duration of an undisturbed process."""
    return [partial(lambda after, process: process.join(after), draw.uniform(0, seconds)) for _ in range(count)]


def in_phase(phase: str, life: Path, phase_of: Callable[[Path], str]) -> Callable[[Any], None]:
    """Return the moment at which a life is first seen in a phase."""

    def wait(process: Any) -> None:
        while process.is_alive() and phase_of(life) != phase:
            time.sleep(0.001)

    return wait


def many_lives(
    begin: Begin,
    phases: Sequence[str],
    phase_of: Callable[[Path], str],
    kills: int,
    folder: Path,
    prepare: Callable[[Path], None] = lambda life: life.mkdir(),
) -> Counter[str]:
    """Kill a command so many times at random moments, and in each phase at least once; compare every life."""
    straight, again = folder / "straight", folder / "again"
    for life in (straight, again):  # the first process takes longer: the fork server starts with it
        prepare(life)
        seconds = undisturbed(begin, life)
    assert_same(again, straight, "not killed")
    draw, hits = random.Random(SEED), Counter[str]()
    while hits.total() < kills or not hits.keys() >= set(phases):
        life = folder / f"life{len(list(folder.iterdir()))}"
        prepare(life)
        if hits.total() < kills:
            moments = at_random(draw, seconds, min(KILLS_PER_LIFE, kills - hits.total()))
        else:
            moments = [in_phase(phase, life, phase_of) for phase in phases if phase not in hits]
        phases_hit = live(begin, life, moments, phase_of)
        assert_same(life, straight, f"seed {SEED}, {life.name}, killed in {phases_hit}")
        hits.update(phases_hit)
    print(f"killed {hits.total()} times: {dict(hits)}")
    return hits


PHASES = ("teacher", "evaluation of the teacher", "intervene", "plain", "evaluation")


def train(life: Path) -> list[str]:
    return ["train", *TINY_TI, "trainer.threads=1", f"paths.outputs={life}"]


def phase_of_run(life: Path) -> str:
    """Say from its files how far a run is."""
    has = {path.relative_to(life).parts[-2:] for path in life.rglob("*.json")}
    if list(life.glob("runs/*/*/*/run.json")):
        return "end"
    if ("plain", "stage.json") in has:
        return "evaluation"
    if ("intervene", "stage.json") in has:
        return "plain"
    if [path for path in life.glob("teachers/*/teacher.json") if not path.parent.name.endswith(".partial")]:
        return "intervene"
    if list(life.glob("teachers/*.partial/stage.json")):
        return "evaluation of the teacher"
    return "teacher" if list(life.glob("teachers/*.lock")) else "start"


def test_a_run_killed_at_random_moments(command: Callable[..., Begin], tmp_path: Path) -> None:
    hits = many_lives(command(train), PHASES, phase_of_run, 30, tmp_path)
    assert hits.total() >= 30
    assert hits.keys() >= set(PHASES)

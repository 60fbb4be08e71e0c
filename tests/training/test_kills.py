"""SIGKILL at random moments and at file operations: the same command then ends with the same bytes."""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY_TI

from lowbit.files import read_json
from lowbit.results.run_file import read_attempt

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

SEED = 20
KILLS_PER_LIFE = 6
Begin = Callable[[Path], Any]
"""Starts the command whose results lie in a folder, its life; returns its process."""
PhaseOf = Callable[[Path], str]

# Of an attempt, not of the result: who ran it and how that ended, what it printed, locks.
NOT_COMPARED = (".lock", "holder.json", "attempt.json", "job.log")
VARYING = ("seconds", "started", "finished", "commit")  # the commit may come in between


def without_varying(content: Any) -> Any:
    """Return the content of a JSON file without dates, durations and the commit."""
    if isinstance(content, list):
        return [without_varying(value) for value in content]
    if isinstance(content, dict):
        return {key: without_varying(value) for key, value in content.items() if key not in VARYING}
    return content


def contents(life: Path) -> dict[str, Any]:
    """Return every file of a life by its path: bytes, or what JSON says but for `VARYING` and the life itself."""
    found: dict[str, Any] = {}
    for path in life.rglob("*"):
        if path.is_file() and not path.name.endswith(NOT_COMPARED):
            content: Any = path.read_bytes()
            if path.suffix == ".json":
                content = json.dumps(without_varying(read_json(path))).replace(str(life), "LIFE")
            found[str(path.relative_to(life))] = content
    return found


def assert_same(life: Path, straight: Path, story: str) -> None:
    """The same files with the same content, and nothing that a killed process has left."""
    mine, theirs = contents(life), contents(straight)
    assert not [path for path in life.rglob("*") if re.search(r"\.(tmp|partial|damaged)", path.name)], story
    assert sorted(mine) == sorted(theirs), story
    assert not [name for name in theirs if mine[name] != theirs[name]], story


def log_of(life: Path) -> Path:
    return life.with_name(f"{life.name}.log")


def in_log(life: Path, arguments: Sequence[str]) -> None:
    """Run a command line in this process, with what it prints at the end of the log of its life."""
    from lowbit.cli import main

    with log_of(life).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(arguments))


@pytest.fixture
def command(context: Any) -> Callable[..., Begin]:
    """Return a function: from the command line of a life to what starts it in a process of its own."""

    def command(arguments: Callable[[Path], Sequence[str]], target: Callable[..., None] = in_log) -> Begin:
        def begin(life: Path) -> Any:
            process = context.Process(target=target, args=(life, arguments(life)))
            process.start()
            return process

        return begin

    return command


def finish(begin: Begin, life: Path, story: str = "") -> float:
    """Run a command to its end; return the seconds that it took."""
    start, process = time.monotonic(), begin(life)
    process.join()
    assert process.exitcode == 0, f"{story}\n{log_of(life).read_text()}"
    return time.monotonic() - start


def jobs_in(life: Path) -> list[int]:
    """Return the processes that a sweep has started: those with its folder in their command lines."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, status = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"paths.outputs={life}\0".encode() in words and status.rpartition(")")[2].split()[0] not in "ZX":
            found.append(int(folder.name))
    return found


def assert_jobs_end(life: Path) -> None:
    """The jobs of a killed sweep end by themselves; a minute is enough on any machine."""
    until = time.monotonic() + 60
    while jobs_in(life):
        assert time.monotonic() < until, f"{jobs_in(life)} outlive their sweep"
        time.sleep(0.02)


def live(begin: Begin, life: Path, moments: Iterable[Callable[[Any], None]], phase_of: PhaseOf) -> list[str]:
    """Start a command, kill it at the first moment, and so on; then let it finish. Return the phase of each kill."""
    hit: list[str] = []
    for wait in moments:
        process = begin(life)
        wait(process)
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was faster
            return hit
        assert process.exitcode == -signal.SIGKILL, f"seed {SEED}, killed in {hit}\n{log_of(life).read_text()}"
        assert_jobs_end(life)
        hit.append(phase_of(life))
    finish(begin, life, f"seed {SEED}, killed in {hit}")
    return hit


def at_random(draw: random.Random, seconds: float, count: int) -> list[Callable[[Any], None]]:
    """Return moments, drawn uniformly from the duration of an undisturbed process."""
    return [partial(lambda after, process: process.join(after), draw.uniform(0, seconds)) for _ in range(count)]


def in_phase(phase: str, life: Path, phase_of: PhaseOf) -> Callable[[Any], None]:
    """Return the moment at which a life is first seen in a phase."""

    def wait(process: Any) -> None:
        while process.is_alive() and phase_of(life) != phase:
            time.sleep(0.002)

    return wait


def many_lives(
    begin: Begin,
    phases: Sequence[str],
    phase_of: PhaseOf,
    kills: int,
    folder: Path,
    prepare: Callable[[Path], None] = lambda _: None,
) -> None:
    """Kill a command so many times at random moments, and in each phase at least once; compare every life."""
    straight, again = folder / "straight", folder / "again"
    for life in (straight, again):  # the first process takes longer: the fork server starts with it
        prepare(life)
        seconds = finish(begin, life)
    assert_same(again, straight, "not killed")
    draw, hits, number = random.Random(SEED), Counter[str](), 0
    while hits.total() < kills or not hits.keys() >= set(phases):
        life, number = folder / f"life{number}", number + 1
        prepare(life)
        if hits.total() < kills:
            moments = at_random(draw, seconds, min(KILLS_PER_LIFE, kills - hits.total()))
        else:
            moments = [in_phase(phase, life, phase_of) for phase in phases if phase not in hits]
        hit = live(begin, life, moments, phase_of)
        assert_same(life, straight, f"seed {SEED}, {life.name}, killed in {hit}")
        hits.update(hit)
    print(f"killed {hits.total()} times in {number} lives: {dict(hits)}")


PHASES = ("teacher", "evaluation of the teacher", "intervene", "plain", "evaluation")


def train(life: Path) -> list[str]:
    return ["train", *TINY_TI, "trainer.threads=1", f"paths.outputs={life}"]


def phase_of_run(life: Path) -> str:
    """Say from its files how far a run is."""
    facts = [path.parent for path in life.glob("teachers/*/teacher.json") if path.parent.suffix != ".partial"]
    for phase, reached in (
        ("end", life.glob("runs/*/*/*/run.json")),
        ("evaluation", life.glob("runs/*/*/*/stages/plain/stage.json")),
        ("plain", life.glob("runs/*/*/*/stages/intervene/stage.json")),
        ("intervene", facts),
        ("evaluation of the teacher", life.glob("teachers/*.partial/stage.json")),
        ("teacher", life.glob("teachers/*.partial")),
    ):
        if any(reached):
            return phase
    return "start"


def test_a_run_killed_at_random_moments(command: Callable[..., Begin], tmp_path: Path) -> None:
    many_lives(command(train), PHASES, phase_of_run, 30, tmp_path)


SHARDS = 5
WORDS = (
    "experiment=digits/variation_aware_mckd",
    "debug=fast",
    "logger=none",
    "data.train_size=40",
    "data.eval_size=20",
    "data.batch_size=20",
    "model.num_layers=1",
    "teacher.budget.steps=20",
    "trainer.checkpoint_every=5",
    "trainer.progress=false",
    "trainer.threads=1",
)
OPTIONS = ("--crops=60", "--top-k=3", f"--images-per-shard={40 // SHARDS}")


def label(life: Path) -> list[str]:
    return ["softlabels", str(life / "labels"), *WORDS, *OPTIONS, f"paths.outputs={life / 'outputs'}"]


def phase_of_labels(life: Path) -> str:
    """Say from its files how far the labelling is."""
    shards = len(list(life.glob("labels/part-*")))
    if shards:
        return "end" if shards == SHARDS else "shards"
    if any(path.is_dir() and path.suffix != ".partial" for path in life.glob("outputs/teachers/*")):
        return "first shard"
    return "teacher" if any(life.glob("outputs/teachers/*.partial")) else "start"


@pytest.mark.parametrize("cached", [False, True], ids=["teacher trained", "teacher cached"])
def test_soft_labels_killed_at_random_moments(cached: bool, command: Callable[..., Begin], tmp_path: Path) -> None:
    begin, first = command(label), tmp_path / "first"
    if cached:
        finish(begin, first)

    def prepare(life: Path) -> None:
        if cached:
            shutil.copytree(first / "outputs" / "teachers", life / "outputs" / "teachers")

    many_lives(begin, ("shards",) if cached else ("teacher", "shards"), phase_of_labels, 5, tmp_path, prepare)


def sweep(life: Path) -> list[str]:
    """Two runs that need the same teacher, each in a process of its own."""
    verb, *words = train(life)
    return [verb, "-m", *words, "seed=1,2", "--jobs=2"]


def test_a_sweep_killed_at_random_moments(command: Callable[..., Begin], tmp_path: Path) -> None:
    many_lives(command(sweep), ("teacher", "intervene", "plain"), phase_of_run, 10, tmp_path)


def test_jobs_killed_at_random_moments(command: Callable[..., Begin], tmp_path: Path) -> None:
    """The sweep goes on and names the job; the same command again runs what is missing."""
    begin, straight, draw = command(sweep), tmp_path / "straight", random.Random(SEED)
    seconds, hits, number = finish(begin, straight), Counter[str](), 0
    while hits.total() < 10:
        life, number, code = tmp_path / f"life{number}", number + 1, None
        last = hits.total() + KILLS_PER_LIFE
        while code != 0:
            process = begin(life)
            hit = kill_a_job(process, life, draw, seconds) if hits.total() < min(last, 10) else None
            process.join()
            hits.update([] if hit is None else [hit])
            code, story = process.exitcode, f"seed {SEED}, {life.name}\n{log_of(life).read_text()}"
            finished = len(list(life.glob("runs/*/*/*/run.json")))
            assert code == (0 if finished == 2 else 1), story
            assert code == 0 or (hit is not None and "killed by signal 9" in story), story
        assert_same(life, straight, f"seed {SEED}, {life.name}")
    print(f"killed {hits.total()} jobs in {number} lives: {dict(hits)}")


def kill_a_job(process: Any, life: Path, draw: random.Random, seconds: float) -> str | None:
    """Kill a job of a sweep, which goes on; return the phase of the sweep, or None if no job died of it."""
    process.join(draw.uniform(0, seconds))
    jobs = jobs_in(life)
    if not jobs:
        return None
    with suppress(ProcessLookupError):
        os.kill(draw.choice(jobs), signal.SIGKILL)
    phase = phase_of_run(life)
    process.join()
    attempts = [read_attempt(path.parent) for path in life.glob("runs/*/*/*/attempt.json")]
    died = any(attempt is not None and attempt.exit_code == -signal.SIGKILL for attempt in attempts)
    return phase if died else None


OPERATIONS = ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink")
EVERY = 5
"""Each operation has two moments, before and after it. Fewer take less time; an odd number takes turns with both."""


def killed_at(moment: int, life: Path, arguments: Sequence[str]) -> None:
    """Run a command line that kills itself: at moment 2n just before, at 2n + 1 just after its nth file operation."""
    fsync, left = os.fsync, moment

    def fatal(operation: Callable[..., Any]) -> Callable[..., Any]:
        def operate(*args: Any, **more: Any) -> Any:
            nonlocal left
            if operation is not fsync and not str(args[0]).startswith(str(life)):  # of a library
                return operation(*args, **more)
            for step in (lambda: None, lambda: operation(*args, **more)):
                result = step()
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            return result

        return operate

    for name in OPERATIONS:
        setattr(os, name, fatal(getattr(os, name)))
    in_log(life, arguments)


def train_shortly(life: Path) -> list[str]:
    return [*train(life), "budget.steps=12", "method.stages.intervene.steps=6"]


def test_a_run_killed_at_file_operations(command: Callable[..., Begin], tmp_path: Path) -> None:
    begin, straight, hits, moment = command(train_shortly), tmp_path / "straight", Counter[str](), 0
    finish(begin, straight)
    while True:
        life = tmp_path / f"moment{moment}"
        process = command(train_shortly, partial(killed_at, moment))(life)
        process.join()
        if process.exitcode == 0:
            break
        story = f"killed {'after' if moment % 2 else 'before'} file operation {moment // 2}"
        assert process.exitcode == -signal.SIGKILL, f"{story}\n{log_of(life).read_text()}"
        hits[phase_of_run(life)] += 1
        finish(begin, life, story)
        assert_same(life, straight, story)
        shutil.rmtree(life)
        moment += EVERY
    print(f"killed {hits.total()} times: {dict(hits)}")
    assert hits.keys() >= set(PHASES)

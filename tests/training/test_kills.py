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


def live(
    begin: Begin, life: Path, moments: Iterable[Callable[[Any], None]], phase_of: Callable[[Path], str]
) -> list[str]:
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
OPTIONS = ("--crops=60", "--top-k=3", f"--images-per-shard={40 // SHARDS}", "--flip=0.5")


def label(life: Path) -> list[str]:
    return ["softlabels", str(life / "labels"), *WORDS, *OPTIONS, f"paths.outputs={life / 'outputs'}"]


def phase_of_labels(life: Path) -> str:
    """Say from its files how far the labelling is."""
    shards = len(list(life.glob("labels/part-*")))
    if shards == SHARDS:
        return "end"
    if shards:
        return "shards"
    has_teacher = any(path.is_dir() and not path.suffix for path in life.glob("outputs/teachers/*"))
    return "first shard" if has_teacher else "teacher" if list(life.glob("outputs/teachers/*")) else "start"


@pytest.mark.parametrize("cached", [False, True], ids=["teacher trained", "teacher cached"])
def test_soft_labels_killed_at_random_moments(cached: bool, command: Callable[..., Begin], tmp_path: Path) -> None:
    begin, teachers = command(label), tmp_path / "before" / "outputs" / "teachers"
    if cached:
        finish(begin, tmp_path / "before")

    def prepare(life: Path) -> None:
        life.mkdir()
        if cached:
            shutil.copytree(teachers, life / "outputs" / "teachers")

    phases = ("shards",) if cached else ("teacher", "shards")
    lives = tmp_path / "lives"
    lives.mkdir()
    hits = many_lives(begin, phases, phase_of_labels, 5, lives, prepare)
    assert hits.total() >= 5
    assert hits.keys() >= set(phases)


OPERATIONS = ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink")
EVERY = 3
"""Two moments per operation are one too many for a test; an odd number takes turns with both."""


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
    in_log(arguments, log_of(life))


def train_shortly(life: Path) -> list[str]:
    return [*train(life), "budget.steps=12", "method.stages.intervene.steps=6"]


def test_a_run_killed_at_file_operations(command: Callable[..., Begin], context: Any, tmp_path: Path) -> None:
    begin, straight, moment, phases = command(train_shortly), tmp_path / "straight", 0, Counter[str]()
    finish(begin, straight)
    while True:
        life = tmp_path / f"moment{moment}"
        process = context.Process(target=killed_at, args=(moment, life, train_shortly(life)))
        process.start()
        process.join(600)
        if process.exitcode == 0:
            break
        story = f"killed {'after' if moment % 2 else 'before'} file operation {moment // 2}"
        assert process.exitcode == -signal.SIGKILL, f"{story}\n{log_of(life).read_text()}"
        phases[phase_of_run(life)] += 1
        finish(begin, life, story)
        assert_same(life, straight, story)
        shutil.rmtree(life)
        moment += EVERY
    print(f"killed {phases.total()} times: {dict(phases)}")
    assert phases.keys() >= set(PHASES)


SWEEP = ("seed=1,2", "--jobs", "2")


def sweep(life: Path) -> subprocess.Popen[bytes]:
    """Start a sweep of two runs, which need the same teacher, in processes of their own."""
    words = ["train", "-m", *TINY_TI, "trainer.threads=1", *SWEEP, f"paths.outputs={life}"]
    with log_of(life).open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "lowbit.cli", *words], stdout=log, stderr=log)


def alive(life: Path) -> list[int]:
    """Return the processes of a life's sweep: those with its folder in their command lines."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, state = (
                (folder / "cmdline").read_bytes(),
                (folder / "stat").read_text().rpartition(")")[2].split()[0],
            )
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(life).encode() in words and state not in "ZX":
            found.append(int(folder.name))
    return found


def jobs_of(process: subprocess.Popen[bytes], life: Path) -> list[int]:
    return [pid for pid in alive(life) if pid != process.pid]


@pytest.fixture(scope="module")
def calm_sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A sweep that nothing has disturbed, and the seconds it took."""
    life, start = tmp_path_factory.mktemp("sweep") / "straight", time.monotonic()
    assert sweep(life).wait() == 0, log_of(life).read_text()
    return life, time.monotonic() - start


def test_a_sweep_killed_at_random_moments(calm_sweep: tuple[Path, float], tmp_path: Path) -> None:
    (straight, seconds), draw, kills, lives = calm_sweep, random.Random(SEED), 0, 0
    with_jobs = 0
    while kills < 10:
        life, code, left = tmp_path / f"life{lives}", None, KILLS_PER_LIFE
        while code != 0:
            process = sweep(life)
            if left and kills < 10:
                wait_for(process, draw.uniform(0, seconds))
                with_jobs += bool(jobs_of(process, life)) and process.poll() is None
                process.kill()
            code = process.wait()
            assert code in (0, -signal.SIGKILL), f"seed {SEED}\n{log_of(life).read_text()}"
            kills, left = kills + (code != 0), left - 1
            assert_all_end(life)
        assert_same(life, straight, f"seed {SEED}, {life.name}")
        lives += 1
    print(f"killed {kills} times in {lives} lives, {with_jobs} times with jobs")
    assert with_jobs


def wait_for(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def assert_all_end(life: Path) -> None:
    """Wait until no process of a sweep is left; a minute is enough on any machine."""
    until = time.monotonic() + 60
    while alive(life):
        assert time.monotonic() < until, f"processes {alive(life)} outlive their sweep"
        time.sleep(0.02)


def test_jobs_killed_at_random_moments(calm_sweep: tuple[Path, float], tmp_path: Path) -> None:
    """The sweep goes on, names the job, and runs it when it is started again."""
    (straight, seconds), draw, kills, lives = calm_sweep, random.Random(SEED), 0, 0
    while kills < 10:
        life, code, left = tmp_path / f"life{lives}", None, KILLS_PER_LIFE
        while code != 0:
            process, hit = sweep(life), False
            if left and kills < 10:
                hit = kill_a_job(process, life, draw, seconds)
            code = process.wait()
            log = log_of(life).read_text()
            finished = len(list(life.glob("runs/*/*/*/run.json")))
            assert code == (0 if finished == 2 else 1), f"seed {SEED}\n{log}"
            assert code == 0 or (hit and "killed by signal 9" in log), f"seed {SEED}\n{log}"
            kills, left = kills + hit, left - 1
        assert_same(life, straight, f"seed {SEED}, {life.name}")
        lives += 1
    print(f"killed {kills} jobs in {lives} lives")


def kill_a_job(process: subprocess.Popen[bytes], life: Path, draw: random.Random, seconds: float) -> bool:
    """Kill one job of a sweep at a random moment; return whether one was there and died of it."""
    wait_for(process, draw.uniform(0, seconds))
    jobs = jobs_of(process, life)
    if not jobs or process.poll() is not None:
        return False
    os.kill(draw.choice(jobs), signal.SIGKILL)
    process.wait()
    attempts = [read_attempt(path.parent) for path in life.glob("runs/*/*/*/attempt.json")]
    return any(attempt is not None and attempt.exit_code == -signal.SIGKILL for attempt in attempts)

"""Every file that runs leave, damaged in every way: the same result, or a message that names it and what helps.

Files are those of real runs, so that a new kind of file is among them by itself.
"""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lowbit.cli import main
from lowbit.execution.state import is_running
from lowbit.results import read_run
from lowbit.results.run_file import METRICS_FILE, RUN_FILE

pytestmark = pytest.mark.slow

WORDS = [
    "method=ti_g",
    "quantizer=lsq_w4a4",
    "debug=fast",
    "logger=none",
    "data.train_size=60",
    "data.eval_size=40",
    "data.batch_size=20",
    "model.num_layers=1",
    "teacher.budget.steps=4",
    "method.stages.intervene.steps=10",
    "budget.steps=70",
    "trainer.checkpoint_every=5",
    "trainer.log_every=1",
    "trainer.eval_every=10",
    "trainer.threads=1",
    "trainer.progress=false",
]
FINISHED, KILLED = 1, 2  # seeds
REMEDY = re.compile(r"Delete |Move it away|[Rr]un the same command|anew")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\x00{[\n,\xfe" * 40)


FAULTS = [half, empty, flip, garbage, Path.unlink]


def sweep(outputs: Path, *seeds: int) -> list[str]:
    return ["demo", f"seed={','.join(map(str, seeds))}", *WORDS, f"paths.outputs={outputs}"]


def start_sweep(outputs: Path, *seeds: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lowbit.cli", "sweep", *sweep(outputs, *seeds)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of a sweep of two runs that nothing has disturbed."""
    outputs = tmp_path_factory.mktemp("straight")
    assert start_sweep(outputs, FINISHED, KILLED).wait() == 0
    return outputs


@pytest.fixture(scope="module")
def folders(straight: Path) -> dict[int, Path]:
    """Where the run of a seed lies in any outputs folder."""
    found = {path.parent: read_run(path.parent) for path in straight.glob("runs/**/run.json")}
    return {run["seeds"]["run"]: folder.relative_to(straight) for folder, run in found.items() if run is not None}


@pytest.fixture(scope="module")
def outputs(straight: Path, folders: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same outputs, but that the second run was killed in its second stage."""
    outputs = tmp_path_factory.mktemp("killed") / "outputs"
    run = outputs / folders[KILLED]
    shutil.copytree(straight, outputs)
    while not (run / "stages" / "plain" / "last.ckpt").exists():  # it may end before it can be killed
        shutil.rmtree(run)
        process = start_sweep(outputs, FINISHED, KILLED)
        while process.poll() is None and not (run / "stages" / "plain" / "last.ckpt").exists():
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        while is_running(run):
            time.sleep(0.01)
    return outputs


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Verbs:
    """Calls the verbs on a folder of outputs, and returns what they print, without times and the folder's path."""

    def __init__(self, capsys: pytest.CaptureFixture[str], outputs: Path) -> None:
        self._capsys, self.outputs = capsys, outputs

    def _call(self, *words: str, page: Path | None = None) -> str:
        self._capsys.readouterr()
        code = main(words)
        text = "".join(self._capsys.readouterr()) + (page.read_text() if page is not None and page.exists() else "")
        assert "Traceback" not in text, text
        # Progress is known as far as a file that may be lost says.
        text = re.sub(r"[\d.]+ (s|min)\b|(?<=resumes after step )\d+", "N", text)
        return f"exit code {code}\n{text}".replace(str(self.outputs), "OUTPUTS")

    def resume(self, seed: int) -> str:
        return self._call("train", "+sweeps=demo", "sweep=demo", *sweep(self.outputs, seed)[1:])

    def look(self) -> dict[str, str]:
        """What is shown of both runs; of a report, its page too."""
        page = self.outputs / "page.html"
        both = sweep(self.outputs, FINISHED, KILLED)
        return {
            "dry run": self._call("sweep", *both, "--dry-run"),
            "table": self._call("table", *both, "--format", "csv"),
            "report": self._call("report", *both, "--out", str(page), page=page),
        }

    def follow(self, text: str, run: Path) -> None:
        """Do what a message says of a run, besides running its command again."""
        other = re.search(r"Delete (OUTPUTS/\S+) and run", text)
        named = re.search(r"(OUTPUTS/\S+) (is|holds|lacks|has) .*Delete that file", text)
        for found in (other, named):
            if found is not None and run in Path(found[1].removeprefix("OUTPUTS/")).parents:
                (self.outputs / found[1].removeprefix("OUTPUTS/")).unlink(missing_ok=True)


def content(outputs: Path, run: Path) -> dict[str, object]:
    """What a run is there for: weights, history, scores, and its teacher's weights."""
    files = [*(outputs / run).rglob("*.safetensors"), outputs / run / METRICS_FILE]
    files += outputs.glob("teachers/*/*.safetensors")
    found: dict[str, object] = {
        str(file.relative_to(outputs)): file.read_bytes() for file in files if file.exists() and is_whole(file)
    }
    result = read_run(outputs / run)
    return {**found, "metrics": None if result is None else result["metrics"]}


def is_whole(file: Path) -> bool:
    """Whether it is not what was set aside."""
    return not any(".damaged" in part for part in file.parts)


def others(outputs: Path, run: Path) -> dict[Path, bytes]:
    """The bytes of all runs but one."""
    files = [file for file in (outputs / "runs").rglob("*") if file.is_file()]
    return {file: file.read_bytes() for file in files if outputs / run not in file.parents}


def problems(verbs: Verbs, file: Path, seed: int, run: Path, shown: dict[str, str], straight: Path) -> Iterator[str]:
    """Look at a run of which a file is damaged, resume it, do what is said, and compare it with the straight one."""
    outputs, told = verbs.outputs, ""
    before = others(outputs, run)
    for verb, text in verbs.look().items():
        told += text
        is_named = f"OUTPUTS/{file}" in text and REMEDY.search(text) is not None
        is_unfinished = file.name == RUN_FILE and not (outputs / file).exists()
        if text != shown[verb] and not is_named and not is_unfinished:
            yield f"{verb} differs and does not name the file with a remedy: {text}"
        if verb == "dry run" and line_of(seed, text) == line_of(seed, shown[verb]) and text != shown[verb]:
            yield f"another job is shown differently: {text}"
    for _ in range(3):
        verbs.follow(told, run)
        told = verbs.resume(seed)
        if told.startswith("exit code 0"):
            break
        if f"OUTPUTS/{file}" not in told or REMEDY.search(told) is None:
            yield f"resuming fails and does not name the file with a remedy: {told}"
    else:
        yield f"the remedy does not work: {told}"
    found, expected = content(outputs, run), content(straight, run)
    different = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
    if different:
        yield f"afterwards not as in the straight run: {different}"
    after = others(outputs, run)
    changed = [str(path) for path in after.keys() | before.keys() if after.get(path) != before.get(path)]
    if changed:
        yield f"files of another run have changed: {changed}"


def line_of(seed: int, plan: str) -> str:
    return next(line for line in plan.splitlines() if f"seed={seed}" in line)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("place", ["killed run", "its teacher", "finished run"])
def test_damaged_files(
    place: str,
    fault: Callable[[Path], None],
    outputs: Path,
    straight: Path,
    folders: dict[int, Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    seed = FINISHED if place == "finished run" else KILLED
    here = tmp_path / "outputs"
    shutil.copytree(outputs, here)
    shown = Verbs(capsys, here).look()
    where = outputs / ("teachers" if place == "its teacher" else folders[seed])
    files = [path.relative_to(outputs) for path in where.rglob("*") if path.is_file()]
    assert len(files) > 4
    found = []
    for file in files:
        shutil.rmtree(here)
        shutil.copytree(outputs, here)
        fault(here / file)
        found += [f"{file}: {p}" for p in problems(Verbs(capsys, here), file, seed, folders[seed], shown, straight)]
    assert not found, "\n\n".join(found)

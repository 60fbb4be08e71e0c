"""Jobs of a sweep without training: a small script leaves what a run leaves."""

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from lowbit.execution.jobs import SweepJob

# Arguments: folder, seconds to sleep in the first attempt, exit code, then settings that the script ignores.
SCRIPT = """
import json, os, pathlib, signal, sys, time
folder, seconds, code = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
print("threads", [w for w in sys.argv[4:] if w.startswith("trainer.threads")], flush=True)
(folder / "parent").write_text(str(os.getppid()))
first = not (folder / "pid").exists()
try:
    (folder / "new").write_text(str(os.getpid()))
    (folder / "new").rename(folder / "pid")
    time.sleep(seconds if first else 0)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
if code:
    print("error: out of luck", flush=True)
    sys.exit(code)
metrics = {"test/accuracy": 0.5, "val/accuracy": 0.25}
size = {"float_bytes": 8, "simulated_bytes": 1, "compression": 8.0, "bits": "2-2-8"}
run = dict(schema=1, status="finished", config={"method": {"name": "m"}}, primary_metric="test/accuracy",
           metrics=metrics, teacher=None, size=size, steps=10, seconds=5.0)
(folder / "run.json").write_text(json.dumps(run))
"""

LONG = 600.0
"""Seconds that no test waits for."""
MakeJob = Callable[..., SweepJob]


@pytest.fixture(autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """A pytest behind `&` ignores SIGINT, and would pass that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def job(tmp_path: Path) -> MakeJob:
    """Return a function that makes a job of the script."""

    def make(name: str, code: int = 0, *, long: bool = False, **changes) -> SweepJob:
        folder = tmp_path / "runs" / name
        overrides = (str(folder), str(LONG if long else 0), str(code))
        facts = {"overrides": overrides, "method": "m", "steps": 10, **changes}
        return SweepJob(label=f"job={name}", run_id=name, folder=folder, outputs=tmp_path, **facts)

    return make


@pytest.fixture
def command() -> Callable[[Sequence[str]], list[str]]:
    """Return the command line of the script instead of that of `lowbit train`."""
    return lambda overrides: [sys.executable, "-S", "-E", "-c", SCRIPT, *overrides]


@pytest.fixture
def finish() -> Callable[..., None]:
    """Return a function that leaves the run.json of a finished run."""

    def write(job: SweepJob, **changes) -> None:
        run = {
            "schema": 1,
            "status": "finished",
            "config": {"method": {"name": job.method}},
            "primary_metric": "test/accuracy",
            "metrics": {"test/accuracy": 0.5, "val/accuracy": 0.25},
            "teacher": None,
            "size": {"float_bytes": 8, "simulated_bytes": 1, "compression": 8.0, "bits": "2-2-8"},
            "steps": 10,
            "seconds": 5.0,
            **changes,
        }
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "run.json").write_text(json.dumps(run))

    return write

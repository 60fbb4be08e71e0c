"""The process of one job: its command, its environment, its log, and the record of how it ended."""

from __future__ import annotations

import atexit
import datetime as dt
import hashlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lowbit.files import is_alive
from lowbit.results.run_folder import ATTEMPT_FILE, LOG_FILE, STAGE_FILE, Attempt, write_attempt

_LONGEST_FOLDER = 70  # a socket's path has at most 107 bytes, of which multiprocessing adds 32
_TAIL = 20_000  # bytes of a log that are searched for its last error


@dataclass(frozen=True)
class Started:
    """A process that runs a job in `folder`."""

    folder: Path
    process: subprocess.Popen[bytes]
    since: float
    whole: bool

    def record(self) -> int:
        """Write how the ended process ended into the run's folder; return its exit code."""
        code = self.process.wait()
        with suppress(OSError):  # a full disk: the record only helps to show how the run went
            write_attempt(self.folder, Attempt(code, time.monotonic() - self.since, self.whole))
        return code


def train_command(overrides: Sequence[str]) -> list[str]:
    """Return the command line of `lowbit train` under this interpreter."""
    return [sys.executable, "-m", "lowbit.cli", "train", *overrides]


def start(folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> Started:
    """Start a job's process, with its output at the end of the log in its folder.

    It leads a session of its own: Ctrl-C in the terminal reaches the sweep alone, which passes it on once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ATTEMPT_FILE).unlink(missing_ok=True)
    whole = not any(folder.glob("stages/*/*.ckpt")) and not any(folder.glob(f"stages/*/{STAGE_FILE}"))
    with (folder / LOG_FILE).open("ab") as log:
        log.write(
            f"$ {shlex.join(command)}  # {dt.datetime.now().astimezone().isoformat(timespec='seconds')}\n".encode()
        )
        log.flush()
        with _interrupts_reach_children():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
    return Started(folder, process, time.monotonic(), whole)


@contextmanager
def _interrupts_reach_children() -> Iterator[None]:
    """Let children hear SIGINT although this process ignores it, as behind `&`: they would inherit that."""
    ignored = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    )
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def last_error(log: Path) -> str:
    """Return the last line of a job's log that says what went wrong, and the next one where it announces a list."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return "no log was written"
    except OSError as error:
        return f"its log cannot be read ({error})"
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("traceback: ")]
    told = [index for index, line in enumerate(lines) if line.startswith(("error:", "  - "))]
    found = lines[told[-1] : told[-1] + 2] if told else lines[-1:]
    if len(found) == 2 and not found[0].endswith(":"):  # else the first of a list follows
        del found[1]
    return " ".join(line.strip().removeprefix("- ") for line in found) or "the log is empty"


@cache
def use_own_temporary_folder() -> None:
    """Keep what this process and its libraries put into the system's temporary folder in one place below it.

    It goes when the process ends; those of processes that were killed go here. Nothing changes where there is no room,
    or where the name would be too long for the sockets that workers of a data loader make there.
    """
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    mark = f"lowbit-{host}-"
    for old in Path(tempfile.gettempdir()).glob(f"{mark}*"):
        pid = old.name.removeprefix(mark).partition("-")[0]
        if pid.isdecimal() and not is_alive(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    try:
        mine = tempfile.mkdtemp(prefix=f"{mark}{os.getpid()}-")
    except OSError:
        return
    if len(mine) > _LONGEST_FOLDER:
        Path(mine).rmdir()
        return
    tempfile.tempdir = os.environ["TMPDIR"] = mine
    atexit.register(shutil.rmtree, mine, ignore_errors=True)

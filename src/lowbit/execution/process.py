"""The process of one job: its command, log, record and temporary folder; it ends when the sweep ends."""

from __future__ import annotations

import atexit
import ctypes
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
from lowbit.results.run_file import ATTEMPT_FILE, LOG_FILE, STAGE_FILE, Attempt, write_attempt

PARENT_VARIABLE = "LOWBIT_PARENT"  # the id of the process with which a job ends
_PR_SET_PDEATHSIG = 1  # prctl.h
_LONGEST_FOLDER = 70  # a socket's path has at most 107 bytes, of which multiprocessing adds 32
_TAIL = 20_000  # bytes of a log that are searched for its last error


@dataclass(frozen=True)
class Started:
    """A process that runs a job in `folder`; `whole` says that the run begins at step 0."""

    folder: Path
    process: subprocess.Popen[bytes]
    since: float
    whole: bool

    def record(self) -> int:
        """Write into the run's folder how the process ended; return its exit code."""
        code = self.process.wait()
        with suppress(OSError):  # a full disk: the record only helps to show how the run went
            write_attempt(self.folder, Attempt(code, time.monotonic() - self.since, self.whole))
        return code


def train_command(overrides: Sequence[str]) -> list[str]:
    """Return the command line of `lowbit train` under this interpreter."""
    return [sys.executable, "-m", "lowbit.cli", "train", *overrides]


def start(folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> Started:
    """Start a job's process, and append its output to the log in its folder.

    The process leads its own session: Ctrl-C in the terminal reaches only the sweep, which passes it on once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ATTEMPT_FILE).unlink(missing_ok=True)
    whole = not any(folder.glob("stages/*/*.ckpt")) and not any(folder.glob(f"stages/*/{STAGE_FILE}"))
    with (folder / LOG_FILE).open("ab") as log, _interrupts_reach_children():
        now = dt.datetime.now().astimezone().isoformat(timespec="seconds")
        log.write(f"$ {shlex.join(command)}  # {now}\n".encode())
        log.flush()
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
    """Restore SIGINT for children where this process ignores it, as it does behind `&`: they would inherit that."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def follow_parent() -> None:
    """End this process as soon as its parent ends, if the environment asks for it; call this from the main thread.

    `kill -9` of a sweep thus leaves no orphans. Checkpoints and records are written atomically: only the steps since
    the last checkpoint are lost. The children of this process do not inherit the request.
    """
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is None:
        return
    if hasattr(signal, "SIGUSR2"):  # a batch system warns all processes of a job; only the parent acts on it
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    else:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()
    if os.getppid() != int(parent):  # it ended before this line
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def lead_children() -> None:
    """Make the `lowbit` processes that this one starts end when it ends."""
    os.environ[PARENT_VARIABLE] = str(os.getpid())


def last_error(log: Path) -> str:
    """Return the last error in a job's log, with the first item of the list that it announces."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return "no log was written"
    except OSError as error:
        return f"its log cannot be read ({error})"
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("traceback: ")]
    errors = [index for index, line in enumerate(lines) if line.startswith(("error:", "  - "))]
    found = lines[errors[-1] : errors[-1] + 2] if errors else lines[-1:]
    if len(found) == 2 and not found[0].endswith(":"):
        del found[1]
    return " ".join(line.strip().removeprefix("- ") for line in found) or "the log is empty"


@cache
def use_own_temporary_folder() -> None:
    """Keep the temporary files of this process and its libraries in one folder, and delete it at the end.

    Folders of killed processes are deleted here. Nothing changes if the disk is full, or if the name would be too long
    for the sockets of data loader workers.
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

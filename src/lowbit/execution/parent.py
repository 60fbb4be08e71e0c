"""A job ends with the sweep that started it, however that one ends: `kill -9` leaves no orphans."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PARENT_VARIABLE = "LOWBIT_PARENT"  # id of the process with which this one shall end
_PR_SET_PDEATHSIG = 1  # prctl.h


def follow_parent() -> None:
    """Die as soon as the parent does, where the environment asks for it; call this from the main thread.

    Checkpoints and records are written atomically, so that nothing is lost but the steps since the last one. Processes
    that this one starts are not asked again.
    """
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is None:
        return
    if hasattr(signal, "SIGUSR2"):  # a batch system's warning to all processes of a job; the parent acts on it
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    else:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()
    if os.getppid() != int(parent):  # it died before this line
        os._exit(1)


def lead_children() -> None:
    """Ask the `lowbit` processes that this one will start to end with it, however it ends."""
    os.environ[PARENT_VARIABLE] = str(os.getpid())


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)

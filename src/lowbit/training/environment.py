"""Where and with what a run was made: device, threads, versions, commit."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h, in bytes.
_MALLOC_OPTIONS = {-3: 2**30, -1: 2**31 - 1, -2: 2**28}
_PACKAGES = ("lowbit", "torch", "lightning", "hydra-core", "transformers", "timm", "torchmetrics")
_guards: dict[int, subprocess.Popen[bytes]] = {}  # process id of a child -> the process that ends it


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks for the next step.

    By default each step of a CPU run gives its activations back to the system and takes them again, page by page. Does
    nothing where the C library has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in _MALLOC_OPTIONS.items():
            mallopt(option, value)


def process_age() -> float | None:
    """Return the seconds since this process was started; None where the system does not tell."""
    try:
        started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return None


def environment(accelerator: str) -> dict[str, Any]:
    """Return the entries of run.json that describe the machine and the code."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "device": device_name(accelerator),
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }


def device_name(accelerator: str = "auto") -> str:
    """Return the device that the accelerator setting resolves to, in words."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"cpu {platform.machine()}, {torch.get_num_threads()} threads"


def commit() -> str | None:
    """Return the commit of the checkout, with + if it has changes; None for an installed package."""
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    git = ["git", "-C", str(folder)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return None
    changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def end_children_with_this_process(name: str) -> None:
    """End the child processes of this name as soon as this process ends, even if it is killed.

    A shell waits for the end of a pipe that this process holds open. Without /proc, nothing is done.
    """
    for pid in children_named(name) - _guards.keys():
        command = ["/bin/sh", "-c", f"read _; grep -qs {name} /proc/{pid}/comm && kill -9 {pid}"]
        null = subprocess.DEVNULL
        _guards[pid] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True
        )


def children_named(name: str) -> set[int]:
    """Return the ids of the children of this process whose name begins so."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            start, _, rest = stat.read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        if f"({name}" in start and int(rest.split()[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found

"""Where and with what a run was made: device, threads, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("lowbit", "torch", "lightning", "hydra-core", "transformers", "timm", "torchmetrics")


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

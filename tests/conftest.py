"""Settings of every test: offline, quiet, one thread per worker."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)
os.environ["OMP_NUM_THREADS"] = "1"

import pytest


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Folder of numbers computed by the published code; LOWBIT_VECTORS names another of the same format."""
    return Path(os.environ.get("LOWBIT_VECTORS", Path(__file__).parent / "golden"))

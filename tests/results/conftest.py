"""Runs on disk, as the training loop leaves them."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowbit.results import Cell, Row, collect

MakeCell = Callable[..., Cell]
MakeRow = Callable[..., Row]
STORED = Path(__file__).parents[1] / "fixtures" / "runs"


def run_payload(method: str = "ti_g", seed: int = 0, accuracy: float = 0.9, **changes: Any) -> dict[str, Any]:
    """Return a complete run.json; `changes` replace its top-level keys."""
    size = {"float_bytes": 1_234_567, "simulated_bytes": 123_456, "compression": 10.0, "bits": "2-2-8"}
    config = {
        "data": {"name": "digits"},
        "model": {"name": "vit"},
        "method": {"name": method},
        "quantizer": {"name": "w2a8"},
        "seed": seed,
    }
    payload = {
        "schema": 1,
        "run_id": f"{method}{seed}",
        "name": f"digits/{method}",
        "sweep": "demo",
        "status": "finished",
        "config": config,
        "primary_metric": "test/accuracy",
        "metrics": {"test/accuracy": accuracy, "val/accuracy": 0.5},
        "teacher": {
            "id": "t1",
            "metrics": {"test/accuracy": 0.97},
            "size": {**size, "bits": "32-32-32"},
            "steps": 600,
            "seconds": 12.0,
        },
        "size": size,
        "steps": 900,
        "seconds": 40.0,
        "stages": [{"name": "intervene", "steps": 60, "seconds": 3.1, "metrics": {"val/accuracy": 0.4}}],
        "seeds": {"seed": seed},
        "versions": {"torch": "2.6"},
        "device": "cpu x86_64",
        "threads": 2,
        "commit": "abc1234",
        "started": "2026-01-01T00:00:00",
        "finished": "2026-01-01T00:01:00",
    }
    return payload | changes


@pytest.fixture
def payload() -> Callable[..., dict[str, Any]]:
    """Return `run_payload`."""
    return run_payload


@pytest.fixture
def make_cell(tmp_path: Path) -> MakeCell:
    """Return a maker of cells; with `run=False` nothing has run in the cell's directory."""

    def make(
        method: str = "ti_g",
        seed: int = 0,
        accuracy: float = 0.9,
        labels: dict[str, str] | None = None,
        run: bool = True,
        **changes: Any,
    ) -> Cell:
        labels = {"method": method, "seed": str(seed)} if labels is None else labels
        folder = tmp_path / ("-".join(labels.values()).replace("/", "_") or method) / str(seed)
        if run:
            folder.mkdir(parents=True, exist_ok=True)  # plain JSON, as the first versions wrote: infinities and all
            (folder / "run.json").write_text(json.dumps(run_payload(method, seed, accuracy, **changes)))
        return Cell(folder, labels, f"lowbit train method={method} seed={seed}")

    return make


@pytest.fixture
def rows(make_cell: MakeCell) -> list[Row]:
    """Return a teacher, a full row (0.92 ± 0.02), a single seed, a partial row and an empty one."""
    cells = [make_cell(seed=seed, accuracy=value) for seed, value in enumerate((0.90, 0.92, 0.94))]
    cells += [make_cell("kd", accuracy=0.9733), make_cell("bit", seed=0), make_cell("bit", seed=1, run=False)]
    return collect([*cells, make_cell("xtc", run=False)])


@pytest.fixture
def row() -> MakeRow:
    """Return a maker of finished rows."""
    base: dict[str, Any] = {
        "label": "ti_g",
        "metric": "test/accuracy",
        "values": [0.5],
        "bits": "2-2-8",
        "simulated_mb": 1.0,
        "compression": 10.0,
        "steps": 900,
        "seconds": 41.2,
        "n": 1,
        "expected": 1,
    }
    return lambda **changes: Row(**(base | changes))


@pytest.fixture
def stored_cells(tmp_path: Path) -> list[Cell]:
    """Copy the stored runs, whose numbers are invented, and return the cells of their sweep; one job has not run."""
    cells = []
    for method, quantizer, seed in itertools.product(("ternarybert", "ti_g"), ("w2a8", "w4a8"), ("1", "2")):
        run_dir = tmp_path / f"{method}-{quantizer}-{seed}"
        file = STORED / f"{run_dir.name}.json"
        if file.is_file():
            run_dir.mkdir()
            shutil.copy(file, run_dir / "run.json")
        labels = {"method": method, "quantizer": quantizer, "seed": seed}
        config = {"data": {"name": "digits"}, "method": {"name": method}, "quantizer": {"name": quantizer}}
        job = ["+sweeps=fixture", "sweep=fixture", *(f"{key}={value}" for key, value in labels.items())]
        cells.append(Cell(run_dir, labels, f"lowbit train {' '.join(job)}", config))
    return cells

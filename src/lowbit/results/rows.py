"""What goes into a table (a cell per job) and what comes out (a row per group of seeds)."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

TEACHER = "teacher"


@dataclass(frozen=True)
class Cell:
    """One job of a sweep: where its run lives, what the sweep set, and the command that fills it."""

    run_dir: Path
    labels: dict[str, str]
    command: str


@dataclass(frozen=True)
class Row:
    """One line of a table: the cells that differ only in their seed; `None` where nothing has run."""

    label: str
    metric: str | None
    values: list[float]
    bits: str | None
    simulated_mb: float | None
    compression: float | None
    steps: int | None
    seconds: float | None
    n: int
    expected: int
    missing: list[str] = field(default_factory=list)
    teacher_id: str | None = None
    commits: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean over the seeds."""
        return fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds (ddof=1)."""
        if len(self.values) < 2:
            return None
        # Not statistics.stdev: it fails on the inf of a diverged run.
        mean = fmean(self.values)
        return float((sum((value - mean) ** 2 for value in self.values) / (len(self.values) - 1)) ** 0.5)

    @property
    def status(self) -> str:
        """`done`, `2 of 3 seeds` or `not run`."""
        if self.n == 0:
            return "not run"
        return "done" if self.n == self.expected else f"{self.n} of {self.expected} seeds"

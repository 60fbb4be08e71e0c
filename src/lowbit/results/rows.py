"""What goes into a table (a cell per job) and what comes out (a row per group of seeds)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from lowbit.results.scores import Comparison, Published, compare, std

TEACHER = "teacher"


@dataclass(frozen=True)
class Cell:
    """One job of a sweep: where its run lives, what the sweep set, the command that fills it, its resolved config."""

    run_dir: Path
    labels: dict[str, str]
    command: str
    config: Mapping[str, Any] = field(default_factory=dict)


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
    published: Published | None = None

    @property
    def mean(self) -> float | None:
        """Mean over the seeds."""
        return fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds (ddof=1)."""
        return std(self.values)

    @property
    def comparison(self) -> Comparison | None:
        """The mean against the published value, where both are there."""
        if self.published is None or not self.values or self.metric is None:
            return None
        return compare(self.values, self.metric, self.published)

    @property
    def status(self) -> str:
        """`done`, `2 of 3 seeds` or `not run`."""
        if self.n == 0:
            return "not run"
        return "done" if self.n == self.expected else f"{self.n} of {self.expected} seeds"


def get(config: Mapping[str, Any], dotted: str) -> Any:
    """Return the value of a dotted key, None where there is none."""
    node: Any = config
    for key in dotted.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node

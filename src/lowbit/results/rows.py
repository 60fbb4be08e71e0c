"""What goes into a table (a cell per job) and what comes out (a row per group of seeds)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from lowbit.results.run_file import finished_run
from lowbit.results.scores import Comparison, Published, compare, std

TEACHER = "teacher"


@dataclass(frozen=True)
class Cell:
    """One job of a sweep: where its run lives, what the sweep set, the command that fills it, its resolved config."""

    run_dir: Path
    labels: dict[str, str]
    command: str
    config: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _outcome(self) -> tuple[dict[str, Any] | None, str]:
        return finished_run(self.run_dir)

    @property
    def run(self) -> dict[str, Any] | None:
        """The content of its run.json, read once; None where it has not finished or the file is damaged."""
        return self._outcome[0]

    @property
    def damage(self) -> str:
        """What is wrong with its run.json, and the remedy; nothing where nothing is."""
        return self._outcome[1]


@dataclass(frozen=True)
class Row:
    """One line of a table: the cells that differ only in their seed; `None` where nothing has run.

    `missing` holds the commands of the cells without a value; `damaged` says of some of them which file is to blame.
    """

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
    damaged: list[str] = field(default_factory=list)
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
        """`done`, `2 of 3 seeds` or `not run`; `damaged` or `2 of 3 seeds, 1 damaged` where files cannot be read."""
        if self.n == 0:
            return "damaged" if self.damaged else "not run"
        if self.n == self.expected:
            return "done"
        return f"{self.n} of {self.expected} seeds" + (f", {len(self.damaged)} damaged" if self.damaged else "")


def get(config: Mapping[str, Any], dotted: str) -> Any:
    """Return the value of a dotted key, None where there is none."""
    node: Any = config
    for key in dotted.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node

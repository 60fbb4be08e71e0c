"""The search space of `lowbit search`: Hydra's sweep overrides as distributions of Optuna."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import FloatRange, IntervalSweep, Override, RangeSweep

from lowbit.config import compose as C
from lowbit.config.problems import ConfigError

_ALLOWED = (
    "choice(a,b), interval(low,high), tag(log, interval(low,high)), int(interval(low,high)), range(start,stop,step)"
)


@dataclass(frozen=True)
class Space:
    """What a search varies, by key, and the overrides that all its trials share."""

    fixed: tuple[str, ...]
    distributions: dict[str, Any]

    def overrides(self, parameters: dict[str, Any]) -> list[str]:
        """Return the overrides of a trial."""
        return [*self.fixed, *(f"{key}={parameters[key]}" for key in self.distributions)]


def parse_space(overrides: Sequence[str]) -> Space:
    """Split overrides into what is fixed and what is searched; of several of one key the last one counts.

    Raises:
        ConfigError: nothing is searched, or an override has no meaning as a distribution.
    """
    last = {
        override.get_key_element(): override
        for override in OverridesParser.create().parse_overrides(C.quoted(overrides))
    }
    searched = {key: override for key, override in last.items() if override.is_sweep_override()}
    if not searched:
        raise ConfigError([f"search: no override varies; give one of {_ALLOWED}, for example seed=1,2"])
    fixed = tuple(str(override.input_line) for key, override in last.items() if key not in searched)
    return Space(fixed, {key: _distribution(override) for key, override in searched.items()})


def _distribution(override: Override) -> Any:
    from optuna.distributions import CategoricalDistribution, IntDistribution

    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        return _interval(override, sweep)
    if isinstance(sweep, RangeSweep):
        values = sweep.range()
        if not isinstance(values, FloatRange):  # Optuna's own steps of 0.1 do not stop at 0.3 but next to it
            return IntDistribution(values[0], values[-1], step=values.step)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _interval(override: Override, sweep: IntervalSweep) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    log = "log" in sweep.tags
    low, high = sweep.start, sweep.end
    if low is None or high is None or not low < high or (log and low <= 0):
        problem = "above 0 " if log else ""
        raise ConfigError([f"{override.input_line}: the lower end must be {problem}and below the upper end"])
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)

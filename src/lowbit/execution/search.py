"""A search by Optuna: its space, its trials, which are runs like any other, and its storage, a file that it resumes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import FloatRange, IntervalSweep, Override, RangeSweep

from lowbit.config import compose as C
from lowbit.config.problems import ConfigError
from lowbit.execution.jobs import SweepJob, invalid_job, one_job
from lowbit.execution.progress import View
from lowbit.execution.state import is_running, result
from lowbit.execution.sweep import Failure, Launcher, collect_failures, drive, record_invalid
from lowbit.files import atomic_write, keep_copy

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

_ALLOWED = (
    "choice(a,b), interval(low,high), tag(log, interval(low,high)), int(interval(low,high)), range(start,stop,step)"
)


@dataclass(frozen=True)
class Space:
    """What a search varies, by key, and the overrides that all its trials share."""

    fixed: tuple[str, ...]
    distributions: dict[str, BaseDistribution]

    def overrides(self, parameters: Mapping[str, object]) -> list[str]:
        """Return the overrides of a trial."""
        return [*self.fixed, *(f"{key}={parameters[key]}" for key in self.distributions)]


def parse_space(overrides: Sequence[str]) -> Space:
    """Turn Hydra's sweep overrides into distributions of Optuna; of several overrides of one key the last one counts.

    Raises:
        ConfigError: no override varies, one has no meaning as a distribution, or Optuna is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(["search needs the package optuna: run `pip install 'lowbit[search]'`"])
    parsed = OverridesParser.create().parse_overrides(C.quoted(overrides))
    last = {override.get_key_element(): override for override in parsed}
    searched = {key: override for key, override in last.items() if override.is_sweep_override()}
    if not searched:
        raise ConfigError([f"search: no override varies; give one of {_ALLOWED}, for example seed=1,2"])
    fixed = tuple(str(override.input_line) for key, override in last.items() if key not in searched)
    return Space(fixed, {key: _distribution(override) for key, override in searched.items()})


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        low, high, log = sweep.start, sweep.end, "log" in sweep.tags
        if low is None or high is None or not low < high or (log and low <= 0):
            problem = "above 0 " if log else ""
            raise ConfigError([f"{override.input_line}: the lower end must be {problem}and below the upper end"])
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    if isinstance(sweep, RangeSweep):
        values = sweep.range()
        if not isinstance(values, FloatRange):  # Optuna's own steps of 0.1 do not stop at 0.3 but next to it
            return IntDistribution(values[0], values[-1], step=values.step)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


@contextmanager
def open_study(name: str, space: Space, outputs: Path, base: str) -> Iterator[Study]:
    """Open the study of this space and config, and make it if there is none; one process at a time.

    Args:
        name: The file in sweeps/.
        space: What is searched.
        outputs: `paths.outputs`.
        base: Run id of the config without the space: a change of a file in conf/ or sweeps/ makes another study.

    Raises:
        ConfigError: another process has it open.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = outputs / "searches" / f"{name}.journal"
    journal.parent.mkdir(parents=True, exist_ok=True)
    content = "\n".join([base, *(f"{key}: {what}" for key, what in sorted(space.distributions.items()))])
    study_name = f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    try:
        with FileLock(journal.with_suffix(".lock"), blocking=False):
            recover(journal)
            storage = JournalStorage(JournalFileBackend(str(journal)))
            study = optuna.create_study(
                storage=storage, study_name=study_name, direction="maximize", load_if_exists=True
            )
            # The same seed would repeat the random trials that a search begins with after every interruption.
            study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
            yield study
    except Timeout as error:
        raise ConfigError([f"search {name}: another process is running it ({journal})"]) from error


def recover(journal: Path) -> None:
    """Keep the valid lines of a journal that was cut off or damaged, and say what is lost.

    Optuna numbers trials by the lines before, so that a lost line may make later ones senseless: those are dropped.
    """
    lines = journal.read_bytes().split(b"\n") if journal.exists() else [b""]
    ends_well = not lines[-1]
    lines = lines[:-1] if ends_well else lines
    valid = [line for line in lines if _is_log(line)]
    if ends_well and len(valid) == len(lines) and _can_be_replayed(valid):
        return
    count = len(valid)
    if not _can_be_replayed(valid):
        lengths = range(1, len(valid) + 1)
        count = bisect_left(lengths, True, key=lambda length: not _can_be_replayed(valid[:length]))
    copy = keep_copy(journal)  # not renamed: a search that is killed here would start afresh
    with atomic_write(journal) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in valid[:count]))
    print(
        f"{journal} was damaged: {count} of its {len(lines)} lines are whole and count on; the damaged file is {copy}",
        file=sys.stderr,
    )


def _is_log(line: bytes) -> bool:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"op_code", "worker_id"} <= content.keys()


def _can_be_replayed(lines: Sequence[bytes]) -> bool:
    from optuna.storages.journal._storage import JournalStorageReplayResult

    try:
        JournalStorageReplayResult("").apply_logs(map(json.loads, lines))
    except Exception:  # whatever Optuna trips over
        return False
    return True


class Search:
    """The trials of one call: those that an earlier process left unfinished, then new ones up to `trials` in total."""

    def __init__(self, study: Study, space: Space, trials: int) -> None:
        from optuna.trial import TrialState

        self.failures: list[Failure] = []
        self._study = study
        self._space = space
        found = study.get_trials(deepcopy=False)
        self._new = max(trials - len(found), 0)
        self._unfinished: list[tuple[int, dict[str, object]]] = []
        for trial in found:
            if trial.state is TrialState.RUNNING and trial.params.keys() == set(space.distributions):
                self._unfinished.append((trial.number, trial.params))
            elif trial.state is TrialState.RUNNING:  # the process died while it drew the parameters
                study.tell(trial.number, state=TrialState.FAIL)
        self._outputs: Path | None = None  # known once a trial was valid
        self._waiting: dict[str, list[int]] = {}  # trials by the id of the run that they wait for

    def run(self, launcher: Launcher, view: View) -> None:
        """Run the trials.

        Raises:
            KeyboardInterrupt: see `drive`; the same call again resumes the runs of unfinished trials.
        """

        def ended(job: SweepJob, code: int, reason: str) -> None:
            self.failures.extend(collect_failures(job, code, view, reason))
            self._tell(job)

        view.begin([], {})
        drive(launcher, view, lambda: self._following(launcher), ended)

    def _following(self, launcher: Launcher) -> Iterator[SweepJob]:
        while len(launcher.running) < launcher.slots and (trial := self._next()) is not None:
            number, parameters = trial
            job = self._job(number, parameters)
            if job is None:
                continue
            waiting = self._waiting.setdefault(job.run_id, [])
            waiting.append(number)
            if result(job) is not None:  # an earlier trial or run has the same parameters
                self._tell(job)
            elif len(waiting) == 1:
                yield job

    def _next(self) -> tuple[int, dict[str, object]] | None:
        if self._unfinished:
            return self._unfinished.pop(0)
        if not self._new:
            return None
        self._new -= 1
        trial = self._study.ask(self._space.distributions)
        return trial.number, trial.params

    def _job(self, number: int, parameters: dict[str, object]) -> SweepJob | None:
        """Return the trial's job. An invalid trial has failed; if none was valid before, the search ends."""
        label = " ".join(f"{key}={value}" for key, value in parameters.items())
        overrides = self._space.overrides(parameters)
        try:
            job = one_job(overrides, label)
        except ConfigError as error:
            self._fail(number)
            if self._outputs is None:
                raise
            job = invalid_job(overrides, label, error.problems, self._outputs, self._study.study_name)
            self.failures.append(record_invalid(job))
            return None
        self._outputs = job.outputs
        return job

    def _tell(self, job: SweepJob) -> None:
        run = result(job)
        for number in self._waiting.pop(job.run_id):
            if run is not None:
                self._study.tell(number, run["metrics"][objective(run)])
            elif not is_running(job.folder):  # else in another process; the next call takes its result
                self._fail(number)

    def _fail(self, number: int) -> None:
        from optuna.trial import TrialState

        self._study.tell(number, state=TrialState.FAIL)


def objective(run: dict[str, Any]) -> str:
    """Return the metric that is maximized: the primary one on the validation split; the test split stays unseen."""
    primary = str(run["primary_metric"])
    on_validation = f"val/{primary.rsplit('/', 1)[-1]}"
    return on_validation if on_validation in run["metrics"] else primary

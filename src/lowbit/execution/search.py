"""A search by Optuna whose trials are runs like any other; its storage is a file, so that it resumes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from lowbit.config.problems import ConfigError
from lowbit.execution.jobs import Job, invalid_job, one_job
from lowbit.execution.pool import Launcher
from lowbit.execution.space import Space
from lowbit.execution.states import is_running, result
from lowbit.execution.sweep import Failure, collect_failures, drive, refused
from lowbit.execution.views import View
from lowbit.files import keep_copy, replacing

if TYPE_CHECKING:
    from optuna import Study


def check_optuna() -> None:
    """Raise ConfigError where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(["search needs the package optuna: run `pip install 'lowbit[search]'`"])


@contextmanager
def open_study(name: str, space: Space, outputs: Path, base: str) -> Iterator[Study]:
    """Open the study of this space and config, a new one if either differs; one process at a time.

    Args:
        name: Of the file in sweeps/.
        space: What is searched.
        outputs: `paths.outputs`.
        base: Run id of the config without the space: what a file in conf/ or sweeps/ changes makes another study.

    Raises:
        ConfigError: another process has it open.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = outputs / "searches" / f"{name}.journal"
    journal.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(journal.with_suffix(".lock"), blocking=False):
            recover(journal)
            storage = JournalStorage(JournalFileBackend(str(journal)))
            study = optuna.create_study(
                storage=storage, study_name=_study_name(name, space, base), direction="maximize", load_if_exists=True
            )
            # The same seed would repeat the random trials that a search begins with after every interruption.
            study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
            yield study
    except Timeout as error:
        raise ConfigError([f"search {name}: another process is running it ({journal})"]) from error


def recover(journal: Path) -> None:
    """Keep what is whole of a journal that was cut off or damaged, and say what is lost.

    Optuna numbers trials by the lines before, so that a lost line may make those after it senseless: they are left out
    then.
    """
    lines = journal.read_bytes().split(b"\n") if journal.exists() else [b""]
    ends_well = not lines[-1]
    lines = lines[:-1] if ends_well else lines
    whole = [line for line in lines if _is_log(line)]
    if ends_well and len(whole) == len(lines) and _can_be_replayed(whole):
        return
    count = (
        len(whole)
        if _can_be_replayed(whole)
        else bisect_left(range(1, len(whole) + 1), True, key=lambda length: not _can_be_replayed(whole[:length]))
    )
    aside = keep_copy(journal)  # not renamed: a search that is killed here would start afresh
    with replacing(journal) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in whole[:count]))
    print(
        f"{journal} was damaged: {count} of its {len(lines)} lines are whole and count on; the damaged file is {aside}",
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
        self._trials = trials
        found = study.get_trials(deepcopy=False)
        self._count = len(found)
        running = [trial for trial in found if trial.state is TrialState.RUNNING]
        self._unfinished = [
            (trial.number, trial.params) for trial in running if trial.params.keys() == set(space.distributions)
        ]
        for trial in running:
            if trial.params.keys() != set(space.distributions):  # the process died while it drew them
                study.tell(trial.number, state=TrialState.FAIL)
        self._outputs: Path | None = None  # known once a trial was valid
        self._numbers: dict[str, list[int]] = {}  # of the trials that wait for a run, by its id

    def run(self, launcher: Launcher, view: View) -> None:
        """Run the trials.

        Raises:
            KeyboardInterrupt: see `drive`; the same call again resumes the runs of unfinished trials.
        """

        def ended(job: Job, code: int, reason: str) -> None:
            self.failures.extend(collect_failures(job, code, view, reason))
            self._tell(job)

        view.begin([], {})
        drive(launcher, view, lambda: self._following(launcher), ended)

    def _following(self, launcher: Launcher) -> Iterator[Job]:
        while len(launcher.running) < launcher.slots:
            trial = self._next()
            if trial is None:
                return
            number, parameters = trial
            job = self._job(number, parameters)
            if job is None:
                continue
            waiting = self._numbers.setdefault(job.run_id, [])
            waiting.append(number)
            if result(job) is not None:  # the same parameters as a trial, or a run, before
                self._tell(job)
            elif len(waiting) == 1:
                yield job

    def _job(self, number: int, parameters: dict[str, Any]) -> Job | None:
        """Return the trial's job. One that is not valid has failed; if none was valid before, the search ends."""
        label = " ".join(f"{key}={value}" for key, value in parameters.items())
        overrides = self._space.overrides(parameters)
        try:
            job = one_job(overrides, label)
        except ConfigError as error:
            self._study.tell(number, state=_fail())
            if self._outputs is None:
                raise
            job = invalid_job(overrides, label, error.problems, self._outputs, self._study.study_name)
            self.failures.append(refused(job))
            return None
        self._outputs = job.outputs
        return job

    def _next(self) -> tuple[int, dict[str, Any]] | None:
        if self._unfinished:
            return self._unfinished.pop(0)
        if self._count >= self._trials:
            return None
        self._count += 1
        trial = self._study.ask(self._space.distributions)
        return trial.number, trial.params

    def _tell(self, job: Job) -> None:
        run = result(job)
        for number in self._numbers.pop(job.run_id):
            if run is None and is_running(job.folder):
                continue  # in another process; the next call takes its result
            if run is None:
                self._study.tell(number, state=_fail())
            else:
                self._study.tell(number, run["metrics"][objective(run)])


def objective(run: dict[str, Any]) -> str:
    """Return the metric that is maximized: the primary one on the validation split; the test split stays unseen."""
    primary = str(run["primary_metric"])
    on_validation = f"val/{primary.rsplit('/', 1)[-1]}"
    return on_validation if on_validation in run["metrics"] else primary


def _study_name(name: str, space: Space, base: str) -> str:
    content = "\n".join([base, *(f"{key}: {what}" for key, what in sorted(space.distributions.items()))])
    return f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _fail() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL

"""A search: its space, its trials as runs, its storage."""

import pytest

pytest.importorskip("optuna")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from lowbit.config.problems import ConfigError
from lowbit.execution import search as search_module
from lowbit.execution.progress import View
from lowbit.execution.search import Search, objective, open_study, parse_space
from lowbit.execution.state import result


@pytest.mark.parametrize(
    ("override", "distribution"),
    [
        ("method=choice(ti_o, ti_g)", CategoricalDistribution(["ti_o", "ti_g"])),
        ("seed=1,2", CategoricalDistribution(["1", "2"])),
        ("optimizer.lr=interval(0.1, 0.5)", FloatDistribution(0.1, 0.5)),
        ("optimizer.lr=tag(log, interval(1e-4, 1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("seed=int(interval(1, 9))", IntDistribution(1, 9)),
        ("seed=range(1, 10, step=3)", IntDistribution(1, 7, step=3)),
        ("model.dropout=range(0.25, 0.8, step=0.25)", CategoricalDistribution(["0.25", "0.5", "0.75"])),
    ],
)
def test_sweep_overrides_are_distributions(override, distribution):
    space = parse_space(["data=digits", override])
    key = override.split("=")[0]
    assert space.fixed == ("data=digits",)
    assert space.distributions == {key: distribution}
    assert space.overrides({key: 3}) == ["data=digits", f"{key}=3"]


def test_last_override_of_a_key_counts():
    space = parse_space(["method=choice(a,b)", "seed=1,2", "method=ti_g"])
    assert space.fixed == ("method=ti_g",)
    assert list(space.distributions) == ["seed"]


@pytest.mark.parametrize("overrides", [["seed=1"], ["seed=interval(3, 2)"], ["a=tag(log, interval(0, 1))"]])
def test_space_that_is_none(overrides):
    with pytest.raises(ConfigError):
        parse_space(overrides)


class Runner:
    """A launcher whose jobs end at once, with a score that their parameter makes; it may die with some running."""

    def __init__(self, finish, slots=1, dies_at=None):
        self.slots, self.running, self.started = slots, {}, []
        self._finish, self._dies_at = finish, dies_at

    def start(self, job):
        self.running[job.run_id] = job
        self.started.append(job.run_id)
        if len(self.started) == self._dies_at:
            raise RuntimeError("kill -9")

    def poll(self):
        ended = list(self.running.values())
        for job in ended:
            value = float(job.overrides[-1].split("=")[1])
            self._finish(job, metrics={"test/accuracy": 0.0, "val/accuracy": 1 - abs(value - 0.7)})
        self.running = {}
        return [(job, 0) for job in ended]

    def interrupt(self):
        return True

    def kill(self):
        self.running = {}


@pytest.fixture
def space(job, monkeypatch):
    monkeypatch.setattr(
        search_module, "one_job", lambda overrides, label: job(label.replace("=", "_"), overrides=tuple(overrides))
    )
    return parse_space(["data=digits", "x=interval(0, 1)"])


def test_trials_are_runs_and_the_best_is_found(space, finish, tmp_path, capsys):
    with open_study("mine", space, tmp_path, "id") as study:
        search = Search(study, space, 8)
        runner = Runner(finish, slots=2)
        search.run(runner, View(2))
        assert search.failures == []
        assert len(study.trials) == 8 == len(runner.started)
        assert study.best_value == max(trial.value for trial in study.trials)
        assert study.best_value == pytest.approx(1 - abs(study.best_params["x"] - 0.7))
    assert "8 jobs: 8 done" in capsys.readouterr().out


def test_search_resumes_with_the_parameters_of_unfinished_trials(space, finish, tmp_path):
    """N counts all trials; what was running when the process died is the same run again."""
    dead = Runner(finish, dies_at=3)
    with pytest.raises(RuntimeError), open_study("mine", space, tmp_path, "id") as study:
        Search(study, space, 6).run(dead, View(1))
    second = Runner(finish)
    with open_study("mine", space, tmp_path, "id") as study:
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]
        Search(study, space, 6).run(second, View(1))
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6
        drawn = [trial.params["x"] for trial in study.trials]
    assert second.started[0] == dead.started[2]
    assert len(set(drawn)) == 6  # the resumed sampler does not repeat its first trials
    third = Runner(finish)
    with open_study("mine", space, tmp_path, "id") as study:
        Search(study, space, 6).run(third, View(1))
    assert third.started == []


def test_failed_job_is_a_failed_trial(space, finish, tmp_path):
    class Failing(Runner):
        def poll(self):
            ended, self.running = list(self.running.values()), {}
            return [(job, 1) for job in ended]

    with open_study("mine", space, tmp_path, "id") as study:
        search = Search(study, space, 2)
        search.run(Failing(finish), View(1))
        assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 2
    assert len(search.failures) == 2


@pytest.mark.parametrize(
    ("damage", "trials"),
    [
        (lambda lines: [*lines[:-1], lines[-1][:9]], 4),
        (lambda lines: [*lines, b"\x00\xff garbage"], 4),
        (lambda lines: [*lines, b"[]", b""], 4),
        (lambda lines: [*lines[:-3], b'{"op', *lines[-3:], b""], 4),
        (lambda lines: [lines[0], b"{}", *lines[1:], b""], 4),
        (lambda lines: [lines[0], b"lost", *lines[2:], b""], 4),
        (lambda lines: [b"lost", *lines[1:], b""], 0),  # the study itself: what follows makes no sense
        (lambda lines: [], 0),
    ],
)
def test_damaged_journal_keeps_its_whole_lines(damage, trials, space, finish, tmp_path, capsys):
    """What Optuna can still read counts on, in this call and in the next; the damaged file is set aside and named."""
    with open_study("mine", space, tmp_path, "id") as study:
        Search(study, space, 4).run(Runner(finish), View(1))
    journal = tmp_path / "searches" / "mine.journal"
    content = b"\n".join(damage(journal.read_bytes().splitlines()))
    journal.write_bytes(content)
    with open_study("mine", space, tmp_path, "id") as study:
        found = len(study.trials)
        assert found >= trials - 1
        Search(study, space, 5).run(Runner(finish), View(1))
    if content:
        assert str(journal) in capsys.readouterr().err
        assert journal.with_name("mine.journal.damaged").read_bytes() == content
    with open_study("mine", space, tmp_path, "id") as study:
        assert len(study.trials) == 5
    assert capsys.readouterr().err == ""


def test_another_config_or_space_is_another_study_in_the_same_file(space, tmp_path):
    with open_study("mine", space, tmp_path, "id") as study:
        study.ask(space.distributions)
    wider = type(space)(space.fixed, {"x": FloatDistribution(0, 2)})
    for other, base, trials in ((space, "other", 0), (wider, "id", 0), (space, "id", 1)):
        with open_study("mine", other, tmp_path, base) as study:
            assert len(study.trials) == trials


def test_one_process_at_a_time(space, tmp_path):
    first, second = (open_study("mine", space, tmp_path, "id") for _ in range(2))
    with first, pytest.raises(ConfigError, match="another process"):
        second.__enter__()


def test_test_split_is_not_searched_on(job, finish):
    one = job("one")
    finish(one)
    assert objective(result(one)) == "val/accuracy"
    finish(one, metrics={"test/accuracy": 0.5})
    assert objective(result(one)) == "test/accuracy"

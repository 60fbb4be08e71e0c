"""Jobs loaded at once: what `load` makes of each alone, from a few compositions. See also test_sweeps.py."""

from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.batch import load_jobs
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load

SETS = {
    "values that count elsewhere": ["quantizer.weight.bits=4,2", "quantizer.activation.bits=8", "quantizer=w4a8"],
    "a name that is part of another": ["data.name=mine,digits", "method.name=a"],
    "values of every type": [
        "optimizer.lr=1",
        "seed=1,'2'",
        "trainer.progress=true",
        "data.soft_labels=null",
        "trainer.precision=bf16_mixed",
        "paths.outputs='a b'",
    ],
    "values of the wrong type": ["optimizer.lr=fast"],
    "keys that are not there": ["optimizer.rate=1"],
    "keys of one choice only": ["method=ti_g,ternarybert", "method.stages.intervene.steps=7", "budget.steps=20"],
    "values out of range": ["optimizer.lr=-1,1", "data.batch_size=0"],
    "paths": ["data.dir=~/a", "paths.outputs=/home/jürgen/a b,~/b", "data=cola"],
    "seeds out of range": ["seed=-1,1,9223372036854775808,2"],
    "keys that the schema lacks": ["+data.more=1", "seed=1"],
    "additions and deletions": ["~method.losses.hidden", "+method.losses.own={kind:task,weight:0.5}"],
    "mappings and lists": ["budget={steps:7,epochs:null},{steps:9,epochs:null}"],
    "a rule that is an interpolation": ["quantizer.rules.0.weight.bits=4", "quantizer=w4a8"],
    "words of Hydra": ["hydra.job.name=x", "seed=1"],
    "no override": [],
}


@pytest.mark.parametrize("name", SETS)
def test_same_as_alone(name: str):
    """Config, typed and plain, run id, teacher and problems."""
    assert_same(C.expand(SETS[name]))


def assert_same(jobs: list[list[str]]) -> None:
    for job, found in zip(jobs, load_jobs(jobs), strict=True):
        if isinstance(found, ConfigError):
            with pytest.raises(ConfigError) as caught:
                load(job)
            assert found.problems == caught.value.problems
        else:
            cfg, config = load(job)
            assert found == (identity.resolved(cfg), config), job
            assert identity.run_id(found[0]) == identity.run_id(cfg)
            assert identity.cached_teacher(found[0]) == identity.cached_teacher(cfg)


def test_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Relative interpolations, those across groups, and mappings that replace one: no more is shared than may be."""
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    head = "# @package _global_\ndefaults: [/experiment/digits/_base]\n"
    (folder / "relative.yaml").write_text(head + "optimizer: {lr: 0.5, scale_lr: '${.lr}'}\n")
    (folder / "across.yaml").write_text(head + "optimizer: {lr: '${if_equal:${method.name},ti_g,0.1,0.2}'}\n")
    (folder / "linked.yaml").write_text(head + "quantizer: {operand: '${quantizer.activation}'}\n")
    (folder / "merged.yaml").write_text("# @package _global_\ndefaults: [linked]\nquantizer: {operand: {bits: 4}}\n")
    monkeypatch.chdir(tmp_path)
    jobs = [["experiment=relative", f"optimizer.lr={lr}"] for lr in (1, 2)]
    jobs += [["experiment=across", f"method={method}"] for method in ("ti_g", "ti_o")]
    jobs += [["experiment=linked", "quantizer.activation.bits=4"], ["experiment=merged"]]
    assert_same(jobs)


def test_composed_once_for_each_choice(monkeypatch: pytest.MonkeyPatch):
    """Two thousand jobs are as many compositions as there are choices on the longest axis, and one for each further."""
    calls = []
    original = ConfigLoaderImpl._compose_config_from_defaults_list

    def counted(self, *args, **kwargs):
        calls.append(args)
        return original(self, *args, **kwargs)

    jobs = C.expand(
        ["method=ternarybert,ti_o,ti_m,ti_g", "model=vit_micro,deit_tiny", "seed=range(1,251)", "optimizer.lr=1e-3"]
    )
    assert len(jobs) == 2000
    monkeypatch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", counted)
    loaded = [found for found in load_jobs(jobs) if not isinstance(found, ConfigError)]
    assert len(calls) <= 6
    assert len({identity.run_id(content) for content, _ in loaded}) == len(loaded) == 2000


def test_what_all_jobs_lack_is_told_once():
    jobs = C.expand(C.sweep_overrides("ti_glue", []))
    with pytest.raises(ConfigError) as caught:
        load_jobs(jobs)
    (problem,) = caught.value.problems
    assert problem.startswith("data.dir: no value")

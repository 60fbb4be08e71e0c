"""Run and teacher ids: every setting that can change a result changes the id, nothing else does."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from omegaconf import (
    BooleanNode,
    DictConfig,
    EnumNode,
    FloatNode,
    IntegerNode,
    ListConfig,
    Node,
    OmegaConf,
    StringNode,
)

from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.validate import load
from lowbit.recipes import build_recipe

# Written out again on purpose: whoever adds to identity.NOT_IDENTITY must say here that no result depends on it.
EXCLUDED = {
    "name",
    "sweep",
    "paths",
    "logger",
    "teacher.min_score",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.threads",
    "trainer.eval_every",
    "trainer.checkpoint_every",
    "trainer.log_every",
    "trainer.progress",
    "data.num_workers",
}

NOT_TEACHER_DATA = {"eval_batch_size", "soft_labels", "num_crops", "train_file"}


def other_value(node: Node) -> Any:
    """Return a value of the node's type that it does not have."""
    value = (node._dereference_node() if node._is_interpolation() else node)._value()
    match node:
        case BooleanNode():
            return not value
        case IntegerNode():
            return (value or 0) + 1
        case FloatNode():
            return (value or 0.0) + 0.25
        case EnumNode():
            return next(member for member in node.enum_type if member is not value)
        case StringNode():
            return f"{value}x"
        case ListConfig():
            kind = node._metadata.element_type
            return [*(node or []), "x" if kind is str else 3 if kind in (int, float) else next(iter(kind))]
        case DictConfig():
            schema = node._metadata.ref_type
            return schema() if dataclasses.is_dataclass(schema) else {}
    raise NotImplementedError(f"{type(node).__name__}: say here how to change it")


def leaves(cfg: DictConfig | ListConfig, prefix: str = "") -> Iterator[tuple[str, Node]]:
    """Yield the path and node of every value; optional parts that are null and lists of values count as one."""
    keys = range(len(cfg)) if isinstance(cfg, ListConfig) else list(cfg)
    for key in keys:
        node = cfg._get_node(key)
        path = f"{prefix}{key}"
        if node._is_interpolation() and isinstance(node, DictConfig):
            continue  # a rule that refers to a shared setting, which has leaves of its own
        container = isinstance(node, DictConfig | ListConfig) and not node._is_none()
        nested = isinstance(node, DictConfig) or (container and any(OmegaConf.is_config(item) for item in node))
        if container and nested:
            yield from leaves(node, f"{path}.")
        else:
            yield path, node


@contextmanager
def value_at(cfg: DictConfig, path: str, value: Any) -> Iterator[None]:
    """Give one key another value for the duration of the block: much faster than another config for each key."""
    parent, _, key = path.rpartition(".")
    place = OmegaConf.select(cfg, parent) if parent else cfg
    before = copy.deepcopy(place._get_node(int(key) if isinstance(place, ListConfig) else key))
    OmegaConf.update(cfg, path, value, merge=False)
    yield
    OmegaConf.update(cfg, path, before, merge=False)


def is_excluded(path: str) -> bool:
    return any(path == entry or path.startswith(f"{entry}.") for entry in EXCLUDED)


def test_every_leaf_changes_the_id_or_is_excluded(changed):
    cfg = changed("method=ti_g")
    original, content = identity.run_id(cfg), identity.resolved(cfg)
    seen = []
    for path, node in [*leaves(cfg)]:
        same = is_excluded(path) or path == "data.num_crops"  # of a soft-label store, and there is none
        with value_at(cfg, path, other_value(node)):
            assert (identity.run_id(cfg) == original) == same, path
            if is_excluded(path):
                assert identity.resolved(cfg) != content, f"{path} was not changed by the test"
        seen.append(path)
    assert OmegaConf.to_container(cfg) == OmegaConf.to_container(changed("method=ti_g")), "every value was put back"
    assert len(seen) > 100
    # A few of every kind, so that a walk that misses a part of the tree is noticed.
    assert {"seed", "data.train_size", "model.kind", "teacher.optimizer.lr", "quantizer.activation.granularity"} <= {
        *seen
    }
    assert {"method.losses.hidden.weight", "optimizer.max_grad_norm", "trainer.precision", "budget.steps"} <= {*seen}
    assert {"data.eval_batch_size", "quantizer.rules.0.match", "quantizer.rules.1.operands", "model.path"} <= {*seen}


def test_leaves_inside_stages_and_phases_change_the_id(changed):
    paths = {path for path, _ in leaves(changed("method=ti_g"))}
    assert "method.stages.intervene.intervention.phases.2.share" in paths
    assert "method.stages.intervene.steps" in paths
    assert "method.stages.plain.student" in paths
    assert "method.stages.plain.optimizer.lr" in paths


def test_excluded_entries_exist(changed):
    """An entry that names nothing would be a typo, and what it means would still be part of the identity."""
    cfg = changed("method=ti_g")
    assert set(identity.NOT_IDENTITY) == EXCLUDED
    for entry in EXCLUDED:
        parent, _, leaf = entry.rpartition(".")
        assert leaf in (OmegaConf.select(cfg, parent) if parent else cfg)


def test_equal_configs_have_equal_ids():
    """The same settings, said in other words, are the same run."""
    plain, _ = load(["method=ti_g", "seed=3", "optimizer.lr=0.002"])
    again, _ = load(["optimizer.lr=2e-3", "method=ti_g", "seed=3", "name=other", "paths.outputs=elsewhere"])
    spelled, _ = load(["seed=3", "optimizer.lr=0.002", "method=ti_g", "optimizer=adamw", "logger=none"])
    assert identity.run_id(plain) == identity.run_id(again) == identity.run_id(spelled)
    assert len(identity.run_id(plain)) == 12
    experiment, _ = load(["experiment=digits/ti_g"])
    by_hand, _ = load(
        ["method=ti_g", "teacher.budget.epochs=30", "teacher.optimizer.lr=3e-3", "budget.epochs=10", "sweep=demo"]
    )
    assert identity.run_id(experiment) == identity.run_id(by_hand)


def test_id_does_not_depend_on_the_order_of_keys(changed):
    cfg = changed("method=ti_g")
    container = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    turned = OmegaConf.create(dict(reversed(container.items())))
    assert identity.run_id(turned) == identity.run_id(cfg)


def test_resolved_is_plain_data(changed):
    resolved = identity.resolved(changed("method=ti_g"))
    assert resolved["name"] == "digits/ti_g"
    assert resolved["quantizer"]["rules"][0]["weight"]["kind"] == "twn"
    assert resolved["data"]["kind"] == "digits"


def test_teacher_id_is_shared_by_students_of_all_kinds(changed):
    original = identity.teacher_id(changed())
    for overrides in (
        ("method=ti_g",),
        ("method=ti_stochastic",),
        ("quantizer=w8a8",),
        ("optimizer=bert_adam",),
        ("scheduler=cosine",),
    ):
        assert identity.teacher_id(changed(*overrides)) == original, overrides
    same = {"seed": 7, "budget.epochs": 9, "optimizer.lr": 0.5, "name": "x", "sweep": "y", "paths.outputs": "z"}
    same |= {"trainer.threads": 3, "trainer.eval_every": 5, "data.num_workers": 2, "data.eval_batch_size": 8}
    for key, value in same.items():
        assert identity.teacher_id(changed(**{key: value})) == original, key


@pytest.mark.parametrize("part", ["data", "model", "teacher"])
def test_teacher_id_depends_on_every_setting_of_its_making(changed, part: str):
    cfg = changed()
    original = identity.teacher_id(cfg)
    for path, node in [*leaves(cfg[part], f"{part}.")]:
        same = is_excluded(path) or path.removeprefix("data.") in NOT_TEACHER_DATA
        with value_at(cfg, path, other_value(node)):
            assert (identity.teacher_id(cfg) == original) == same, path


def test_teacher_id_depends_on_precision(changed):
    cfg = changed()
    other = changed(**{"trainer.precision": "bf16_mixed"})
    assert identity.teacher_id(other) != identity.teacher_id(cfg)


def test_teacher_id_is_not_the_run_id(changed):
    assert identity.teacher_id(changed()) != identity.run_id(changed())


def test_jobs_of_a_sweep_are_the_runs_that_train_would_do():
    """`lowbit train METHOD` of a cell and the sweep's job are one run."""
    jobs = C.expand(C.sweep_overrides("demo", ["seed=2"]))
    ids = {identity.run_id(load(job)[0]) for job in jobs}
    assert len(ids) == 5
    alone, _ = load(["experiment=digits/ternarybert", "method=ti_m", "seed=2"])
    assert identity.run_id(alone) in ids


TWO_STAGES = """# Two stages.
name: mine
losses: {{logits: {{kind: logits}}}}
stages:
  {first}
  {second}
"""
WARM, LOW = "warm: {steps: 3, quantize: false}", "low: {steps: 3}"


def test_the_order_of_stages_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    ids = set()
    for first, second in ((WARM, LOW), (LOW, WARM)):
        (tmp_path / "conf" / "method" / "mine.yaml").write_text(TWO_STAGES.format(first=first, second=second))
        ids.add(identity.run_id(C.compose(["method=mine"])))
    assert len(ids) == 2


def test_a_folder_counts_by_its_content(tmp_path):
    def ids(path):
        cfg = C.compose(["teacher=path", f"teacher.path={path}"])
        return identity.run_id(cfg), identity.teacher_id(cfg)

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    before = ids(tmp_path / "a")
    assert before == ids(tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"other weights")
    assert not {*before} & {*ids(tmp_path / "a")}
    after = ids(tmp_path / "a")
    (tmp_path / "a" / "sentencepiece.bpe.model").write_bytes(b"vocabulary")
    assert not {*after} & {*ids(tmp_path / "a")}
    assert ids("hub/name") == ids("hub/name") != ids("hub/other")


def test_the_teacher_counts_only_where_one_is_needed():
    finetune = {identity.run_id(C.compose(["method=finetune", f"teacher.seed={seed}"])) for seed in (1, 2)}
    distilled = {identity.run_id(C.compose(["method=ternarybert", f"teacher.seed={seed}"])) for seed in (1, 2)}
    assert (len(finetune), len(distilled)) == (1, 2)


@pytest.mark.parametrize(
    ("student", "teacher", "counts"),
    [("teacher", "false", 2), ("narrow", "false", 2), ("fresh", "true", 2), ("fresh", "false", 1)],
)
def test_the_teacher_counts_wherever_the_recipe_needs_it(student: str, teacher: str, counts: int):
    stage = [f"method.stages.finetune.student={student}", f"method.stages.finetune.teacher={teacher}"]
    ids = set()
    for seed in (1, 2):
        cfg = C.compose(["method=finetune", *stage, f"teacher.seed={seed}"])
        ids.add(identity.run_id(cfg))
    assert len(ids) == counts
    assert build_recipe(C.to_config(cfg), 100).needs_teacher == (counts == 2)


def test_cached_teacher_is_that_of_runs_that_take_one_from_the_cache():
    """A sweep starts one job per missing teacher first."""
    cases = ([], ["method=finetune"], ["teacher=path", "teacher.path=somewhere"], ["teacher=hub"])
    with C.hydra_session():
        cfgs = [C.hydra_compose(C.ROOT_CONFIG, overrides=words) for words in cases]
    assert [identity.cached_teacher(cfg) for cfg in cfgs] == [identity.teacher_id(cfgs[0]), None, None, None]


def test_further_trainer_arguments_count_unless_they_only_profile():
    plain, _ = load([])
    assert "extra" in plain.trainer
    for extra, same in (("profiler=simple", True), ("detect_anomaly=true", True), ("deterministic=true", False)):
        cfg, _ = load([f"+trainer.extra.{extra}"])
        assert (identity.run_id(cfg) == identity.run_id(plain)) == same, extra
        assert (identity.teacher_id(cfg) == identity.teacher_id(plain)) == same, extra


def test_debug_runs_are_no_real_runs_and_differ():
    choices = [[], *([f"debug={name}"] for name in ("fast", "overfit", "limit", "profiler"))]
    assert len({identity.run_id(load(overrides)[0]) for overrides in choices}) == len(choices)


def test_trainer_presets_change_no_id():
    ids = {identity.run_id(load([f"trainer={name}"])[0]) for name in ("default", "cpu", "gpu", "ddp")}
    assert len(ids) == 1

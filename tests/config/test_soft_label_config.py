"""`data.soft_labels` in a config: what is refused before anything is loaded, and how a store counts in the run's id."""

import shutil
from pathlib import Path

import pytest

from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.budget import rows_per_step
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load
from lowbit.files import read_json, write_json
from lowbit.settings.losses import LossConfig, LossKind
from lowbit.soft_labels.files import complete_manifest, soft_label_problems, store_digest

MCKD = "experiment=digits/variation_aware_mckd"


def problems(*overrides: str, labelling: bool = False) -> list[str]:
    try:
        load(list(overrides), labelling=labelling)
    except ConfigError as error:
        return error.problems
    return []


def edit(folder: Path, part: str, **changes: object) -> None:
    path = folder / "manifest.json"
    manifest = read_json(path)
    manifest[part] = {**manifest[part], **changes}
    write_json(path, manifest)


def test_a_store_with_its_loss_is_valid(store: Path):
    assert problems(MCKD, f"data.soft_labels={store}") == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([MCKD], ["method.losses.soft_labels has a weight", "data.soft_labels=null", "lowbit softlabels FOLDER"]),
        ([MCKD, "data.soft_labels={store}", "data.augment=true"], ["data.augment=true", "set data.augment=false"]),
        (
            [MCKD, "data.soft_labels={store}", "method.losses.soft_labels.weight=0"],
            ["data.soft_labels=", "method.losses.soft_labels.weight=1"],
        ),
        ([MCKD, "data.soft_labels={store}", "data.num_crops=0"], ["data.num_crops=0", "greater than 0"]),
        ([MCKD, "data.soft_labels={store}", "data.num_crops=7"], ["data.num_crops=7", "6 crops per image", "1..6"]),
        ([MCKD, "data.soft_labels={store}", "data.batch_size=3"], ["data.num_crops=4", "data.batch_size=3", "1..3"]),
        ([MCKD, "data.soft_labels={store}/no"], ["no soft-label store", "lowbit softlabels {store}/no"]),
        (
            [
                "data=agreement",
                "model=bert_micro",
                "method=qat_task",
                "method.losses.soft_labels.weight=1",
                "data.soft_labels={store}",
            ],
            ["data=agreement is text", "set data.soft_labels=null"],
        ),
    ],
)
def test_one_problem_says_key_value_and_remedy(overrides: list[str], words: list[str], store: Path):
    (problem,) = problems(*(override.format(store=store) for override in overrides))
    for word in words:
        assert word.format(store=store) in problem


def test_a_loss_of_one_stage_is_named_by_its_stage():
    _, config = load(["method=qat_task"])
    config.method.stages["qat"].losses = {"mine": LossConfig(kind=LossKind.soft_labels)}
    (problem,) = soft_label_problems(config)
    assert "method.stages.qat.losses.mine has a weight" in problem


def test_a_truncated_or_unfinished_store_names_the_command_that_mends_it(store: Path):
    asked = (MCKD, f"data.soft_labels={store}")
    (store / "part-00000.safetensors").write_bytes(b"1234")
    (problem,) = problems(*asked)
    assert "part-00000.safetensors is truncated: 4 of 10 bytes; run `lowbit softlabels here`" in problem
    edit(store, "data", size=2000)
    (store / "part-00000.safetensors").write_bytes(b"0123456789")
    (problem,) = problems(*asked)
    assert "part-00001.safetensors has not been written yet: the store is unfinished" in problem
    (store / "manifest.json").write_text('{"format": 1, "data": {}}')
    (problem,) = problems(*asked)
    assert "no soft-label manifest" in problem


def test_a_store_without_labels_is_refused(store: Path):
    edit(store, "shards", **{"part-00000.safetensors": {"rows": 0, "bytes": 10, "sha256": "", "skipped": []}})
    with pytest.raises(ValueError, match="holds no labels"):
        complete_manifest(store, checksums=False)


def test_labelling_needs_no_store_yet(store: Path):
    """The overrides of the training serve for writing its store as well."""
    assert problems(MCKD, labelling=True) == []
    cfg, config = load([MCKD, "data.soft_labels=not/yet"], labelling=True)
    assert config.data.soft_labels is None
    trained, _ = load([MCKD, f"data.soft_labels={store}"])
    assert identity.teacher_id(cfg) == identity.teacher_id(trained)
    (problem,) = problems(MCKD, "seed=-1", labelling=True)
    assert problem.startswith("seed=-1")


def test_a_run_counts_the_content_of_its_store_and_not_its_path(store: Path, tmp_path: Path):
    def run_id(folder: Path | str) -> str:
        return identity.run_id(C.compose([MCKD, f"data.soft_labels={folder}"]))

    copy = tmp_path / "elsewhere"
    shutil.copytree(store, copy)
    manifest = read_json(copy / "manifest.json")
    write_json(copy / "manifest.json", {**manifest, "command": "lowbit softlabels elsewhere"})
    original = run_id(store)
    assert run_id(copy) == original
    for part, changes in (
        ("shards", {"part-00000.safetensors": {"rows": 1297, "bytes": 10, "sha256": "other", "skipped": []}}),
        ("teacher", {"id": "another"}),
        ("labels", {"classes": 11}),
    ):
        edit(copy, part, **changes)
        assert run_id(copy) not in {original, run_id(tmp_path / "nowhere")}, part
    assert run_id(tmp_path / "nowhere") != run_id(tmp_path / "nowhere2")
    assert store_digest(tmp_path / "nowhere") is None


def test_crops_per_step_count_only_with_a_store(store: Path):
    def ids(*overrides: str) -> tuple[str, str]:
        cfg = C.compose([MCKD, *overrides])
        return identity.run_id(cfg), identity.teacher_id(cfg)

    plain, stored = ids(), ids(f"data.soft_labels={store}")
    assert plain == ids("data.num_crops=2")
    assert plain[0] != stored[0]
    other = ids(f"data.soft_labels={store}", "data.num_crops=2")
    assert stored[0] != other[0]
    assert plain[1] == stored[1] == other[1]


@pytest.mark.parametrize(("batch_size", "num_crops", "rows"), [(64, 4, 16), (10, 4, 3), (3, 1, 3), (5, 5, 1)])
def test_a_batch_counts_crops(batch_size: int, num_crops: int, rows: int, store: Path):
    _, config = load(
        [MCKD, f"data.soft_labels={store}", f"data.batch_size={batch_size}", f"data.num_crops={num_crops}"]
    )
    assert rows_per_step(config.data) == rows
    config.data.soft_labels = None
    assert rows_per_step(config.data) == batch_size

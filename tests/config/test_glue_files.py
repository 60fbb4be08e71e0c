"""What is found out about GLUE files without torch: that they are there, how many rows, and what identifies them."""

import shutil
from pathlib import Path

import pytest

from lowbit.config import identity
from lowbit.config.glue_tasks import TASKS
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load
from lowbit.settings.data import GlueTask

OFFICIAL_ROWS = {"cola": 8551, "sst2": 67349, "mrpc": 3668, "stsb": 5749, "qqp": 363846, "mnli": 392702, "qnli": 104743}


def overrides(folder: Path, *more: str) -> list[str]:
    return ["data=cola", f"data.dir={folder}", "model=hf", "model.path=some/name", *more]


def problems(*texts: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(list(texts))
    return "\n".join(caught.value.problems)


@pytest.fixture
def copy(glue: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(glue, tmp_path / "glue"))


def ids(*texts: str) -> tuple[str, str]:
    cfg, _ = load(list(texts))
    return identity.run_id(cfg), identity.teacher_id(cfg)


def test_ids_follow_what_is_in_the_files(glue: Path, copy: Path):
    original = ids(*overrides(glue))
    assert ids(*overrides(copy)) == original, "the same rows elsewhere are the same run"
    (copy / "CoLA").rename(copy / "cola")
    assert ids(*overrides(copy)) == original
    (copy / "SST-2" / "train.tsv").unlink()
    assert ids(*overrides(copy)) == original, "another task's files do not matter"
    shutil.copy(copy / "cola" / "train.tsv", copy / "cola" / "other.tsv")
    assert ids(*overrides(copy, "data.train_file=other.tsv")) == original
    with (copy / "cola" / "other.tsv").open("a") as file:
        file.write("inv1\t1\t\tOne more.\n")
    run, teacher = ids(*overrides(copy, "data.train_file=other.tsv"))
    assert run != original[0]
    assert teacher == original[1], "augmented rows are for the student"
    for name in ("train.tsv", "dev.tsv"):
        with (copy / "cola" / name).open("a") as file:
            file.write("inv1\t1\t\tOne more.\n")
        changed = ids(*overrides(copy))
        assert all(new != old for new, old in zip(changed, original, strict=True))
        original = changed


def test_ids_of_hub_data_follow_the_revision():
    hub = ["data=cola", "data.source=hub", "model=hf", "model.path=some/name"]
    assert ids(*hub) == ids(*hub, "data.num_workers=2")
    assert ids(*hub)[0] != ids(*hub, "data.revision=abc")[0]


def test_budgets_count_the_rows_of_the_files(glue: Path):
    def steps(*more: str) -> str:
        return problems(*overrides(glue, "method=ti_g", "budget.epochs=3", "data.batch_size=2", *more))

    assert " of 9 steps" in steps(), "six rows in pairs, three times"
    assert " of 6 steps" in steps("data.train_size=4")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["data.dir=null"], ["data.dir: no value", "GLUE_DIR/CoLA/train.tsv", "data.dir=GLUE_DIR"]),
        (["data.dir=nowhere"], ["data.dir=nowhere: no such folder", "data.source=hub"]),
        (["data.task=null"], ["data.task: no value", "cola, sst2"]),
        (["data.train_size=99"], ["data.train_size=99", "1..6"]),
        (["data.train_file=x.tsv"], ["data.train_file=x.tsv: no such file"]),
        (["data.tokenizer=words"], ["no word list of its own", "data.tokenizer=model"]),
        (["data.max_length=null"], ["data.max_length=null: a text of more tokens than the model"]),
        (["data.max_length=2"], ["data.max_length=2: leaves no token for the text", "3 or more"]),
        (["data.max_length=-1"], ["data.max_length=-1"]),
        (["data=rte", "data.max_length=5"], ["data.max_length=5: leaves no token", "6 or more"]),
        (["data.revision=abc"], ["data.revision=abc: has no effect on data.source=folder"]),
        (["model=bert_micro"], ["no tokenizer", "use model=minilm or hf"]),
        (["model=vit_micro"], ["reads images, data=cola is text"]),
    ],
    ids=" ".join,
)
def test_what_cannot_work_is_refused(more: list[str], words: list[str], glue: Path):
    found = problems(*overrides(glue, *[text for text in more if "=" in text]))
    assert all(word in found for word in words), found


def test_a_missing_column_store_is_named_with_all_formats(copy: Path):
    (copy / "CoLA" / "train.tsv").unlink()
    found = problems(*overrides(copy))
    assert "no train.tsv, no train.parquet (or train-*.parquet) and no save_to_disk folder" in found


def test_an_empty_training_file_is_refused(copy: Path):
    (copy / "CoLA" / "train.tsv").write_text("\n\n")
    assert "the training file holds no row" in problems(*overrides(copy))


@pytest.mark.parametrize("key", ["task=cola", "dir=x", "revision=x", "train_file=x"])
def test_settings_of_files_are_refused_where_there_are_none(key: str):
    assert f"data.{key}: has no effect under data.kind=digits, only under glue" in problems(f"data.{key}")


def test_every_task_is_described():
    assert set(TASKS) == set(GlueTask)
    assert {task.name: TASKS[task].train_rows for task in GlueTask if task.name in OFFICIAL_ROWS} == OFFICIAL_ROWS

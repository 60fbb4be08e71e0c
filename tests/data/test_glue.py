"""GLUE rows in every format, bad rows, and the data module made of them."""

import os
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from lowbit.config.glue_files import find_split, train_rows
from lowbit.config.glue_tasks import TASKS, TRAIN
from lowbit.data import StepDataModule, build_datamodule, data_info
from lowbit.data.glue_rows import read_rows
from lowbit.settings.data import DataConfig, DataKind, DataSource, GlueTask, OnBadRow, Padding

PARQUET = Path(__file__).parents[1] / "fixtures" / "glue_parquet"
REAL = os.environ.get("LOWBIT_GLUE_DIR")


def config(task: str, folder: Path, **changes: Any) -> DataConfig:
    settings: dict[str, Any] = {"batch_size": 4, "eval_batch_size": 4, "max_length": 32, "length_grouped": True}
    return DataConfig(task, DataKind.glue, task=GlueTask[task], dir=str(folder), **(settings | changes))


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.mark.parametrize("task", list(GlueTask))
def test_rows_are_counted_without_reading_them(task: GlueTask, glue: Path):
    settings = config(task.name, glue)
    rows = read_rows(settings, TRAIN)
    assert len(rows) == data_info(settings).train_size == len(rows.texts[0]) == 6
    assert set(rows.labels) <= set(range(len(TASKS[task].labels))) or task is GlueTask.stsb
    assert all(text.strip() for column in rows.texts for text in column)


def test_labels_and_sentences_come_from_their_columns(glue: Path):
    rows = read_rows(config("mnli", glue), TRAIN)
    assert rows.labels == [0, 1, 2, 0, 1, 2]
    assert [column[4] for column in rows.texts] == ["He ran two miles.", "He was late."]
    assert read_rows(config("stsb", glue), TRAIN).labels == [5.0, 3.2, 0.0, 4.4, 1.25, 2.6]
    assert read_rows(config("rte", glue), TRAIN).labels == [0, 1, 0, 1, 0, 1]
    (sentences,) = read_rows(config("cola", glue), TRAIN).texts
    assert sentences[4] == 'She called it "late and left the café.', "an odd quotation mark is a mark like any other"


def test_parquet_and_saved_folders_hold_the_rows_of_the_table(glue: Path, tmp_path: Path):
    from datasets import Dataset, DatasetDict

    saved = {}
    for split in TASKS[GlueTask.rte].splits:
        table = read_rows(config("rte", glue), split)
        assert read_rows(config("rte", PARQUET), split) == table
        saved[split.split] = Dataset.from_dict(
            {**dict(zip(("sentence1", "sentence2"), table.texts, strict=True)), "label": table.labels}
        )
    DatasetDict(saved).save_to_disk(tmp_path / "rte")
    assert read_rows(config("rte", tmp_path), TRAIN) == read_rows(config("rte", glue), TRAIN)
    assert data_info(config("rte", tmp_path)).train_size == data_info(config("rte", PARQUET)).train_size == 6


def saved_split(names: list[str] | None = None) -> Any:
    """Return six rows of RTE whose stored labels are 0 1 0 1 0 1, with the names that these numbers have there."""
    import datasets

    texts = [f"row {number}" for number in range(6)]
    table = datasets.Dataset.from_dict({"sentence1": texts, "sentence2": texts, "label": [0, 1] * 3})
    if names is None:
        return table
    features = datasets.Features({**table.features, "label": datasets.ClassLabel(names=names)})
    # Not `cast_column`, which would refuse a number without a name.
    return datasets.Dataset(table.data.cast(features.arrow_schema), info=datasets.DatasetInfo(features=features))


@pytest.mark.parametrize("where", ["parquet", "save_to_disk", "hub"])
@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["entailment", "not_entailment"], [0, 1]),
        (["not_entailment", "entailment"], [1, 0]),
        (["1", "0"], [1, 0]),
        (["LABEL_1", "LABEL_0"], [1, 0]),
        (None, [0, 1]),
        (["entailment", "other"], r"row 2: label 'other', expected one of entailment, not_entailment"),
        (["entailment"], r"row 2: label 'number 1 without a name'"),
    ],
)
def test_a_stored_label_is_what_its_name_says(names, labels, where, tmp_path: Path, monkeypatch):
    """Issue: names in another order than ours permuted the labels of Parquet files and `save_to_disk` folders."""
    import datasets

    table = saved_split(names)
    changes: dict[str, Any] = {}
    if where == "hub":
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
        changes = {"source": DataSource.hub}
    elif where == "parquet":
        (tmp_path / "RTE").mkdir()
        table.to_parquet(tmp_path / "RTE" / "train.parquet")
    else:
        datasets.DatasetDict(train=table).save_to_disk(tmp_path / "RTE")
    settings = config("rte", tmp_path, **changes)
    if isinstance(labels, str):
        with pytest.raises(ValueError, match=labels):
            read_rows(settings, TRAIN)
    else:
        assert read_rows(settings, TRAIN).labels == labels * 3


def test_names_of_labels_that_official_files_spell_as_numbers(tmp_path: Path):
    import datasets

    rows = {"sentence": ["a", "b", "c"], "label": ["acceptable", "unacceptable", "1"]}
    (tmp_path / "CoLA").mkdir()
    datasets.Dataset.from_dict(rows).class_encode_column("label").to_parquet(tmp_path / "CoLA" / "train.parquet")
    assert read_rows(config("cola", tmp_path), TRAIN).labels == [1, 0, 1]


@pytest.mark.parametrize(
    ("add", "told"),
    [
        ("train.parquet", "may be train-00000-of-00001.parquet or train.parquet"),
        ("train-aug.parquet", "may be train-00000-of-00001.parquet or train-aug.parquet"),
        ("train-00000-of-00002.parquet", "written as 2 files, and these are here: train-00000-of-00002.parquet"),
        ("train.tsv", "may be train.tsv or train-00000-of-00001.parquet"),
        ("dataset_dict.json", "may be train-00000-of-00001.parquet or train/data-00000-of-00001.arrow"),
    ],
)
def test_files_that_may_be_copies_of_others_are_refused(add: str, told: str, tmp_path: Path):
    """Issue: `train.parquet` and its own shards were read as twice the rows."""
    import datasets

    folder = tmp_path / "RTE"
    folder.mkdir()
    saved_split().to_parquet(folder / "train-00000-of-00001.parquet")
    assert len(read_rows(config("rte", tmp_path), TRAIN)) == 6
    if add == "dataset_dict.json":
        datasets.DatasetDict(train=saved_split()).save_to_disk(folder)
    elif add.endswith(".tsv"):
        (folder / add).write_text("sentence1\tsentence2\tlabel\n")
    else:
        saved_split().to_parquet(folder / add)
    with pytest.raises(ValueError, match=told):
        find_split(config("rte", tmp_path), TRAIN)


def test_a_text_of_a_table_that_is_not_utf8_is_a_bad_row(tmp_path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "RTE").mkdir()
    texts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"caf\xe9"]).buffers())
    table = pa.table({"sentence1": ["a", "b"], "sentence2": texts, "label": [0, 1]})
    parquet.write_table(table, tmp_path / "RTE" / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet row 2: sentence2 is not UTF-8"):
        read_rows(config("rte", tmp_path), TRAIN)
    assert len(read_rows(config("rte", tmp_path, on_bad_row=OnBadRow.skip), TRAIN)) == 1


def test_numbered_files_without_a_total_are_one_split(tmp_path: Path):
    (tmp_path / "RTE").mkdir()
    for number in range(2):
        saved_split().to_parquet(tmp_path / "RTE" / f"train-{number}.parquet")
    assert len(read_rows(config("rte", tmp_path), TRAIN)) == train_rows(config("rte", tmp_path)) == 12


def test_a_saved_split_is_what_its_manifest_lists(tmp_path: Path):
    """Issue: `cache-*.arrow`, which `.map` leaves there, was read as more rows."""
    import datasets

    folder, settings = tmp_path / "RTE", config("rte", tmp_path)
    datasets.DatasetDict(train=saved_split()).save_to_disk(folder, num_shards={"train": 2})
    whole = read_rows(settings, TRAIN)
    datasets.load_from_disk(folder)["train"].map(lambda row: {"sentence1": row["sentence1"].upper()})
    assert list(folder.glob("train/cache-*.arrow"))
    assert read_rows(settings, TRAIN) == whole
    assert len(whole) == train_rows(settings) == 6
    (folder / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match=r"state\.json lists train/data-00001-of-00002\.arrow, which is not there"):
        train_rows(settings)
    for content in ("", "[]", '{"_data_files": [{}]}', '{"_data_files": [{"filename": "../x.arrow"}]}'):
        (folder / "train" / "state.json").write_text(content)
        with pytest.raises(ValueError, match=r"state\.json .*write the folder again with save_to_disk"):
            train_rows(settings)


def test_the_hub_gives_rows_of_the_pinned_revision(glue: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    asked = []

    def load(*names: str, split: str, revision: str) -> Any:
        asked.append((*names, split, revision))
        return datasets.Dataset.from_parquet(str(PARQUET / "RTE" / f"{split}-00000-of-00001.parquet"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    settings = config("rte", glue, source=DataSource.hub, revision="abc")
    assert read_rows(settings, TRAIN) == read_rows(config("rte", glue), TRAIN)
    assert asked == [("nyu-mll/glue", "rte", "train", "abc")]
    assert data_info(settings).train_size == 2490, "known without a look at the data"


def damaged(glue: Path, tmp_path: Path, task: str, lines: list[str]) -> DataConfig:
    """Return a config whose training file has more lines."""
    folder = tmp_path / TASKS[GlueTask[task]].folder
    shutil.copytree(glue / folder.name, folder)
    with (folder / "train.tsv").open("a", encoding="latin-1") as file:
        file.writelines(line + "\n" for line in lines)
    return config(task, tmp_path)


@pytest.mark.parametrize(
    ("task", "line", "told"),
    [
        ("cola", "inv1\t1\t\tYes.\tmore", "train.tsv:8: 5 columns, expected 4"),
        ("cola", "inv1\t2\t\tYes.", "train.tsv:8: label '2', expected one of 0, 1"),
        ("cola", "inv1\t1\t\t ", "train.tsv:8: sentence is empty"),
        ("cola", "inv1\t1\t\tcaf\xe9", "train.tsv:8: sentence is not UTF-8"),
        ("rte", "7\tOne.\tTwo.\tmaybe", "train.tsv:9: label 'maybe', expected one of entailment, not_entailment"),
        ("stsb", "\t".join(["7"] * 7 + ["a", "b", "5.5"]), "train.tsv:9: label '5.5', expected a number from 0 to 5"),
        ("stsb", "\t".join(["7"] * 7 + ["a", "b", "nan"]), "train.tsv:9: label 'nan', expected a number from 0 to 5"),
    ],
)
def test_a_bad_row_is_named_or_left_out(task: str, line: str, told: str, glue: Path, tmp_path: Path):
    settings = damaged(glue, tmp_path, task, ["", line])
    with pytest.raises(ValueError, match="1 bad row:") as caught:
        read_rows(settings, TRAIN)
    assert told in str(caught.value)
    settings.on_bad_row = OnBadRow.skip
    rows = read_rows(settings, TRAIN)
    assert (len(rows), len(rows.bad)) == (6, 1)
    assert data_info(settings).train_size == 6


def test_many_bad_rows_are_counted_and_the_first_are_shown(glue: Path, tmp_path: Path):
    settings = damaged(glue, tmp_path, "cola", ["x"] * 9)
    with pytest.raises(ValueError, match=r"9 bad rows:(\n.*){5}\n    and 4 more\n"):
        read_rows(settings, TRAIN)


def test_a_file_that_is_no_table_is_named(glue: Path, tmp_path: Path):
    settings = damaged(glue, tmp_path, "cola", ["x" * 200_000])
    with pytest.raises(ValueError, match=r"train\.tsv:\d+ cannot be read as tab-separated text: field larger"):
        read_rows(settings, TRAIN)


def test_a_wrong_header_names_the_columns(glue: Path, tmp_path: Path):
    shutil.copytree(glue / "CoLA", tmp_path / "SST-2")
    with pytest.raises(ValueError, match=r"train\.tsv:1: the header lacks sentence and label; it has inv1, 1"):
        read_rows(config("sst2", tmp_path), TRAIN)


def test_a_file_without_usable_rows_is_refused(tmp_path: Path):
    (tmp_path / "SST-2").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\nx\n")
    with pytest.raises(ValueError, match="no usable row"):
        read_rows(config("sst2", tmp_path, on_bad_row=OnBadRow.skip), TRAIN)


def test_sizes_take_the_first_rows_and_no_more_than_there_are(glue: Path, tokenizer: Any):
    data = build_datamodule(config("cola", glue, train_size=5, eval_size=3), 0, tokenizer)
    whole = build_datamodule(config("cola", glue), 0, tokenizer)
    assert (len(data.splits.train), len(data.splits.validation)) == (5, 3)
    assert torch.equal(data.splits.train[4]["input_ids"], whole.splits.train[4]["input_ids"])
    with pytest.raises(ValueError, match=r"data\.train_size=7: cola has 6 such rows"):
        data_info(config("cola", glue, train_size=7))
    with pytest.raises(ValueError, match=r"data\.eval_size=9: cola has 4 such rows"):
        build_datamodule(config("cola", glue, eval_size=9), 0, tokenizer).setup("fit")


def test_an_augmented_file_replaces_the_training_rows(glue: Path, tmp_path: Path):
    shutil.copytree(glue / "CoLA", tmp_path / "CoLA")
    train = (glue / "CoLA" / "train.tsv").read_text()
    (tmp_path / "CoLA" / "train_aug.tsv").write_text(train + train)
    settings = config("cola", tmp_path, train_file="train_aug.tsv")
    assert data_info(settings).train_size == len(read_rows(settings, TRAIN)) == 12
    with pytest.raises(ValueError, match=r"data\.train_file=other\.tsv: no such file"):
        data_info(config("cola", tmp_path, train_file="other.tsv"))


def batches(data: StepDataModule, count: int, first: int = 0) -> list[dict[str, torch.Tensor]]:
    data.first_step = first
    return list(islice(data.train_dataloader(), count))


@pytest.mark.parametrize("task", ["cola", "stsb", "mnli"])
@pytest.mark.parametrize("padding", list(Padding))
def test_batches_of_the_data_module(task: str, padding: Padding, glue: Path, tokenizer: Any):
    data = build_datamodule(config(task, glue, padding=padding), 3, tokenizer)
    found = batches(data, 4)
    assert [len(batch["labels"]) for batch in found] == [4, 2, 4, 2]
    for batch in found:
        width = int(batch["attention_mask"].sum(1).max()) if padding is Padding.longest else 32
        assert batch["input_ids"].shape == batch["token_type_ids"].shape == (len(batch["labels"]), width)
        assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all()
        assert batch["token_type_ids"].any() == (task != "cola")
    assert found[0]["labels"].dtype == (torch.float32 if task == "stsb" else torch.int64)
    resumed = batches(build_datamodule(config(task, glue, padding=padding), 3, tokenizer), 2, first=2)
    assert all(torch.equal(one[key], other[key]) for one, other in zip(resumed, found[2:], strict=True) for key in one)


def test_grouping_counts_only_where_batches_are_padded_to_their_longest(glue: Path, tokenizer: Any):
    def labels(**changes: Any) -> list[list[float]]:
        data = build_datamodule(config("stsb", glue, **changes), 0, tokenizer)
        return [batch["labels"].tolist() for batch in batches(data, 6)]

    assert labels() != labels(length_grouped=False)
    assert labels(padding=Padding.max_length) == labels(padding=Padding.max_length, length_grouped=False)


def test_mnli_has_two_validation_sets_and_no_test_set(glue: Path, tokenizer: Any):
    data = build_datamodule(config("mnli", glue), 0, tokenizer)
    assert data.info.more_validation == ("mismatched",)
    assert data.info.primary_metric == "val/accuracy"
    matched, mismatched = data.val_dataloader()
    assert [sum(len(batch["labels"]) for batch in loader) for loader in (matched, mismatched)] == [4, 3]
    assert data.splits.test is None


def test_the_cache_is_of_these_rows_this_tokenizer_and_this_length(glue: Path, tmp_path: Path, tokenizer: Any, capsys):
    files = tmp_path / "glue"
    shutil.copytree(glue, files)

    def tokenized(**changes: Any) -> int:
        build_datamodule(config("cola", files, **changes), 0, tokenizer, cache=tmp_path / "cache").setup("fit")
        return capsys.readouterr().out.count("tokenizing")

    assert tokenized() == 2
    assert (
        tokenized() == tokenized(batch_size=2) == tokenized(padding=Padding.max_length) == tokenized(train_size=3) == 0
    )
    assert tokenized(max_length=12) == 2
    with (files / "CoLA" / "train.tsv").open("a") as file:
        file.write("inv1\t1\t\tOne more.\n")
    assert tokenized() == 1
    tokenizer_with_more = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    tokenizer_with_more.add_tokens(["gardener's"])
    build_datamodule(config("cola", files), 0, tokenizer_with_more, cache=tmp_path / "cache").setup("fit")
    assert capsys.readouterr().out.count("tokenizing") == 2


def test_cached_rows_are_the_rows(glue: Path, tmp_path: Path, tokenizer: Any):
    plain = build_datamodule(config("stsb", glue), 1, tokenizer)
    build_datamodule(config("stsb", glue), 1, tokenizer, cache=tmp_path).setup("fit")
    again = build_datamodule(config("stsb", glue), 1, tokenizer, cache=tmp_path)
    pairs = list(zip(batches(plain, 3), batches(again, 3), strict=True))
    assert all(torch.equal(one[key], other[key]) for one, other in pairs for key in one)


@pytest.mark.skipif(REAL is None, reason="LOWBIT_GLUE_DIR names no folder of the official files")
@pytest.mark.parametrize(("task", "counts"), [("cola", (8_551, 1_043)), ("sst2", (67_349, 872))])
def test_official_row_counts(task: str, counts: tuple[int, int]):
    assert REAL is not None
    settings = config(task, Path(REAL))
    assert tuple(len(read_rows(settings, split)) for split in TASKS[GlueTask[task]].splits) == counts
    assert data_info(settings).train_size == TASKS[GlueTask[task]].train_rows == counts[0]

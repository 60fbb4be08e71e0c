"""XGLUE rows of the official files, of Parquet files and of the hub, bad rows, and the data module made of them."""

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from lowbit.config.xglue_tasks import XGLUE_TASKS
from lowbit.data import build_datamodule, data_info
from lowbit.data.xglue_rows import read_sentences, read_texts
from lowbit.settings.data import DataConfig, DataKind, DataSource, OnBadRow, XglueTask

ROWS = {"xnli": 6, "pawsx": 4, "nc": 5, "qadsm": 4, "wpr": 5, "qam": 4, "ner": 4, "pos": 3}


def config(task: str, folder: Path, **changes: Any) -> DataConfig:
    settings: dict[str, Any] = {"batch_size": 2, "eval_batch_size": 2, "language": "en", "languages": ["en", "de"]}
    settings |= {"xglue_task": XglueTask[task], "dir": str(folder)}
    return DataConfig(task, DataKind.xglue, **(settings | changes))


def read(settings: DataConfig, part: str = "train", language: str = "en") -> Any:
    tags = XGLUE_TASKS[settings.xglue_task].tags
    return (read_sentences if tags else read_texts)(settings, part, language)


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.mark.parametrize("task", [task.name for task in XglueTask])
def test_rows_are_counted_without_reading_them(task: str, xglue: Path):
    settings = config(task, xglue)
    assert len(read(settings)) == data_info(settings).train_size == ROWS[task]


def test_texts_and_labels_come_from_their_columns(xglue: Path):
    assert read(config("xnli", xglue)).labels == [0, 1, 2, 0, 1, 2], "`contradictory` is contradiction"
    german = read(config("xnli", xglue), "dev", "de")
    assert [column[0] for column in german.texts] == ["Ein Hund bellt .", "Ein Hund macht Lärm ."]
    assert german.labels == [0, 2, 1]
    rows = read(config("pawsx", xglue))
    assert (rows.texts[0][3], rows.labels) == ("Rain fell all day .", [1, 0, 0, 1])
    assert read(config("nc", xglue)).labels == [1, 0, 2, 3, 9]
    rows = read(config("wpr", xglue))
    assert (rows.texts[0][0], rows.texts[1][0]) == ("opening hours museum", "City museum Open from ten to six .")
    assert rows.labels == [4, 1, 0, 3, 2]


def test_a_first_line_that_names_columns_is_no_row_and_one_that_does_not_is(xglue: Path, tmp_path: Path):
    shutil.copytree(xglue, tmp_path, dirs_exist_ok=True)
    settings = config("pawsx", tmp_path)
    file = tmp_path / "PAWSX" / "en" / "train.tsv"
    with_numbers = read(settings)
    header, *lines = file.read_text().splitlines()
    for content in (lines, [line.split("\t", 1)[1] for line in (header, *lines)]):
        file.write_text("\n".join(content))
        assert read(settings) == with_numbers
        assert data_info(settings).train_size == 4


def test_sentences_are_words_with_tags(xglue: Path):
    rows = read(config("ner", xglue))
    assert rows.words[0] == ["Ann", "Lee", "lives", "in", "Rome", "."]
    assert rows.tags[0] == [1, 2, 0, 0, 5, 0]
    assert len(rows.words) == len(rows.tags) == 4


def damaged(xglue: Path, tmp_path: Path, task: str, line: str) -> DataConfig:
    shutil.copytree(xglue, tmp_path, dirs_exist_ok=True)
    with (tmp_path / XGLUE_TASKS[XglueTask[task]].file("train", "en")).open("a", encoding="latin-1") as file:
        file.write(line + "\n")
    return config(task, tmp_path)


@pytest.mark.parametrize(
    ("task", "line", "told"),
    [
        ("xnli", "One .\tTwo .", r"train\.en\.tsv:8: 2 columns, expected 3"),
        ("xnli", "One .\tTwo .\tmaybe", r"train\.en\.tsv:8: label 'maybe', expected one of entailment, neutral"),
        ("pawsx", "One .\tTwo .\t1", r"train\.tsv:6: 3 columns, expected 4"),
        ("nc", " \tText .\tsports", r"en\.train:6: news_title is empty"),
        ("nc", "Title\tcaf\xe9\tsports", r"en\.train:6: news_body is not UTF-8"),
        ("wpr", "query\t \t\tGood", r"en\.train:6: web_page_title and web_page_snippet is empty"),
        ("wpr", "query\ta\tb\t5", r"en\.train:6: label '5', expected one of Bad"),
        ("ner", "\nOne O\nTwo\n", r"en\.train:26: line 27 has 1 cells, expected a word and its tag"),
        ("pos", "\nOne NUM\nTwo DIGIT\n", r"en\.train:20: word 2: tag 'DIGIT', expected one of ADJ"),
    ],
)
def test_a_bad_row_is_named_or_left_out(task: str, line: str, told: str, xglue: Path, tmp_path: Path):
    settings = damaged(xglue, tmp_path, task, line)
    with pytest.raises(ValueError, match=rf"(?s)1 bad row:.*{told}"):
        read(settings)
    settings.on_bad_row = OnBadRow.skip
    rows = read(settings)
    assert (len(rows), len(rows.bad)) == (ROWS[task], 1)
    assert data_info(settings).train_size == ROWS[task]


def test_words_may_hold_blanks_of_other_kinds(xglue: Path, tmp_path: Path):
    shutil.copytree(xglue, tmp_path, dirs_exist_ok=True)
    (tmp_path / "POS" / "de.dev").write_text("10\u00a0000 NUM\nEuro\tNOUN\r\n \nJa INTJ")
    rows = read(config("pos", tmp_path), "dev", "de")
    assert rows.words == [["10\u00a0000", "Euro"], ["Ja"]]


@pytest.mark.parametrize("task", ["wpr", "ner"])
def test_parquet_files_and_the_hub_hold_the_rows_of_the_official_file(
    task: str, xglue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import datasets

    official, known = read(config(task, xglue)), XGLUE_TASKS[XglueTask[task]]
    values = [official.words, official.tags] if known.tags else [*official.texts, [""] * ROWS[task], official.labels]
    file = tmp_path / known.folder / "train-00000-of-00001.parquet"
    file.parent.mkdir()
    table = datasets.Dataset.from_dict(dict(zip(known.columns, values, strict=True)))
    table.to_parquet(file)
    table.to_parquet(file.with_name("validation.de.parquet"))
    settings = config(task, tmp_path)
    assert read(settings) == read(settings, "dev", "de") == official
    with pytest.raises(ValueError, match=rf"no {known.folder}/.*en\.dev, and no validation\.en\.parquet"):
        read(settings, "dev", "en")
    asked = []

    def load(*names: str, split: str, revision: str) -> Any:
        asked.append((*names, split, revision))
        if revision == "main":
            raise RuntimeError("Dataset scripts are no longer supported, but found xglue.py")
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = config(task, tmp_path, source=DataSource.hub, dir=None)
    assert read(hub, "dev", "fr") == official
    assert asked == [("microsoft/xglue", task, "validation.fr", "refs/convert/parquet")]
    assert data_info(hub).train_size == known.train_rows
    with pytest.raises(ValueError, match=r"run no loading scripts.*data\.revision=refs/convert/parquet.*XGLUE_DIR/"):
        read(config(task, tmp_path, source=DataSource.hub, revision="main"))


@pytest.mark.parametrize("on_hub", [False, True])
@pytest.mark.parametrize(
    ("task", "names", "labels"),
    [
        ("xnli", ["contradiction", "entailment", "neutral"], [2, 0, 1]),
        ("pawsx", ["same", "different"], [1, 0]),
        ("qam", ["True", "False"], [1, 0]),
        ("wpr", ["Perfect", "Bad"], [4, 0]),
        ("ner", ["I-PER", "O", "B-PER"], [2, 0, 1]),
        ("pos", ["X", "NOUN", "WORD"], r"word 3: tag 'WORD', expected one of ADJ"),
        ("nc", ["sports", "chess"], r"row 2: label 'chess', expected one of foodanddrink"),
    ],
)
def test_a_stored_label_is_what_its_name_says(task, names, labels, on_hub, tmp_path: Path, monkeypatch):
    import datasets

    known = XGLUE_TASKS[XglueTask[task]]
    label: Any = datasets.ClassLabel(names=names)
    stored: list[Any] = list(range(len(names)))
    columns: dict[str, Any] = {name: [f"text {number}" for number in stored] for name in known.columns}
    if known.tags:
        stored, columns, label = [stored], {"words": [["a"] * len(names)]}, datasets.List(label)
    columns[known.columns[-1]] = stored
    table = datasets.Dataset.from_dict(columns).cast_column(known.columns[-1], label)
    (tmp_path / known.folder).mkdir()
    table.to_parquet(tmp_path / known.folder / "train.parquet")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    settings = config(task, tmp_path, **({"source": DataSource.hub, "dir": None} if on_hub else {}))
    if isinstance(labels, str):
        with pytest.raises(ValueError, match=labels):
            read(settings)
    else:
        rows = read(settings)
        assert (rows.tags[0] if known.tags else rows.labels) == labels


def test_every_language_is_a_validation_split(xglue: Path, tokenizer: Any):
    data = build_datamodule(config("xnli", xglue, languages=["fr", "de", "en"]), 0, tokenizer)
    assert data.info.more_validation == ("fr", "de")
    assert data.info.primary_metric == "val_mean/accuracy"
    loaders = data.val_dataloader()
    assert [sum(len(batch["labels"]) for batch in loader) for loader in loaders] == [3, 2, 3]
    alone = data_info(config("xnli", xglue, languages=["en"]))
    assert (alone.more_validation, alone.primary_metric) == ((), "val/accuracy")


def test_a_query_and_the_page_are_a_pair_and_queries_are_numbered(xglue: Path, tokenizer: Any):
    data = build_datamodule(config("wpr", xglue, eval_batch_size=5), 0, tokenizer)
    (batch,) = data.val_dataloader()[0]
    assert batch["ranked"].tolist() == [[4, 0], [1, 0], [0, 0], [3, 1], [0, 1]]
    assert set(batch["token_type_ids"].unique().tolist()) == {0, 1}


def test_cached_tags_are_the_tags(xglue: Path, tmp_path: Path, tokenizer: Any, capsys):
    def batches() -> list[dict[str, torch.Tensor]]:
        data = build_datamodule(config("ner", xglue), 1, tokenizer, cache=tmp_path)
        return [*islice(data.train_dataloader(), 3), *data.val_dataloader()[1]]

    pairs = list(zip(batches(), batches(), strict=True))
    assert all(torch.equal(one[key], other[key]) for one, other in pairs for key in one)
    assert capsys.readouterr().out.count("tokenizing ner") == 3, "train, dev in English and in German, once each"


def test_words_beyond_the_length_are_counted_aloud(xglue: Path, tokenizer: Any):
    data = build_datamodule(config("ner", xglue, max_length=5, languages=["en"]), 0, tokenizer)
    with pytest.warns(UserWarning, match=r"have no token.*data\.max_length=5") as told:
        data.setup("fit")
    assert [str(one.message).split(" have")[0] for one in told] == [
        "data=ner: 9 words of train in en",
        "data=ner: 3 words of dev in en",
    ]
    assert max(batch["labels"].shape[1] for batch in islice(data.train_dataloader(), 2)) <= 5


def test_another_number_of_rows_on_the_hub_is_no_silent_cut(tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    import datasets

    rows = {"words": [["a", "b"]] * 3, "ner": [[0, 1]] * 3}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict(rows))
    hub = config("ner", Path(), source=DataSource.hub, dir=None)
    with pytest.raises(ValueError, match=r"has 3 training rows of ner, not 14042: set data\.on_bad_row=skip"):
        build_datamodule(hub, 0, tokenizer).setup("fit")
    hub.on_bad_row = OnBadRow.skip
    data = build_datamodule(hub, 0, tokenizer)
    data.setup("fit")
    assert len(data.splits.train) == 3

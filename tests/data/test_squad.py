"""SQuAD's questions from files and hub, bad ones, and the data module made of them."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from lowbit.data import StepDataModule, build_datamodule, build_metric, data_info
from lowbit.data.squad_rows import read_questions
from lowbit.settings.data import DataConfig, DataKind, DataSource, OnBadRow, Padding, SquadVersion

VERSIONS = {"v1.1": SquadVersion.v1_1, "v2.0": SquadVersion.v2_0}


def config(folder: Path, version: str = "v1.1", **changes: Any) -> DataConfig:
    settings = {"batch_size": 4, "eval_batch_size": 3, "max_length": 40, "doc_stride": 12, "max_question_length": 16}
    whole = {"version": VERSIONS[version], "dir": str(folder), "length_grouped": True, **settings, **changes}
    return DataConfig("squad", DataKind.squad, **whole)


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.mark.parametrize(("version", "counts"), [("v1.1", (6, 4)), ("v2.0", (7, 5))])
def test_questions_of_the_official_layout(version: str, counts: tuple[int, int], squad: Path):
    settings = config(squad, version)
    train, dev = read_questions(settings, "train"), read_questions(settings, "dev")
    assert (len(train), len(dev)) == counts
    assert data_info(settings).train_size == counts[0]
    assert dev.answers[0] == ["flat islands", "on flat islands"]
    for found in (train, dev):
        for context, answers, (start, end) in zip(found.contexts, found.answers, found.spans, strict=True):
            assert context[start:end] == answers[0] if answers else (start, end) == (-1, -1)
    assert train.answers.count([]) == dev.answers.count([]) == (version == "v2.0")


def test_the_hub_gives_the_same_questions_of_the_pinned_revision(squad: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    asked = []

    def load(*names: str, split: str, revision: str) -> Any:
        asked.append((*names, split, revision))
        part = {"train": "train", "validation": "dev"}[split]
        content = json.loads((squad / f"{part}-v2.0.json").read_text())
        rows = [
            {
                "context": paragraph["context"],
                "question": entry["question"],
                "answers": {key: [answer[key] for answer in entry["answers"]] for key in ("text", "answer_start")},
            }
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for entry in paragraph["qas"]
        ]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    settings = config(squad, "v2.0", source=DataSource.hub, revision="abc", dir=None)
    assert read_questions(settings, "dev") == read_questions(config(squad, "v2.0"), "dev")
    assert read_questions(settings, "train") == read_questions(config(squad, "v2.0"), "train")
    assert asked == [("rajpurkar/squad_v2", split, "abc") for split in ("validation", "train")]
    assert data_info(settings).train_size == 130_319, "known without a look at the data"


# --- bad questions --------------------------------------------------------------------------------------------------

Damage = Callable[[dict[str, Any]], None]


def damaged(squad: Path, tmp_path: Path, version: str, damage: Damage) -> DataConfig:
    """Return a config whose training file was changed; `damage` gets its first question, or its parents."""
    for part in ("train", "dev"):
        content = json.loads((squad / f"{part}-{version}.json").read_text())
        if part == "train":
            damage(content)
        (tmp_path / f"{part}-{version}.json").write_text(json.dumps(content))
    return config(tmp_path, version)


def paragraph(content: dict[str, Any]) -> dict[str, Any]:
    return content["data"][0]["paragraphs"][0]


def entry(content: dict[str, Any]) -> dict[str, Any]:
    return paragraph(content)["qas"][1]


QA = "data[0].paragraphs[0].qas[1]"
BAD = [
    (lambda c: entry(c).pop("question"), f"{QA}: `question` is missing or empty", 5),
    (lambda c: entry(c).update(question=" "), f"{QA}: `question` is missing or empty", 5),
    (lambda c: entry(c).pop("answers"), f"{QA}: `answers` is missing or no list", 5),
    (lambda c: entry(c)["answers"][0].pop("text"), f"{QA}: answer {{'answer_start': ", 5),
    (
        lambda c: entry(c)["answers"][0].update(answer_start=0),
        f"{QA}: the context has 'The old mill at Farnby wa' at 0, not the",
        5,
    ),
    (lambda c: entry(c).update(answers=[]), f"{QA}: `answers` is empty, and every question of SQuAD 1.1 has one", 5),
    (lambda c: paragraph(c)["qas"].__setitem__(1, "?"), f"{QA}: `question` is missing", 5),
    (lambda c: paragraph(c).pop("context"), "data[0].paragraphs[0].qas[0]: `context` is missing or empty", 2),
    (lambda c: paragraph(c).update(qas={}), "data[0].paragraphs[0]: `qas` is no list", 2),
    (lambda c: c["data"][0].pop("paragraphs"), "data[0]: no field `paragraphs`", 2),
    (lambda c: c["data"].append(3), "data[2]: 3 stands where an object with `paragraphs` should", 6),
]


@pytest.mark.parametrize(("damage", "told", "good"), BAD)
def test_a_bad_question_is_named_or_left_out(damage: Damage, told: str, good: int, squad: Path, tmp_path: Path):
    settings = damaged(squad, tmp_path, "v1.1", damage)
    with pytest.raises(ValueError, match=r"data\.on_bad_row=skip") as caught:
        read_questions(settings, "train")
    assert f"{tmp_path / 'train-v1.1.json'}: {told}" in str(caught.value)
    settings.on_bad_row = OnBadRow.skip
    assert len(read_questions(settings, "train")) == good


def test_an_impossible_question_with_an_answer_is_bad(squad: Path, tmp_path: Path):
    settings = damaged(squad, tmp_path, "v2.0", lambda c: entry(c).update(is_impossible=True))
    with pytest.raises(ValueError, match=r"qas\[1\]: `is_impossible` is True, but there are 1 answers"):
        read_questions(settings, "train")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"data": [', "cannot be read as JSON: Expecting value: line 1 column 11"),
        (b'{"data": ["\xe9"]}', "cannot be read as JSON: 'utf-8' codec can't decode byte 0xe9"),
        (b'{"version": "1.1"}', "no field `data`; the official files hold a list `data` of articles"),
        (b"[]", r"\[\] stands where an object with `data` should"),
        (b'{"data": []}', "the part train has no usable question"),
    ],
)
def test_a_file_of_something_else_is_named(content: bytes, told: str, squad: Path, tmp_path: Path):
    (tmp_path / "train-v1.1.json").write_bytes(content)
    for wrong in (OnBadRow.error, OnBadRow.skip):
        with pytest.raises(ValueError, match=told):
            read_questions(config(tmp_path, on_bad_row=wrong), "train")


def test_blanks_around_an_answer_are_no_part_of_it(squad: Path, tmp_path: Path):
    def add(content: dict[str, Any]) -> None:
        answer = entry(content)["answers"][0]
        answer.update(text=f" {answer['text']}.", answer_start=answer["answer_start"] - 1)
        answer["text"] = answer["text"].rstrip(".")

    settings = damaged(squad, tmp_path, "v1.1", add)
    assert read_questions(settings, "train") == read_questions(config(squad), "train")


# --- the data module ------------------------------------------------------------------------------------------------


def batches(data: StepDataModule, count: int, first: int = 0) -> list[dict[str, torch.Tensor]]:
    data.first_step = first
    return list(islice(data.train_dataloader(), count))


def same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    return all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a.keys() | b.keys())


@pytest.mark.parametrize("padding", list(Padding))
def test_batches_of_the_data_module(padding: Padding, squad: Path, tokenizer: Any):
    settings = config(squad, padding=padding)
    data = build_datamodule(settings, 3, tokenizer)
    windows = len(data.splits.train)
    assert windows > 6, "long texts make several windows"
    assert data.info.train_size == windows
    assert data.steps_per_epoch == -(-windows // 4)
    assert data.info.primary_metric == "val/f1"
    found = batches(data, data.steps_per_epoch + 1)
    for batch in found:
        width = int(batch["attention_mask"].sum(1).max()) if padding is Padding.longest else 40
        assert batch["input_ids"].shape == batch["token_type_ids"].shape == (len(batch["labels"]), width)
        assert batch["labels"].shape == (len(batch["rows"]), 2)
        assert (batch["labels"] < batch["attention_mask"].sum(1, keepdim=True)).all()
    assert sorted(row for batch in found[:-1] for row in batch["rows"].tolist()) == list(range(windows))
    assert any(batch["labels"].any() for batch in found)
    assert same(batches(build_datamodule(settings, 3, tokenizer), 1, first=1), found[1:2])


@pytest.mark.parametrize("version", VERSIONS)
def test_labels_as_logits_answer_every_question(version: str, squad: Path, tokenizer: Any):
    """The way there and back: characters, tokens, windows, best spans, text."""
    data = build_datamodule(config(squad, version), 0, tokenizer)
    metric = build_metric(data.info, data.splits.validation).clone()
    for batch in data.val_dataloader():
        logits = torch.nn.functional.one_hot(batch["labels"], batch["input_ids"].shape[1]).float()
        logits[:, :, 0] *= 0.4  # a window without the answer is less sure than the one with it
        metric.update(logits, batch["rows"])
    assert metric.compute() == {"exact_match": 1, "f1": 1}
    assert len(metric.predictions()) == len(read_questions(config(squad, version), "dev"))


def test_sizes_take_the_first_questions_with_all_their_windows(squad: Path, tokenizer: Any):
    whole = build_datamodule(config(squad), 0, tokenizer)
    data = build_datamodule(config(squad, train_size=2, eval_size=1), 0, tokenizer)
    assert (
        data.splits.train.tokens.lengths.tolist()
        == whole.splits.train.tokens.lengths[: len(data.splits.train)].tolist()
    )
    numbers = whole.splits.validation.answers.windows.questions
    assert len(data.splits.validation) == int((numbers == 0).sum())
    assert len(whole.splits.train) > len(data.splits.train) > 2
    with pytest.raises(ValueError, match=r"data\.train_size=7: squad has 6 such rows"):
        data_info(config(squad, train_size=7))
    with pytest.raises(ValueError, match=r"data\.eval_size=5: squad has 4 such rows"):
        build_datamodule(config(squad, eval_size=5), 0, tokenizer).setup("fit")


def test_the_cache_is_of_these_questions_and_these_windows(squad: Path, tmp_path: Path, tokenizer: Any, capsys):
    for file in squad.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())

    def tokenized(version: str = "v1.1", **changes: Any) -> int:
        data = build_datamodule(config(tmp_path, version, **changes), 0, tokenizer, cache=tmp_path / "cache")
        data.setup("fit")
        return capsys.readouterr().out.count("tokenizing")

    assert tokenized() == 2
    assert (
        tokenized() == tokenized(batch_size=2) == tokenized(padding=Padding.max_length) == tokenized(train_size=3) == 0
    )
    assert tokenized(doc_stride=11) == tokenized(max_length=41) == tokenized(max_question_length=6) == 2
    assert tokenized("v2.0") == 2
    plain, again = (build_datamodule(config(squad), 1, tokenizer, cache) for cache in (None, tmp_path / "cache"))
    assert same(batches(plain, 3), batches(again, 3))
    capsys.readouterr()
    content = json.loads((tmp_path / "dev-v1.1.json").read_text())
    content["data"].pop()
    (tmp_path / "dev-v1.1.json").write_text(json.dumps(content))
    assert tokenized() == 1


def test_skipped_questions_are_counted(squad: Path, tmp_path: Path, tokenizer: Any):
    settings = damaged(squad, tmp_path, "v1.1", lambda c: entry(c).pop("question"))
    settings.on_bad_row = OnBadRow.skip
    with pytest.warns(UserWarning, match="data=squad: 1 bad questions of train are left out"):
        data = build_datamodule(settings, 0, tokenizer)
    whole = build_datamodule(config(squad), 0, tokenizer)
    assert data.info.train_size < whole.info.train_size

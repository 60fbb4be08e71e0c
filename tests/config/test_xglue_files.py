"""What is found out about XGLUE files without torch: languages, places, rows, and what identifies them."""

import shutil
from pathlib import Path

import pytest

from lowbit.config import identity
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load
from lowbit.config.xglue_files import (
    evaluated_languages,
    find_part,
    xglue_fingerprint,
    xglue_problems,
    xglue_train_rows,
)
from lowbit.config.xglue_tasks import XGLUE_TASKS
from lowbit.settings.data import DataConfig, DataKind, XglueTask

LANGUAGES = {"xnli": 15, "pawsx": 4, "nc": 5, "qadsm": 3, "wpr": 7, "qam": 3, "ner": 4, "pos": 17}


def config(folder: Path, task: str = "xnli", **changes: object) -> DataConfig:
    settings = {"language": "en", "languages": ["en", "de"], "xglue_task": XglueTask[task], "dir": str(folder)}
    return DataConfig(task, DataKind.xglue, **(settings | changes))


@pytest.fixture
def copy(xglue: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(xglue, tmp_path / "xglue"))


def test_every_task_is_described():
    assert {task.name: len(XGLUE_TASKS[task].languages) for task in XglueTask} == LANGUAGES
    assert all(len(set(known.languages)) == len(known.languages) for known in XGLUE_TASKS.values())
    assert len(XGLUE_TASKS[XglueTask.pos].labels) == 17


def test_the_training_language_comes_first_and_null_is_all(copy: Path):
    assert evaluated_languages(config(copy, languages=["de", "fr", "en"])) == ("en", "de", "fr")
    assert evaluated_languages(config(copy, "qam", languages=None)) == ("en", "de", "fr")


def test_a_file_of_another_training_language_is_used(copy: Path):
    changed = config(copy, language="de")
    (problem,) = xglue_problems(changed)
    assert "no XNLI/multinli.train.de.tsv" in problem
    shutil.copy(copy / "XNLI" / "multinli.train.en.tsv", copy / "XNLI" / "multinli.train.de.tsv")
    assert not list(xglue_problems(changed))
    assert xglue_train_rows(changed) == 6


def test_english_columns_are_no_other_language(copy: Path):
    (copy / "XNLI" / "train.parquet").touch()
    with pytest.raises(ValueError, match=r"no XNLI/multinli\.train\.de\.tsv"):
        find_part(config(copy, language="de"), "train", "de")
    (copy / "XNLI" / "multinli.train.en.tsv").unlink()
    found = find_part(config(copy), "train", "en")
    assert found is not None
    assert found.format == "parquet"


def test_the_fingerprint_is_of_the_files_that_are_read(xglue: Path, copy: Path):
    before = xglue_fingerprint(config(xglue))
    (copy / "XNLI" / "fr.dev").unlink()
    assert xglue_fingerprint(config(copy)) == before, "the same rows elsewhere; French is not read"
    for name in ("multinli.train.en.tsv", "de.dev"):
        with (copy / "XNLI" / name).open("a") as file:
            file.write("One .\tTwo .\tneutral\n")
        changed = xglue_fingerprint(config(copy))
        assert changed != before
        before = changed


def test_empty_lines_and_headers_are_no_rows(copy: Path):
    file = copy / "XNLI" / "multinli.train.en.tsv"
    file.write_text("\r\n".join(file.read_text().splitlines()) + "\r\n\r\n")
    assert xglue_train_rows(config(copy)) == 6
    file.write_text("\n")
    assert list(xglue_problems(config(copy))) == ["data=xnli: the training file holds no row"]
    tags = copy / "NER" / "en.train"
    tags.write_text("\n\n" + tags.read_text().rstrip("\n"))
    assert xglue_train_rows(config(copy, "ner")) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"xglue_task": None}, ["data.xglue_task: no value", "xnli, pawsx"]),
        ({"language": "nl"}, ["data.language=nl: xnli has ar, bg"]),
        ({"languages": ["en", "nl", "xx"]}, ["data.languages: xnli has no nl, xx; it has ar"]),
        ({"languages": ["de"]}, ["lacks data.language=en", "data.languages=null"]),
        ({"dir": None}, ["data.dir: no value", "XGLUE_DIR/XNLI/multinli.train.en.tsv", "data.dir=XGLUE_DIR"]),
        ({"dir": "nowhere"}, ["data.dir=nowhere: no such folder", "nowhere/XNLI/multinli.train.en.tsv"]),
        ({"languages": None}, ["no XNLI/ar.dev, and no validation.ar.parquet", "set data.languages to the languages"]),
        ({"max_length": 5}, ["data.max_length=5: leaves no token", "6 or more"]),
        ({"train_size": 7}, ["data.train_size=7", "1..6"]),
    ],
    ids=str,
)
def test_what_cannot_work_is_named(changes: dict[str, object], words: list[str], xglue: Path):
    (problem,) = xglue_problems(config(xglue, **changes))
    assert all(word in problem for word in words), problem


def test_runs_are_told_apart_by_their_languages_and_older_ones_keep_their_ids(xglue: Path):
    run = ["data=ner", f"data.dir={xglue}", "model=hf", "model.path=some/name"]
    ids = {identity.run_id(load([*run, f"data.languages={languages}"])[0]) for languages in ("[en]", "[en,de]")}
    assert len(ids) == 2
    content = identity._content(load([])[0], identity.NOT_IDENTITY)
    assert not {"xglue_task", "language", "languages"} & set(content["data"])


def test_settings_of_languages_are_refused_elsewhere():
    with pytest.raises(ConfigError) as caught:
        load(["data.language=de"])
    (problem,) = caught.value.problems
    assert problem == "data.language=de: has no effect under data.kind=digits, only under xglue"

"""What is found out about SQuAD's files without torch: that they are there, their questions, what identifies them."""

import json
import shutil
from pathlib import Path

import pytest

from lowbit.config import identity
from lowbit.config.problems import ConfigError
from lowbit.config.squad_files import VERSIONS
from lowbit.config.validate import load


def overrides(folder: Path, *more: str) -> list[str]:
    return ["data=squad", f"data.dir={folder}", "model=hf", "model.path=some/name", *more]


def problems(*texts: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(list(texts))
    return "\n".join(caught.value.problems)


@pytest.fixture
def copy(squad: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(squad, tmp_path / "squad"))


def ids(*texts: str) -> tuple[str, str]:
    cfg, _ = load(list(texts))
    return identity.run_id(cfg), identity.teacher_id(cfg)


def test_ids_follow_what_is_in_the_files(squad: Path, copy: Path):
    original = ids(*overrides(squad))
    assert ids(*overrides(copy)) == original, "the same questions elsewhere are the same run"
    (copy / "train-v2.0.json").unlink()
    assert ids(*overrides(copy)) == original, "another version's files do not matter"
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        content = json.loads((copy / name).read_text())
        content["data"].pop()
        (copy / name).write_text(json.dumps(content))
        changed = ids(*overrides(copy))
        assert all(new != old for new, old in zip(changed, original, strict=True))
        original = changed


def test_ids_of_hub_data_follow_the_revision_and_the_version():
    hub = ["data.source=hub", "model=hf", "model.path=some/name"]
    found = [ids("data=squad", *hub), ids("data=squad", *hub, "data.revision=abc"), ids("data=squad_v2", *hub)]
    assert len({run for run, _ in found}) == 3


@pytest.mark.parametrize(("name", "questions"), [("squad", 87_599), ("squad_v2", 130_319)])
def test_official_numbers(name: str, questions: int):
    _, config = load([f"data={name}", "data.source=hub", "model=hf", "model.path=some/name"])
    assert config.data.version is not None
    assert VERSIONS[config.data.version].train_questions == questions
    assert VERSIONS[config.data.version].has_no_answer == (name == "squad_v2")


def test_published_window_settings():
    _, config = load(["data=squad", "data.source=hub", "model=hf", "model.path=some/name"])
    data = config.data
    assert (data.max_length, data.doc_stride, data.max_question_length, data.batch_size) == (384, 128, 64, 16)


def test_missing_files_are_named_with_their_place(copy: Path):
    assert "data.dir: no value; put the official files at SQUAD_DIR/train-v1.1.json and SQUAD_DIR/dev" in problems(
        "data=squad", "model=hf", "model.path=some/name"
    )
    (copy / "dev-v1.1.json").unlink()
    text = problems(*overrides(copy))
    assert (
        f"no dev-v1.1.json in it; put the official files at {copy / 'train-v1.1.json'} and {copy / 'dev'}"[:-1] in text
    )
    shutil.rmtree(copy)
    assert "no such folder; put the official files" in problems(*overrides(copy))


def test_malformed_json_is_named(copy: Path):
    file = copy / "train-v1.1.json"
    file.write_text(file.read_text()[:-30])
    assert f"{file} cannot be read as JSON: " in problems(*overrides(copy))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.version=null", "data.version: no value; choose one of v1_1, v2_0"),
        ("data.doc_stride=null", "data.doc_stride: no value; set it, for example data.doc_stride=128"),
        ("data.doc_stride=0", "data.doc_stride=0: must be greater than 0"),
        ("data.max_question_length=0", "data.max_question_length=0: must be greater than 0"),
        ("data.max_length=null", "data.max_length: no value"),
        ("data.max_length=68", "data.max_length=68: leaves no token for the text beside a question of data.max_qu"),
        ("data.train_size=7", "data.train_size=7: squad has 6 such rows; set data.train_size to 1..6 or null"),
        ("data.tokenizer=words", "data=squad has no word list of its own: set data.tokenizer=model"),
        ("data.task=cola", "data.task=cola: has no effect under data.kind=squad, only under glue"),
        ("data.train_file=x.json", "data.train_file=x.json: has no effect under data.kind=squad, only under glue"),
        ("model=bert_micro", "model=bert_micro has no tokenizer: use model=minilm or hf"),
        ("model=vit_micro", "model=vit_micro reads images, data=squad is text"),
    ],
)
def test_settings_that_cannot_be_are_refused(override: str, told: str, squad: Path):
    model = [] if override.startswith("model=") else ["model=hf", "model.path=some/name"]
    assert told in problems("data=squad", f"data.dir={squad}", *model, override)


def test_settings_of_squad_have_no_effect_elsewhere():
    assert "data.doc_stride=128: has no effect under data.kind=digits, only under squad" in problems(
        "data=digits", "data.doc_stride=128"
    )

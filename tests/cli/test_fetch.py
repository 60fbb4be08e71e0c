"""`lowbit fetch`: what it reaches for, and what it says where nothing can be reached."""

from pathlib import Path
from typing import Any

import pytest

from lowbit.cli import main


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment allows the network; the libraries read it at import, and still reach for nothing here."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.mark.usefixtures("online")
def test_every_split_is_fetched_at_the_pinned_revision(monkeypatch: pytest.MonkeyPatch, capsys):
    import datasets

    from lowbit.config.glue_tasks import REVISION

    asked = []

    def load(*names: str, split: str, revision: str) -> Any:
        asked.append((*names, split, revision))
        rows = {"premise": ["A man eats.", ""], "hypothesis": ["He eats.", "x"], "label": [0, 1]}
        return datasets.Dataset.from_dict(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert main(["fetch", "data=mnli"]) == 0
    splits = ("train", "validation_matched", "validation_mismatched")
    assert asked == [("nyu-mll/glue", "mnli", split, REVISION) for split in splits]
    out = capsys.readouterr().out
    assert "train, 1 rows" in out, "a bad row is left to the run to report"
    assert "train with data=mnli data.source=hub" in out


@pytest.mark.usefixtures("online")
def test_what_needs_no_files_is_said(tiny_bert: Path, capsys):
    assert main(["fetch", "experiment=digits/ti_g"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "model=vit_micro: random weights, needs no files",
        "data=digits: needs no files",
    ]
    assert main(["fetch", "model=hf", f"model.path={tiny_bert}"]) == 0
    assert f"model=hf: {tiny_bert} at revision main is cached" in capsys.readouterr().out


@pytest.mark.usefixtures("online")
def test_out_of_reach_is_one_line_with_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path):
    import torchvision.datasets
    from transformers import AutoModel

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to the host\nmore")

    monkeypatch.setattr(AutoModel, "from_pretrained", unreachable)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", unreachable)
    assert main(["fetch", "model=bert_base"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "bert-base-uncased: it cannot be loaded (no route to the host); run `lowbit fetch model=bert_base`" in line
    assert main(["fetch", "data=cifar10", f"data.dir={tmp_path}"]) == 1
    assert f"put data_batch_1, data_batch_2, data_batch_3, data_batch_4, data_batch_5, test_batch into {tmp_path}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["data=cola"], 1, "HF_HUB_OFFLINE=1 forbids the network: run `env -u HF_HUB_OFFLINE lowbit fetch"),
        (["seed=1"], 2, "name what to fetch, for example `lowbit fetch data=cola model=bert_base`"),
        (["data=colla"], 2, "Did you mean 'cola'?"),
    ],
)
def test_what_cannot_be_fetched_is_refused(arguments: list[str], code: int, message: str, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["fetch", *arguments]) == code
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("online")
def test_images_behind_a_registration_are_named(capsys):
    assert main(["fetch", "data=imagenet", "data.dir=/no/such"]) == 1
    assert "put the images at /no/such/train/CLASS/NAME.JPEG" in capsys.readouterr().err


@pytest.mark.usefixtures("online")
def test_images_that_are_there_are_counted(images: Path, capsys):
    assert main(["fetch", "data=image_folder", f"data.dir={images}"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(f"its files are there: {images}, 12 training images, 6 to score")


@pytest.mark.usefixtures("online")
def test_another_teacher_is_fetched_by_the_override_that_names_it(capsys):
    assert main(["fetch", "data=agreement", "+model@teacher.model=bert_micro"]) == 0
    assert "model=bert_micro: random weights" in capsys.readouterr().out

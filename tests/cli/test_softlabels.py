"""`lowbit softlabels`, and runs under the stores that it writes: end to end, resumed, refused."""

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lowbit.cli import main
from lowbit.cli import softlabels as verb
from lowbit.config import identity
from lowbit.config.validate import load
from lowbit.files import read_json, write_json
from lowbit.soft_labels.dataset import MultiCropSplit
from lowbit.training.modules import FinetuneModule
from lowbit.training.setup import make_datamodule, make_model

MCKD = "experiment=digits/variation_aware_mckd"
OPTIONS = ["--crops", "6", "--top-k", "3", "--images-per-shard", "16", "--flip", "0.5"]


def shards(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("part-*"))}


@pytest.fixture(scope="module")
def base(tiny: list[str], outputs: Path) -> list[str]:
    """Overrides of the labelling and of the training alike."""
    return [MCKD, *tiny, "data.batch_size=10", f"paths.outputs={outputs}"]


@pytest.fixture(scope="module")
def written(base: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor, list[str]]:
    """A store, the crops that its teacher saw (40 images, 6 crops), and the arguments that wrote it."""
    folder = tmp_path_factory.mktemp("labels") / "a store"
    seen: list[Tensor] = []
    original = verb._make_teacher

    def recording(*args: Any) -> Callable[[Tensor], Tensor]:
        answer = original(*args)
        return lambda pixels: (seen.append(pixels.clone()), answer(pixels))[1]

    arguments = ["softlabels", str(folder), *base, *OPTIONS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "_make_teacher", recording)
        assert main(arguments) == 0
    return folder, torch.cat(seen).reshape(40, 6, 1, 8, 8), arguments


@pytest.fixture
def copy(written: tuple[Path, Tensor, list[str]], tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(written[0], folder, ignore=shutil.ignore_patterns(".*"))
    return folder


def test_the_store_holds_what_the_cached_teacher_says(written, base, outputs):
    folder, seen, arguments = written
    manifest = json.loads((folder / "manifest.json").read_text())
    cfg, config = load(base, labelling=True)
    assert shlex.split(manifest["command"]) == ["lowbit", *arguments]
    assert manifest["teacher"]["id"] == identity.teacher_id(cfg)
    assert (manifest["labels"]["type"], manifest["crops"]["per_image"]) == ("marginal_smoothing_k3", 6)
    assert [shard["rows"] for shard in manifest["shards"].values()] == [16, 16, 8]

    _, config = load([*base, f"data.soft_labels={folder}"])
    data = make_datamodule(config, config.seed)
    teacher = make_model(config, data.info, 0).eval()
    teacher.load_state_dict(load_file(outputs / "teachers" / manifest["teacher"]["id"] / "model.safetensors"))
    store = data.splits.train.store
    with torch.no_grad():
        top, classes = teacher(seen[7]).softmax(-1).topk(3)
    torch.testing.assert_close(store.crops(7, torch.arange(6)).probs.gather(1, classes), top, rtol=1e-4, atol=1e-6)


def test_training_sees_the_labelled_crops_to_the_bit(written, base):
    folder, seen, _ = written
    _, config = load([*base, f"data.soft_labels={folder}"])
    data = make_datamodule(config, config.seed)
    assert isinstance(data.splits.train, MultiCropSplit)
    assert (data.steps_per_epoch, len(data.splits.train)) == (4, 40)
    known = {crop.numpy().tobytes() for crop in seen.flatten(0, 1)}
    batches = list(data.training_batches(0, 14))
    assert [len(batch["pixel_values"]) for batch in batches[:13]] == [10] * 13
    assert len(batches[13]["pixel_values"]) == 4, "40 images in 3s: the last batch of a pass has one"
    assert all(crop.numpy().tobytes() in known for batch in batches for crop in batch["pixel_values"])
    assert all(len(batch["soft_labels"]) == len(batch["labels"]) == len(batch["pixel_values"]) for batch in batches)


def test_a_run_shares_the_teacher_and_says_what_it_learns_from(written, base, outputs, runs_in, capsys):
    folder, _, _ = written
    arguments = [*base, f"data.soft_labels={folder}", "budget.steps=3"]
    assert main(["check", *arguments]) == 0
    line = "soft labels: 40 images x 6 crops, marginal_smoothing_k3, by teacher"
    assert line in capsys.readouterr().out
    before = set(runs_in(outputs))
    assert main(["train", *arguments]) == 0
    out = capsys.readouterr().out
    assert line in out
    (new,) = set(runs_in(outputs)) - before
    run = runs_in(outputs)[new]
    assert f"teacher {run['teacher']['id']}: cached" in out
    assert json.loads((folder / "manifest.json").read_text())["teacher"]["id"] == run["teacher"]["id"]


def test_an_interrupted_store_is_resumed_by_the_same_command(written, base, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "store"
    arguments = ["softlabels", str(folder), *base, *OPTIONS]
    original, calls = verb._make_teacher, []

    def tiring(*args: Any) -> Callable[[Tensor], Tensor]:
        answer = original(*args)

        def until(pixels: Tensor) -> Tensor:
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(len(pixels))
            return answer(pixels)

        return until

    monkeypatch.setattr(verb, "_make_teacher", tiring)
    assert main(arguments) == 130
    assert len(shards(folder)) == 2
    for name in ("train", "check"):
        capsys.readouterr()
        assert main([name, *base, f"data.soft_labels={folder}"]) == 2
        err = capsys.readouterr().err
        assert "part-00002.safetensors has not been written yet: the store is unfinished; run `lowbit softlabels" in err
    monkeypatch.setattr(verb, "_make_teacher", original)
    assert main(arguments) == 0
    assert shards(folder) == shards(written[0])


def test_resumed_training_equals_uninterrupted(written, base, tmp_path, monkeypatch, capsys):
    arguments = ["train", *base, f"data.soft_labels={written[0]}", "budget.steps=7", "trainer.checkpoint_every=2"]
    original = FinetuneModule.losses

    def interrupted(self: FinetuneModule, batch: Any, step: int) -> Any:
        if self.stage.name == "qat" and step == 5:
            raise KeyboardInterrupt
        return original(self, batch, step)

    def weights(outputs: Path) -> dict[str, Tensor]:
        (file,) = outputs.glob("runs/**/stages/qat/model.safetensors")
        return load_file(file)

    monkeypatch.setattr(FinetuneModule, "losses", interrupted)
    assert main([*arguments, f"paths.outputs={tmp_path / 'twice'}"]) == 130
    monkeypatch.setattr(FinetuneModule, "losses", original)
    for name in ("twice", "once"):
        assert main([*arguments, f"paths.outputs={tmp_path / name}"]) == 0
    assert "resuming stage qat at step 4 of 7" in capsys.readouterr().out
    one, two = weights(tmp_path / "once"), weights(tmp_path / "twice")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def flip_a_bit(folder: Path) -> None:
    file = folder / "part-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(bytes(content))


def with_parts(**parts: dict[str, object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        manifest = read_json(path)
        write_json(path, {**manifest, **{key: manifest[key] | parts[key] for key in parts}})

    return change


@pytest.mark.parametrize(
    ("damage", "overrides", "words"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), [], ["no soft-label store"]),
        (
            lambda folder: (folder / "part-00002.safetensors").write_bytes(b"1"),
            [],
            ["00002.safetensors is truncated"],
        ),
        (lambda folder: None, ["data.train_size=39"], ["40 training images of digits, not for 39"]),
        (lambda folder: None, ["data.split_seed=5"], ["other images than these"]),
        (with_parts(labels={"classes": 12}), [], ["labels of 12 classes, the data set has 10"]),
        (with_parts(transform={"size": 16}), [], ["crops of 16 pixels, data=digits has images of 8"]),
        (with_parts(data={"identity": "names"}), [], ["knows them by file name: this data set has no file names"]),
    ],
)
@pytest.mark.parametrize("name", ["check", "train"])
def test_a_wrong_store_is_refused_before_anything_is_written(
    name, damage, overrides, words, copy, base, tmp_path, monkeypatch, capsys
):
    damage(copy)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    arguments = [*base, f"data.soft_labels={copy}", *overrides, "paths.outputs=outputs"]
    assert main([name, *arguments]) == 2
    err = capsys.readouterr().err
    assert f"data.soft_labels={copy}: " in err
    assert "lowbit softlabels" in err
    assert all(word in err for word in words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_flipped_bit_is_found_before_training(copy, base, tmp_path, monkeypatch, capsys):
    """Sizes are right, so `check`, which does not read whole stores, passes."""
    flip_a_bit(copy)
    monkeypatch.chdir(tmp_path)
    arguments = [*base, f"data.soft_labels={copy}", "paths.outputs=outputs"]
    assert main(["check", *arguments]) == 0
    assert main(["train", *arguments]) == 2
    assert "00001.safetensors is damaged: its SHA-256 is not that of the manifest; run `" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_a_finished_run_does_not_read_its_store_again(copy, base, capsys):
    arguments = ["train", *base, f"data.soft_labels={copy}", "budget.steps=2", "seed=9"]
    assert main(arguments) == 0
    flip_a_bit(copy)
    assert main(arguments) == 0
    assert "finished before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data=agreement", "model=bert_micro"], ["data=agreement holds no images"]),
        (["seed=-1"], ["seed=-1"]),
        (["--crops=0"], ["crops=0 must be at least 1"]),
        (["--top-k=10"], ["keeps every one of 10 classes: use full"]),
        (["--label-type=hard", "--top-k=3"], ["--top-k 3 goes with the marginal types"]),
        (["--scale", "0.9", "0.1"], ["scale=(0.9, 0.1)"]),
        (["--flip=2"], ["flip=2.0"]),
        (["--seed=-3"], ["--seed -3"]),
    ],
    ids=" ".join,
)
def test_what_cannot_be_labelled_is_refused_before_anything_is_written(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["softlabels", "store", *arguments]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_taken_is_refused_before_a_teacher_is_trained(written, copy, base, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for folder, changes, word in (
        (copy, ["--crops=7"], "store of other settings (crops: there"),
        (copy, ["teacher.seed=8"], "store of other settings (teacher: there"),
        (tmp_path / "mine", [], "holds other files (thesis.tex)"),
        (tmp_path / "mine" / "thesis.tex", [], "is a file: name a folder"),
    ):
        arguments = [str(folder), *base, *OPTIONS, *changes, f"paths.outputs={tmp_path / 'outputs'}"]
        assert main(["softlabels", *arguments]) == 2
        assert word in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()
    assert shards(copy) == shards(written[0])

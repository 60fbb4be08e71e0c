"""Every data set of image files, trained by `lowbit train` for two steps."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lowbit.cli import main

# The model's patches are as large as half an image; workers would take longer to start than the run.
SMALL = ["data.train_size=12", "data.eval_size=6", "data.batch_size=6", "data.num_workers=0", "budget.steps=2"]
SIZES = ["data.image.size=16", "model.patch_size=8", "model.hidden_size=16", "model.num_heads=2"]
CIFAR = ["model.patch_size=16", "model.hidden_size=16", "model.num_heads=2"]


@pytest.fixture
def arguments(tiny: list[str], images: Path, cifar: Path, outputs: Path) -> Callable[..., list[str]]:
    def of(name: str, *overrides: str) -> list[str]:
        own = [f"data.dir={cifar}", *CIFAR] if name.startswith("cifar") else [f"data.dir={images}", *SIZES]
        return [f"data={name}", *tiny, *own, *SMALL, *overrides, f"paths.outputs={outputs}"]

    return of


@pytest.mark.parametrize(
    ("name", "method"),
    [("imagenet", "finetune"), ("image_folder", "ternarybert"), ("cifar10", "finetune"), ("cifar100", "finetune")],
)
def test_trains_two_steps(name, method, arguments, runs_in, outputs):
    before = set(runs_in(outputs))
    assert main(["train", *arguments(name, f"method={method}")]) == 0
    (new,) = set(runs_in(outputs)) - before
    run = runs_in(outputs)[new]
    assert (run["primary_metric"], run["steps"]) == ("val/accuracy", 2)
    assert 0 <= run["metrics"]["val/accuracy"] <= 1
    assert run["config"]["data"]["kind"] == ("image_folder" if name == "imagenet" else name)


def test_the_number_of_workers_is_not_part_of_a_run(arguments, capsys):
    ids = []
    for workers in ("0", "1", "null"):
        assert main(["check", *arguments("cifar10"), f"data.num_workers={workers}"]) == 0
        ids.append(capsys.readouterr().out.split(": valid")[0])
    assert len(set(ids)) == 1


def test_labels_of_crops_are_written_and_trained_on(arguments, outputs, capsys):
    """The store of a folder of images, written image by image; its student never sees the teacher."""
    store = outputs / "labels"
    mckd = ["method=variation_aware", "method.losses.logits.weight=0", "method.losses.soft_labels.weight=1"]
    mckd += ["method.stages.qat.teacher=false", "quantizer=lsq_w4a4", "data.augment=false"]
    plain = arguments("image_folder", *mckd)
    assert main(["softlabels", str(store), *plain, "--crops", "4", "--top-k", "1"]) == 0
    assert "12 images x 4 crops, marginal_smoothing_k1" in capsys.readouterr().out
    assert main(["train", *plain, f"data.soft_labels={store}"]) == 0
    assert "soft labels: 12 images x 4 crops" in capsys.readouterr().out


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of twelve training images and six others with one fault each."""
    root = tmp_path_factory.mktemp("faulty")
    for name, classes, splits in (("broken", "ab", "tv"), ("one_class", "a", "tv"), ("no_val", "ab", "t")):
        for split in splits:
            count = (12 if split == "t" else 6) // len(classes)
            for file in (f"{one}/{one}_{number}.png" for one in classes for number in range(count)):
                path = root / name / {"t": "train", "v": "val"}[split] / file
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16)).save(path)
    (root / "broken" / "train" / "a" / "a_0.png").write_text("<html>404</html>")
    Image.new("F", (16, 16)).save(root / "broken" / "val" / "b" / "b_1.png", "TIFF")
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.dir=nowhere"], ["data.dir=nowhere: no such folder", "nowhere/train/CLASS/NAME.JPEG"]),
        (["data.source=hub"], ["data.source=hub", "read from files only"]),
        (["data.image.scale=[0.5,0.1]"], ["data.image.scale=[0.5, 0.1]"]),
        (["data.image.randaugment=m9"], ["data.image.randaugment=m9", "rand-m9-mstd0.5-inc1"]),
        (["data.image.randaugment=rand-q9"], ["data.image.randaugment=rand-q9: timm refuses it"]),
        (["data.train_size=13"], ["data.train_size=13", "set data.train_size to 1..12 or null"]),
        (["data.eval_size=7"], ["data.eval_size=7", "set data.eval_size to 1..6 or null"]),
        (["model=bert_micro"], ["model=bert_micro reads text"]),
        (["data.dir={broken}"], ["2 bad rows", "a_0.png: ", "b_1.png: holds floats", "data.on_bad_row=skip"]),
        (["data.dir={one_class}"], ["one_class/train: 1 class folder; a classifier needs at least 2"]),
        (["data.dir={no_val}"], ["no folder val in it"]),
    ],
)
@pytest.mark.parametrize("verb", ["check", "train"])
def test_what_does_not_fit_is_told_before_anything_is_written(
    verb, overrides, words, arguments, faulty, capsys, tmp_path
):
    overrides = [override.format_map(faulty) for override in overrides]
    assert main([verb, *arguments("image_folder", *overrides), f"paths.outputs={tmp_path / 'none'}"]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err
    assert not (tmp_path / "none").exists()

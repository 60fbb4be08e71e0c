"""Import of published FKD files, fabricated here in every published type and precision."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from import_fkd import PUBLISHED, fkd_path, import_fkd, main
from torch import Tensor

from lowbit.data import DataInfo
from lowbit.data.image_source import FileImages
from lowbit.data.sampling import StepRows
from lowbit.soft_labels.crops import CropRule, CropTransform, draw_crops
from lowbit.soft_labels.dataset import MultiCropSplit
from lowbit.soft_labels.files import LabelType, complete_manifest
from lowbit.soft_labels.store import LabelledCrops, SoftLabelStore, compress, expand, fkd_name, matching_manifest

COUNT, CLASSES = 6, 20
IMAGES = torch.rand(7, 3, 16, 12, generator=torch.Generator().manual_seed(0))
PATHS = [f"/data/imagenet/train/n0{index % 2}/n0{index % 2}_{index}.JPEG" for index in range(7)]
SETTINGS = replace(PUBLISHED, num_classes=CLASSES, crops=COUNT, transform=CropTransform(8), images_per_shard=3)
TYPES = ["full", "hard", "smoothing", "marginal_smoothing_k5", "marginal_smoothing_k10", "marginal_renorm_k5"]


INFO = DataInfo("imagenet", "image", "classification", CLASSES, "accuracy", 7, image_size=8, channels=3)


def opened(folder: Path) -> SoftLabelStore:
    return SoftLabelStore(folder, complete_manifest(folder, checksums=True))


def row(store: SoftLabelStore, index: int) -> LabelledCrops:
    return store.crops(index, torch.arange(COUNT))


def content(index: int, label_type: str, half: bool = False) -> tuple[list[Tensor], Tensor]:
    """Return what the published generator would save for an image, and the probabilities that it stands for."""
    generator = torch.Generator().manual_seed(index)
    coords, flip = draw_crops(16, 12, COUNT, CropRule(), generator)
    kind = LabelType.parse(label_type)
    labels = compress((3 * torch.randn(COUNT, CLASSES, generator=generator)).softmax(-1), kind)
    wanted = expand(labels, kind, CLASSES)
    classes, probabilities = labels
    if label_type == "full":
        output = probabilities
    elif label_type == "hard":
        output = classes[:, 0]
    elif label_type == "smoothing":
        output = torch.cat([classes.float(), probabilities], 1)
    else:
        output = torch.stack([classes.float(), probabilities], 1)
    saved = [coords, flip, output]
    return [part.half() if half and part.is_floating_point() else part for part in saved], wanted


def fabricate(folder: Path, label_type: str = "marginal_smoothing_k5", half: bool = False) -> None:
    for index, path in enumerate(PATHS):
        file = fkd_path(folder, fkd_name(path))
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content(index, label_type, half)[0], file)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("label_type", TYPES)
def test_every_published_type_is_imported(label_type: str, half: bool, tmp_path: Path):
    fabricate(tmp_path / "fkd", label_type, half)
    settings = replace(SETTINGS, label_type=label_type)
    assert not import_fkd(tmp_path / "fkd", PATHS, tmp_path / "store", settings)[1]
    store = opened(tmp_path / "store")
    for index in range(7):
        (coords, flip, _), wanted = content(index, label_type)
        found = row(store, index)
        torch.testing.assert_close(found.coords, coords, rtol=0, atol=1e-3 if half else 0)
        assert torch.equal(found.flip, flip)
        torch.testing.assert_close(found.probs, wanted, rtol=2e-3, atol=1e-3 if half else 1e-7)
        torch.testing.assert_close(found.probs.sum(1), torch.ones(COUNT))


def test_the_published_defaults():
    assert (PUBLISHED.crops, PUBLISHED.label_type, PUBLISHED.num_classes) == (500, "marginal_smoothing_k5", 1000)
    assert (PUBLISHED.transform.size, PUBLISHED.transform.interpolation) == (475, "bicubic")


def test_names_are_the_last_four_components():
    name = fkd_name("/any/where/imagenet/train/n01440764/n01440764_10026.JPEG")
    assert fkd_path(Path("labels"), name) == Path("labels/imagenet/train/n01440764/n01440764_10026.tar")
    with pytest.raises(ValueError, match="4 path components"):
        fkd_name("/train/n01440764/n01440764_10026.JPEG")


def test_a_store_knows_images_by_name(tmp_path: Path):
    fabricate(tmp_path / "fkd")
    import_fkd(tmp_path / "fkd", PATHS, tmp_path / "store", SETTINGS)
    files = [path.removeprefix("/data/") for path in PATHS]
    manifest = matching_manifest(tmp_path / "store", FileImages(Path("/data"), files), INFO, checksums=True)
    store = SoftLabelStore(tmp_path / "store", manifest)
    split = MultiCropSplit(IMAGES, torch.arange(7), store, store.transform, batch_size=4, num_crops=2, seed=0)
    assert split.__getitems__(StepRows(0, [0, 6]))["pixel_values"].shape == (4, 3, 8, 8)
    with pytest.raises(ValueError, match="by file name"):
        matching_manifest(tmp_path / "store", IMAGES, INFO, checksums=True)
    with pytest.raises(ValueError, match="these have others, such as"):
        matching_manifest(tmp_path / "store", FileImages(Path("/data"), files[::-1]), INFO, checksums=True)


class Foreign:
    """Not a tensor: weights_only must refuse it."""


def changed(place: int, value: object) -> list[object]:
    parts: list[object] = list(content(1, "marginal_smoothing_k5")[0])
    parts[place] = value
    return parts


OUTPUT = content(1, "marginal_smoothing_k5")[0][2]


def altered(place: tuple[int, ...], value: float) -> list[object]:
    output = OUTPUT.clone()
    output[place] = value
    return changed(2, output)


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (Foreign(), "cannot be read"),
        ([torch.zeros(3)], "no list of three tensors"),
        (changed(0, torch.rand(5, 4)), "expected 6 crops"),
        (changed(0, torch.full((6, 4), 2.0)), "not shares of an image"),
        (changed(0, torch.zeros(6, 4)), "not shares of an image"),
        (changed(2, torch.rand(6, 2, 4)), "output of shape"),
        (altered((2, 0, 1), 20.0), "whole numbers in 0..19"),
        (altered((2, 0, 1), 1.5), "whole numbers in 0..19"),
        (altered((2, 0, 1), float(OUTPUT[2, 0, 0])), "names one class twice"),
        (altered((2, 1, 0), 1.5), "not in 0..1"),
        (altered((2, 1, 0), float("nan")), "not in 0..1"),
    ],
)
def test_a_damaged_file_is_named_with_its_fault(saved: object, said: str, tmp_path: Path):
    fabricate(tmp_path / "fkd")
    file = fkd_path(tmp_path / "fkd", fkd_name(PATHS[1]))
    torch.save(saved, file)
    with pytest.raises(ValueError, match=f"1 of 7 label files(.|\n)*n01_1.tar .*{said}"):
        import_fkd(tmp_path / "fkd", PATHS, tmp_path / "store", SETTINGS)


def test_half_precision_cannot_name_many_classes(tmp_path: Path):
    fabricate(tmp_path / "fkd", half=True)
    with pytest.raises(ValueError, match="float16, which cannot hold the indices of 21000 classes"):
        import_fkd(tmp_path / "fkd", PATHS, tmp_path / "store", replace(SETTINGS, num_classes=21_000))


def test_missing_files_are_counted_then_skipped_then_mended(tmp_path: Path):
    fkd, out = tmp_path / "fkd", tmp_path / "store"
    fabricate(fkd)
    lost = [fkd_path(fkd, fkd_name(PATHS[index])) for index in (1, 5)]
    whole = lost[1].read_bytes()
    lost[0].unlink()
    lost[1].write_bytes(whole[:200])
    with pytest.raises(
        ValueError, match=r"2 of 7 label files(.|\n)*n01_1.tar is missing(.|\n)*n01_5.tar cannot be read"
    ):
        import_fkd(fkd, PATHS, out, SETTINGS)
    with pytest.raises(ValueError, match="unfinished"):
        opened(out)

    _, problems = import_fkd(fkd, PATHS, out, SETTINGS, skip=True)
    assert {line.split()[0] for line in problems} == {str(path) for path in lost}
    store = opened(out)
    assert store.indices.tolist() == [0, 2, 3, 4, 6]
    torch.testing.assert_close(row(store, 6).probs, content(6, "marginal_smoothing_k5")[1])
    with pytest.raises(IndexError, match="image 5 has no labels"):
        row(store, 5)
    split = MultiCropSplit(IMAGES, torch.arange(7), store, store.transform, batch_size=4, num_crops=2, seed=0)
    assert len(split) == 5
    assert split.__getitems__(StepRows(0, [1, 4]))["labels"].tolist() == [2, 2, 6, 6]

    fabricate(fkd)
    assert not import_fkd(fkd, PATHS, out, SETTINGS)[1]
    assert opened(out).indices.tolist() == list(range(7))


def test_a_shard_whose_images_were_all_skipped_is_passed_over(tmp_path: Path):
    fabricate(tmp_path / "fkd")
    for path in PATHS[:3]:
        fkd_path(tmp_path / "fkd", fkd_name(path)).unlink()
    import_fkd(tmp_path / "fkd", PATHS, tmp_path / "store", SETTINGS, skip=True)
    store = opened(tmp_path / "store")
    assert store.indices.tolist() == [3, 4, 5, 6]
    torch.testing.assert_close(row(store, 3).probs, content(3, "marginal_smoothing_k5")[1])


def test_a_wrong_folder_is_an_error_even_with_skip(tmp_path: Path):
    with pytest.raises(ValueError, match="7 of 7 label files"):
        import_fkd(tmp_path / "nothing", PATHS, tmp_path / "store", SETTINGS, skip=True)
    with pytest.raises(ValueError, match="holds no labels"):
        opened(tmp_path / "store")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Four images and label files as FKD publishes them: 500 crops, 5 of 1000 classes."""
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        image = tmp_path / "imagenet" / "train" / f"n0{number % 2}" / f"n0{number % 2}_{number}.JPEG"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
        classes = torch.stack([torch.randperm(1000, generator=generator)[:5] for _ in range(500)])
        probabilities = torch.full((500, 5), 0.1)
        coords = torch.rand(500, 4, generator=generator).clamp(0.1, 0.5)
        file = fkd_path(tmp_path / "fkd", fkd_name(image))
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save([coords, torch.zeros(500, dtype=torch.bool), torch.stack([classes.float(), probabilities], 1)], file)
    return tmp_path


def test_the_script_imports_published_labels(published, monkeypatch, capsys):
    monkeypatch.chdir(published)
    arguments = ["store", "--fkd", "fkd", "--images", "imagenet/train"]
    lost = Path("fkd/imagenet/train/n01/n01_3.tar")
    whole = lost.read_bytes()
    lost.write_bytes(whole[:100])
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "1 of 4 label files are missing or damaged" in err
    assert f"{lost} cannot be read" in err
    assert "(--skip)" in err
    assert main([*arguments, "--skip"]) == 0
    out = capsys.readouterr().out
    assert "skipped 1 images:" in out
    assert "store: 3 images x 500 crops, marginal_smoothing_k5, by teacher tf_efficientnet_l2_ns_475" in out
    lost.write_bytes(whole)
    assert main(arguments) == 0
    assert "store: 4 images x 500 crops" in capsys.readouterr().out
    command = complete_manifest(Path("store"), checksums=True)["command"]
    assert shlex.split(command) == ["python", "scripts/import_fkd.py", *arguments]


def test_folders_that_are_wrong_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert main(["store", "--fkd", "here", "--images", "here"]) == 2
    assert "here" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["store", "--fkd", "there", "--images", "here"])
    assert "--fkd there: no such folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["here"]

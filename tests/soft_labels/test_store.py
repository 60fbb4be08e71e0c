"""The soft-label store: crops to the bit, resuming, and an error for every store that is not the right one."""

import hashlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader

from lowbit.data import DataInfo
from lowbit.data.datamodule import as_is
from lowbit.data.sampling import StepBatchSampler, StepRows
from lowbit.files import read_json, write_json
from lowbit.soft_labels.crops import CropTransform
from lowbit.soft_labels.dataset import MultiCropSplit
from lowbit.soft_labels.files import store_digest
from lowbit.soft_labels.store import Images, LabelledCrops, SoftLabelStore, matching_manifest
from lowbit.soft_labels.writer import StoreSettings, write_store

DIGITS = load_digits()
IMAGES = torch.from_numpy(DIGITS.images).float()[:23, None] / 16
LABELS = torch.from_numpy(DIGITS.target).long()[:23]
WEIGHTS = torch.randn(64, 10, generator=torch.Generator().manual_seed(1))
SETTINGS = StoreSettings(
    data="digits",
    teacher="linear",
    num_classes=10,
    transform=CropTransform(8),
    crops=6,
    label_type="marginal_smoothing_k3",
    seed=4,
    images_per_shard=10,
    batch_size=7,
    command="lowbit softlabels data=digits",
)


INFO = DataInfo("digits", "image", "classification", 10, "accuracy", 23, image_size=8, channels=1)
PARQUET = Path(__file__).parents[1] / "fixtures" / "soft_labels"


def teacher(pixels: Tensor) -> Tensor:
    return pixels.flatten(1) @ WEIGHTS


def write(images: Images, answer: Callable[[Tensor], Tensor], folder: Path, settings: StoreSettings) -> None:
    write_store(images, lambda: answer, folder, settings)


def opened(folder: Path, images: Images = IMAGES, **facts: Any) -> SoftLabelStore:
    return SoftLabelStore(folder, matching_manifest(folder, images, replace(INFO, **facts), checksums=True))


def row(store: SoftLabelStore, index: int) -> LabelledCrops:
    return store.crops(index, torch.arange(store.num_crops))


class Recorder:
    """A teacher that keeps what it saw and can be interrupted."""

    def __init__(self, calls: int | None = None) -> None:
        self.seen: list[Tensor] = []
        self.calls = calls

    def __call__(self, pixels: Tensor) -> Tensor:
        if self.calls is not None and len(self.seen) == self.calls:
            raise KeyboardInterrupt
        self.seen.append(pixels.clone())
        return teacher(pixels)


def checksums(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("part-*"))}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A store, and the crops that its teacher saw, one row per image."""
    folder = tmp_path_factory.mktemp("soft") / "store"
    recorder = Recorder()
    write(IMAGES, recorder, folder, SETTINGS)
    return folder, torch.cat(recorder.seen).reshape(23, 6, 1, 8, 8)


@pytest.fixture
def copy(written: tuple[Path, Tensor], tmp_path: Path) -> Path:
    """A copy of the store to be damaged."""
    return Path(shutil.copytree(written[0], tmp_path / "store"))


def test_a_store_gives_back_what_the_teacher_said(written: tuple[Path, Tensor]):
    folder, seen = written
    store = opened(folder)
    assert (len(store.indices), store.num_crops, store.transform) == (23, 6, SETTINGS.transform)
    for index in (0, 9, 10, 22):
        coords, flip, probs = row(store, index)
        assert (coords.shape, coords.dtype, flip.shape, flip.dtype) == ((6, 4), torch.float32, (6,), torch.bool)
        for crop, pixels in enumerate(seen[index]):
            assert torch.equal(store.transform(IMAGES[index], coords[crop], bool(flip[crop])), pixels)
        full = teacher(seen[index]).softmax(-1)
        top, classes = full.topk(3, dim=1)
        rest = (1 - top.sum(1, keepdim=True)) / 7
        torch.testing.assert_close(probs, rest.repeat(1, 10).scatter(1, classes, top), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(probs.sum(1), torch.ones(6))


@pytest.mark.parametrize("label_type", ["full", "hard", "smoothing", "marginal_renorm_k2"])
def test_every_label_type_survives_the_round_trip(label_type: str, tmp_path: Path):
    recorder = Recorder()
    write(IMAGES[:3], recorder, tmp_path, replace(SETTINGS, label_type=label_type))
    store = opened(tmp_path, IMAGES[:3])
    probs = torch.stack([row(store, index).probs for index in range(3)]).flatten(0, 1)
    full = teacher(torch.cat(recorder.seen)).softmax(-1)
    assert torch.equal(probs.argmax(1), full.argmax(1))
    torch.testing.assert_close(probs.sum(1), torch.ones(18))
    if label_type == "full":
        torch.testing.assert_close(probs, full)
    assert (row(store, 0).probs > 0).sum(1).tolist() == [{"hard": 1, "marginal_renorm_k2": 2}.get(label_type, 10)] * 6


def test_crops_depend_on_seed_and_image_and_not_on_the_shards(written: tuple[Path, Tensor], tmp_path: Path):
    write(IMAGES, teacher, tmp_path, replace(SETTINGS, images_per_shard=7))
    one, two = opened(written[0]), opened(tmp_path)
    rows = [(row(one, index), row(two, index)) for index in range(23)]
    assert all(torch.equal(a.coords, b.coords) and torch.equal(a.flip, b.flip) for a, b in rows)
    assert len({tuple(a.coords.flatten().tolist()) for a, _ in rows}) == 23


def test_a_manifest_says_what_the_store_holds(written: tuple[Path, Tensor]):
    manifest = json.loads((written[0] / "manifest.json").read_text())
    assert manifest["data"]["name"] == "digits"
    assert manifest["teacher"]["id"] == "linear"
    assert manifest["labels"] == {"type": "marginal_smoothing_k3", "classes": 10}
    assert manifest["crops"]["per_image"] == 6
    assert manifest["crops"]["seed"] == 4
    assert manifest["transform"] == {"size": 8, "interpolation": "bilinear", "mean": None, "std": None}
    assert [facts["rows"] for facts in manifest["shards"].values()] == [10, 10, 3]
    assert {name: facts["sha256"] for name, facts in manifest["shards"].items()} == checksums(written[0])


@pytest.mark.parametrize("calls", [0, 1, 10, 15])
def test_an_interrupted_store_resumes_to_the_same_bytes(calls: int, written: tuple[Path, Tensor], tmp_path: Path):
    folder = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        write(IMAGES, Recorder(calls), folder, SETTINGS)
    assert len(checksums(folder)) == calls // 9
    with pytest.raises(ValueError, match="lowbit softlabels"):
        opened(folder)
    rest = Recorder()
    write(IMAGES, rest, folder, SETTINGS)
    assert sum(map(len, rest.seen)) == 6 * (23 - 10 * (calls // 9))
    assert checksums(folder) == checksums(written[0])
    assert (folder / "manifest.json").read_text() == (written[0] / "manifest.json").read_text()


def test_an_interrupted_shard_is_not_visible_and_its_remains_go(copy: Path, monkeypatch: pytest.MonkeyPatch):
    (copy / "part-00001.safetensors").unlink()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write(IMAGES, teacher, copy, SETTINGS)
    monkeypatch.undo()
    assert len(list(copy.glob("part-*"))) == 2
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (copy / f".part-00001.safetensors.0.{socket.gethostname()}-{gone.pid}.tmp").touch()  # as a killed process leaves
    write(IMAGES, teacher, copy, SETTINGS)
    assert len(list(copy.glob("part-*"))) == 3
    assert not list(copy.glob(".*.tmp"))


def test_a_finished_store_is_not_labelled_again_and_a_damaged_shard_is(copy: Path):
    before = checksums(copy)
    recorder = Recorder()
    write(IMAGES, recorder, copy, SETTINGS)
    assert not recorder.seen
    (copy / "part-00002.safetensors").write_bytes(b"nonsense")
    write(IMAGES, recorder, copy, SETTINGS)
    assert sum(map(len, recorder.seen)) == 18
    assert checksums(copy) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 5}, "crops: there"),
        ({"teacher": "other"}, "teacher: there"),
        ({"label_type": "full"}, "labels: there"),
        ({"transform": CropTransform(16)}, "transform: there"),
    ],
)
def test_a_store_of_other_settings_is_not_mixed(change: dict[str, object], said: str, copy: Path):
    with pytest.raises(ValueError, match=said):
        write(IMAGES, teacher, copy, replace(SETTINGS, **change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data: there"):
        write(IMAGES + 1, teacher, copy, SETTINGS)


def cut(folder: Path) -> None:
    file = folder / "part-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def alter(folder: Path) -> None:
    file = folder / "part-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(bytes(content))


def manifest_of(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    write_json(path, {**read_json(path), **changes})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "part-00001.safetensors is truncated: .* bytes; run `lowbit softlabels data=digits`"),
        (alter, "part-00001.safetensors is damaged: .* run `lowbit softlabels data=digits`"),
        (
            lambda folder: (folder / "part-00000.safetensors").unlink(),
            "part-00000.safetensors is missing; run `lowbit softl",
        ),
        (lambda folder: (folder / "manifest.json").unlink(), "no soft-label store .*`lowbit softlabels .*store`"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "no soft-label manifest .*`lowbit softlabels`"),
        (lambda folder: manifest_of(folder, format=9), "has format 9, this version reads 1 and 2"),
    ],
)
def test_a_damaged_store_says_what_and_how_to_mend_it(damage, said: str, copy: Path):
    damage(copy)
    with pytest.raises(ValueError, match=said):
        opened(copy)


def test_a_foreign_store_is_refused(written: tuple[Path, Tensor], tmp_path: Path):
    folder, _ = written
    with pytest.raises(ValueError, match="23 training images of digits, not for 22"):
        opened(folder, IMAGES[:22])
    for foreign in (IMAGES.flip(0), IMAGES + 1e-3, IMAGES.double()):
        with pytest.raises(ValueError, match="other images than these"):
            opened(folder, foreign)
    with pytest.raises(ValueError, match="crops of 8 pixels, data=digits has images of 9"):
        opened(folder, image_size=9)
    with pytest.raises(ValueError, match="10 classes, the data set has 100"):
        opened(folder, num_labels=100)
    with pytest.raises(ValueError, match="no soft-label store"):
        opened(tmp_path / "nowhere")


def test_an_image_that_changed_after_opening_is_noticed(written: tuple[Path, Tensor]):
    store = opened(written[0])
    with pytest.raises(ValueError, match="image 3 is not the one that was labelled"):
        store.crops(3, torch.tensor([0]), IMAGES[4])


def test_a_damaged_shard_that_was_rewritten_is_read_anew(copy: Path):
    before = row(opened(copy), 2).probs
    for file in copy.glob("[pm]*"):
        file.unlink()
    write(IMAGES, lambda pixels: -teacher(pixels), copy, SETTINGS)
    assert not torch.equal(row(opened(copy), 2).probs, before)


def alter_bytes(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["parquet_k3", "parquet_full"])
def test_a_parquet_store_is_read_to_the_bit_and_keeps_its_digest(name: str, tmp_path: Path):
    folder = Path(shutil.copytree(PARQUET / name, tmp_path / "store"))
    digest, manifest = store_digest(folder), (folder / "manifest.json").read_bytes()
    size, crops, labels, step = (7, 5, "marginal_smoothing_k3", 4) if name == "parquet_k3" else (3, 2, "full", 10)
    settings = replace(SETTINGS, crops=crops, label_type=labels, images_per_shard=step)
    write(IMAGES[:size], teacher, tmp_path / "same", settings)
    for _ in range(2):  # the second time from the copies
        store, same = opened(folder, IMAGES[:size]), opened(tmp_path / "same", IMAGES[:size])
        for index in range(size):
            assert all(map(torch.equal, row(store, index), row(same, index)))
            store.crops(index, torch.tensor([0]), IMAGES[index])
    asked = Recorder()
    write(IMAGES[:size], asked, folder, settings)
    assert not asked.seen
    assert (store_digest(folder), (folder / "manifest.json").read_bytes()) == (digest, manifest)


def test_a_damaged_parquet_store_names_the_command_that_writes_it_again(tmp_path: Path):
    folder = Path(shutil.copytree(PARQUET / "parquet_k3", tmp_path / "store"))
    opened(folder, IMAGES[:7])
    copy = next(folder.glob(".safetensors/*"))
    alter_bytes(copy)
    with pytest.raises(ValueError, match=f"{copy.name} is damaged .*: delete it"):
        opened(folder, IMAGES[:7])
    (folder / "part-00001.parquet").unlink()
    said = "part-00001.parquet is missing; .*delete .*store and run `lowbit softlabels data=digits`"
    with pytest.raises(ValueError, match=said):
        opened(folder, IMAGES[:7])
    with pytest.raises(ValueError, match=said):
        write(IMAGES[:7], teacher, folder, replace(SETTINGS, crops=5, images_per_shard=4))


def test_a_store_that_is_sent_to_a_worker_maps_its_files_there(written: tuple[Path, Tensor]):
    content = pickle.dumps(opened(written[0]))
    assert len(content) < 3000
    assert all(map(torch.equal, row(pickle.loads(content), 3), row(opened(written[0]), 3)))


def test_classes_of_a_store_are_compared_by_name(tmp_path: Path, copy: Path):
    names = tuple("abcdefghij")
    write(IMAGES, teacher, tmp_path / "named", replace(SETTINGS, names=names))
    assert json.loads((tmp_path / "named" / "manifest.json").read_text())["labels"]["names"] == list(names)
    opened(tmp_path / "named", labels=names)
    opened(tmp_path / "named")
    with pytest.raises(ValueError, match="another order: class 1 is b there, c here; write another"):
        opened(tmp_path / "named", labels=("a", "c", "b", *names[3:]))
    with pytest.raises(ValueError, match="labels: there"):
        write(IMAGES, teacher, tmp_path / "named", replace(SETTINGS, names=names[::-1]))
    # A store of a version that wrote no names is used and mended as it was, under the same id.
    manifest = (copy / "manifest.json").read_text()
    opened(copy, labels=names)
    (copy / "part-00002.safetensors").unlink()
    write(IMAGES, teacher, copy, replace(SETTINGS, names=names))
    assert (copy / "manifest.json").read_text() == manifest


@pytest.mark.parametrize(
    ("broken", "said"),
    [(lambda pixels: teacher(pixels)[:, :9], "expected \\(7, 10\\)"), (lambda pixels: teacher(pixels) / 0, "finite")],
)
def test_a_teacher_that_cannot_be_stored_is_refused(broken, said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=said):
        write(IMAGES, broken, tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"crops": 0}, "crops=0"),
        ({"label_type": "marginal_smoothing_k10"}, "use full"),
        ({"label_type": "soft"}, "choose full, hard"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], said: str):
    with pytest.raises(ValueError, match=said):
        replace(SETTINGS, **change)  # type: ignore[arg-type]


def test_no_images_and_no_seed_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no images"):
        write(IMAGES[:0], teacher, tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="seed=None"):
        write(IMAGES, teacher, tmp_path, replace(SETTINGS, seed=None))


def split_of(folder: Path, batch_size: int = 10, num_crops: int = 4) -> MultiCropSplit:
    store = opened(folder)
    return MultiCropSplit(IMAGES, LABELS, store, store.transform, batch_size=batch_size, num_crops=num_crops, seed=0)


@pytest.mark.parametrize(("batch_size", "num_crops", "counts"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 1, [1] * 3)])
def test_a_step_has_exactly_b_crops(batch_size: int, num_crops: int, counts: list[int], written: tuple[Path, Tensor]):
    split = split_of(written[0], batch_size, num_crops)
    sampler = StepBatchSampler(len(split), len(counts), seed=0)
    for rows in islice(sampler, 23 // len(counts)):
        batch = split.__getitems__(rows)
        assert batch["pixel_values"].shape == (batch_size, 1, 8, 8)
        assert batch["soft_labels"].shape == (batch_size, 10)
        assert batch["labels"].tolist() == [
            int(LABELS[row]) for row, count in zip(rows.rows, counts, strict=True) for _ in range(count)
        ]


def test_training_crops_are_the_labelled_ones_to_the_bit(written: tuple[Path, Tensor]):
    folder, seen = written
    split = split_of(folder)
    rows = StepRows(5, [17, 2, 20])
    batch = split.__getitems__(rows)
    found = []
    for pixels, probs, image in zip(
        batch["pixel_values"], batch["soft_labels"], [17] * 4 + [2] * 4 + [20] * 2, strict=True
    ):
        matches = [crop for crop in range(6) if torch.equal(seen[image, crop], pixels)]
        assert matches, "not a crop that the teacher saw"
        assert any(torch.equal(row(split.store, image).probs[crop], probs) for crop in matches)
        found.append((image, matches[0]))
    assert len(set(found)) == 10


def test_the_chosen_crops_depend_on_seed_and_step_alone(written: tuple[Path, Tensor]):
    first, again = split_of(written[0]), split_of(written[0])
    again.__getitems__(StepRows(3, [1, 2, 3]))
    torch.manual_seed(9)
    one, two = (split.__getitems__(StepRows(7, [4, 5, 6])) for split in (first, again))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(first.__getitems__(StepRows(8, [4, 5, 6]))["pixel_values"], one["pixel_values"])


def test_rows_without_a_step_are_whole_images(written: tuple[Path, Tensor]):
    batch = split_of(written[0]).__getitems__([3, 4])
    torch.testing.assert_close(batch["pixel_values"], IMAGES[3:5])
    assert batch["labels"].tolist() == LABELS[3:5].tolist()
    assert "soft_labels" not in batch


def test_a_student_of_another_size(written: tuple[Path, Tensor]):
    transform = CropTransform(12, mean=(0.5,), std=(0.5,))
    split = MultiCropSplit(IMAGES, LABELS, opened(written[0]), transform, batch_size=4, num_crops=2, seed=0)
    assert split.__getitems__(StepRows(0, [0, 1]))["pixel_values"].shape == (4, 1, 12, 12)


@pytest.mark.parametrize(("batch_size", "num_crops"), [(10, 7), (10, 0), (3, 4)])
def test_too_many_crops_are_refused(batch_size: int, num_crops: int, written: tuple[Path, Tensor]):
    with pytest.raises(ValueError, match=f"num_crops={num_crops}.*choose 1.."):
        split_of(written[0], batch_size, num_crops)


def test_more_images_than_crops_are_refused(written: tuple[Path, Tensor]):
    with pytest.raises(ValueError, match="4 images for 10 crops: sample 3 images per step"):
        split_of(written[0]).__getitems__(StepRows(0, [0, 1, 2, 3]))


def test_workers_give_the_same_batches(written: tuple[Path, Tensor]):
    split = split_of(written[0])

    def loader(workers: int) -> DataLoader[dict[str, Tensor]]:
        sampler = StepBatchSampler(len(split), 3, seed=0)
        return DataLoader(split, batch_sampler=sampler, num_workers=workers, collate_fn=as_is)  # type: ignore[arg-type]

    for one, two in zip(islice(loader(0), 3), islice(loader(1), 3), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_another_process_with_another_hash_seed_writes_the_same_bytes(written: tuple[Path, Tensor], tmp_path: Path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_soft_labels as t; "
        "t.write(t.IMAGES, t.teacher, Path(sys.argv[2]), t.SETTINGS)"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        check=True,
    )
    assert checksums(tmp_path) == checksums(written[0])


def test_a_bar_is_drawn_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_store(IMAGES[:2], lambda: teacher, tmp_path, SETTINGS, progress=True)
    assert "soft labels" in capsys.readouterr().out

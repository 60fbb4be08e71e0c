"""The soft-label store: crops to the bit, resuming, and an error for every store that is not the right one."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader

from lowbit.data.crops import CropTransform
from lowbit.data.datamodule import as_is
from lowbit.data.label_manifest import StoreSettings
from lowbit.data.labelling import write_store
from lowbit.data.multicrop import MultiCropSplit
from lowbit.data.sampling import StepBatchSampler, StepRows
from lowbit.data.soft_labels import SoftLabelStore

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


def teacher(pixels: Tensor) -> Tensor:
    return pixels.flatten(1) @ WEIGHTS


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
    write_store(IMAGES, recorder, folder, SETTINGS)
    return folder, torch.cat(recorder.seen).reshape(23, 6, 1, 8, 8)


@pytest.fixture
def copy(written: tuple[Path, Tensor], tmp_path: Path) -> Path:
    """A copy of the store to be damaged, without the Arrow files of readers."""
    folder = tmp_path / "store"
    folder.mkdir()
    for file in written[0].glob("[pm]*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_store_gives_back_what_the_teacher_said(written: tuple[Path, Tensor]):
    folder, seen = written
    store = SoftLabelStore.open(folder, IMAGES, label_type="marginal_smoothing_k3", num_classes=10)
    assert (len(store.indices), store.num_crops, store.transform) == (23, 6, SETTINGS.transform)
    for index in (0, 9, 10, 22):
        coords, flip, probs = store.row(index)
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
    write_store(IMAGES[:3], recorder, tmp_path, replace(SETTINGS, label_type=label_type))
    store = SoftLabelStore.open(tmp_path, IMAGES[:3], label_type=label_type)
    probs = torch.stack([store.row(index).probs for index in range(3)]).flatten(0, 1)
    full = teacher(torch.cat(recorder.seen)).softmax(-1)
    assert torch.equal(probs.argmax(1), full.argmax(1))
    torch.testing.assert_close(probs.sum(1), torch.ones(18))
    if label_type == "full":
        torch.testing.assert_close(probs, full)
    assert (store.row(0).probs > 0).sum(1).tolist() == [{"hard": 1, "marginal_renorm_k2": 2}.get(label_type, 10)] * 6


def test_crops_depend_on_seed_and_image_and_not_on_the_shards(written: tuple[Path, Tensor], tmp_path: Path):
    write_store(IMAGES, teacher, tmp_path, replace(SETTINGS, images_per_shard=7))
    one, two = SoftLabelStore.open(written[0], IMAGES), SoftLabelStore.open(tmp_path, IMAGES)
    rows = [(one.row(index), two.row(index)) for index in range(23)]
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
        write_store(IMAGES, Recorder(calls), folder, SETTINGS)
    assert len(checksums(folder)) == calls // 9
    with pytest.raises(ValueError, match="lowbit softlabels"):
        SoftLabelStore.open(folder, IMAGES)
    rest = Recorder()
    write_store(IMAGES, rest, folder, SETTINGS)
    assert sum(map(len, rest.seen)) == 6 * (23 - 10 * (calls // 9))
    assert checksums(folder) == checksums(written[0])
    assert (folder / "manifest.json").read_text() == (written[0] / "manifest.json").read_text()


def test_an_interrupted_shard_is_not_visible_and_its_remains_go(copy: Path, monkeypatch: pytest.MonkeyPatch):
    (copy / "part-00001.parquet").unlink()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_store(IMAGES, teacher, copy, SETTINGS)
    monkeypatch.undo()
    assert len(list(copy.glob("part-*"))) == 2
    (copy / ".part-00001.parquet.0.tmp").write_bytes(b"PAR1")  # what a killed process leaves
    write_store(IMAGES, teacher, copy, SETTINGS)
    assert len(list(copy.glob("part-*"))) == 3
    assert not list(copy.glob(".*.tmp"))


def test_a_finished_store_is_not_labelled_again_and_a_damaged_shard_is(copy: Path):
    before = checksums(copy)
    recorder = Recorder()
    write_store(IMAGES, recorder, copy, SETTINGS)
    assert not recorder.seen
    (copy / "part-00002.parquet").write_bytes(b"nonsense")
    write_store(IMAGES, recorder, copy, SETTINGS)
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
        write_store(IMAGES, teacher, copy, replace(SETTINGS, **change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data: there"):
        write_store(IMAGES + 1, teacher, copy, SETTINGS)


def cut(folder: Path) -> None:
    file = folder / "part-00001.parquet"
    file.write_bytes(file.read_bytes()[:-100])


def alter(folder: Path) -> None:
    file = folder / "part-00001.parquet"
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(bytes(content))


def manifest_of(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "part-00001.parquet is truncated: .* bytes; run `lowbit softlabels data=digits`"),
        (alter, "part-00001.parquet is damaged: .* run `lowbit softlabels data=digits`"),
        (lambda folder: (folder / "part-00000.parquet").unlink(), "part-00000.parquet is missing; run `lowbit softl"),
        (lambda folder: (folder / "manifest.json").unlink(), "no soft-label store .*`lowbit softlabels .*store`"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "no soft-label manifest .*`lowbit softlabels`"),
        (lambda folder: manifest_of(folder, format=9), "has format 9, this version reads 1"),
    ],
)
def test_a_damaged_store_says_what_and_how_to_mend_it(damage, said: str, copy: Path):
    damage(copy)
    with pytest.raises(ValueError, match=said):
        SoftLabelStore.open(copy, IMAGES)


def test_a_foreign_store_is_refused(written: tuple[Path, Tensor], tmp_path: Path):
    folder, _ = written
    with pytest.raises(ValueError, match="23 training images of digits, not for 22"):
        SoftLabelStore.open(folder, IMAGES[:22])
    for foreign in (IMAGES.flip(0), IMAGES + 1e-3, IMAGES.double()):
        with pytest.raises(ValueError, match="other images than these"):
            SoftLabelStore.open(folder, foreign)
    with pytest.raises(ValueError, match="type marginal_smoothing_k3, not hard"):
        SoftLabelStore.open(folder, IMAGES, label_type="hard")
    with pytest.raises(ValueError, match="10 classes, the data set has 100"):
        SoftLabelStore.open(folder, IMAGES, num_classes=100)
    with pytest.raises(ValueError, match="no soft-label store"):
        SoftLabelStore.open(tmp_path / "nowhere", IMAGES)


def test_an_image_that_changed_after_opening_is_noticed(written: tuple[Path, Tensor]):
    store = SoftLabelStore.open(written[0], IMAGES)
    with pytest.raises(ValueError, match="image 3 is not the one that was labelled"):
        store.crops(3, torch.tensor([0]), IMAGES[4])


def test_a_damaged_shard_that_was_rewritten_is_read_anew(copy: Path):
    before = SoftLabelStore.open(copy, IMAGES).row(2).probs
    for file in copy.glob("[pm]*"):
        file.unlink()
    write_store(IMAGES, lambda pixels: -teacher(pixels), copy, SETTINGS)
    assert not torch.equal(SoftLabelStore.open(copy, IMAGES).row(2).probs, before)


def alter_bytes(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["part-00001.arrow", "part-00001.json"])
@pytest.mark.parametrize(
    "harm",
    [
        alter_bytes,
        lambda file: file.write_bytes(file.read_bytes()[:-200]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"[1, 2"),
        Path.unlink,
    ],
    ids=["altered", "cut", "empty", "garbage", "deleted"],
)
@pytest.mark.filterwarnings("ignore:.*is damaged and is made anew")
def test_damaged_copies_of_shards_are_made_anew(name: str, harm, copy: Path):
    """Training reads these copies; what is in them must be what the verified shards hold."""
    before = [SoftLabelStore.open(copy, IMAGES).row(index) for index in range(23)]
    whole = (copy / ".arrow" / "part-00001.arrow").read_bytes()
    harm(copy / ".arrow" / name)
    store = SoftLabelStore.open(copy, IMAGES, verify=False)
    assert len(store.indices) == 23
    for index, row in enumerate(before):
        assert all(torch.equal(one, other) for one, other in zip(store.row(index), row, strict=True))
    assert (copy / ".arrow" / "part-00001.arrow").read_bytes() == whole


def test_a_damaged_copy_is_named_and_a_damaged_shard_is_not_copied(copy: Path):
    SoftLabelStore.open(copy, IMAGES)
    alter_bytes(copy / ".arrow" / "part-00000.arrow")
    with pytest.warns(UserWarning, match=r"part-00000.arrow is damaged and is made anew from .*part-00000.parquet"):
        SoftLabelStore.open(copy, IMAGES, verify=False)
    alter(copy)
    (copy / ".arrow" / "part-00001.arrow").unlink()
    with pytest.raises(ValueError, match=r"part-00001.parquet is damaged: .* run `lowbit softlabels data=digits`"):
        SoftLabelStore.open(copy, IMAGES, verify=False)


def test_classes_of_a_store_are_compared_by_name(tmp_path: Path, copy: Path):
    names = tuple("abcdefghij")
    write_store(IMAGES, teacher, tmp_path / "named", replace(SETTINGS, names=names))
    assert json.loads((tmp_path / "named" / "manifest.json").read_text())["labels"]["names"] == list(names)
    SoftLabelStore.open(tmp_path / "named", IMAGES, num_classes=10, class_names=names)
    SoftLabelStore.open(tmp_path / "named", IMAGES, num_classes=10)
    with pytest.raises(ValueError, match="another order: class 1 is b there, c here; write another"):
        SoftLabelStore.open(tmp_path / "named", IMAGES, num_classes=10, class_names=("a", "c", "b", *names[3:]))
    with pytest.raises(ValueError, match="labels: there"):
        write_store(IMAGES, teacher, tmp_path / "named", replace(SETTINGS, names=names[::-1]))
    # A store of a version that wrote no names is used and mended as it was, under the same id.
    manifest = (copy / "manifest.json").read_text()
    SoftLabelStore.open(copy, IMAGES, num_classes=10, class_names=names)
    (copy / "part-00002.parquet").unlink()
    write_store(IMAGES, teacher, copy, replace(SETTINGS, names=names))
    assert (copy / "manifest.json").read_text() == manifest


@pytest.mark.parametrize(
    ("broken", "said"),
    [(lambda pixels: teacher(pixels)[:, :9], "expected \\(7, 10\\)"), (lambda pixels: teacher(pixels) / 0, "finite")],
)
def test_a_teacher_that_cannot_be_stored_is_refused(broken, said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=said):
        write_store(IMAGES, broken, tmp_path, SETTINGS)


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
        write_store(IMAGES[:0], teacher, tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="seed=None"):
        write_store(IMAGES, teacher, tmp_path, replace(SETTINGS, seed=None))


def split_of(folder: Path, batch_size: int = 10, num_crops: int = 4, **changes: object) -> MultiCropSplit:
    store = SoftLabelStore.open(folder, IMAGES)
    return MultiCropSplit(IMAGES, LABELS, store, batch_size=batch_size, num_crops=num_crops, seed=0, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("batch_size", "num_crops", "counts"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 1, [1] * 3)])
def test_a_step_has_exactly_b_crops(batch_size: int, num_crops: int, counts: list[int], written: tuple[Path, Tensor]):
    split = split_of(written[0], batch_size, num_crops)
    assert split.images_per_batch == len(counts)
    sampler = StepBatchSampler(len(split), split.images_per_batch, seed=0)
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
    for pixels, probs, row in zip(
        batch["pixel_values"], batch["soft_labels"], [17] * 4 + [2] * 4 + [20] * 2, strict=True
    ):
        matches = [crop for crop in range(6) if torch.equal(seen[row, crop], pixels)]
        assert matches, "not a crop that the teacher saw"
        assert any(torch.equal(split.store.row(row).probs[crop], probs) for crop in matches)
        found.append((row, matches[0]))
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


def test_another_student_size_and_images_without_labels(written: tuple[Path, Tensor]):
    store = SoftLabelStore.open(written[0], IMAGES)
    transform = CropTransform(12, mean=(0.5,), std=(0.5,))
    split = MultiCropSplit(IMAGES, None, store, batch_size=4, num_crops=2, seed=0, transform=transform)
    batch = split.__getitems__(StepRows(0, [0, 1]))
    assert batch["pixel_values"].shape == (4, 1, 12, 12)
    assert set(batch) == {"pixel_values", "soft_labels"}
    assert len(split) == 23


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
        sampler = StepBatchSampler(len(split), split.images_per_batch, seed=0)
        return DataLoader(split, batch_sampler=sampler, num_workers=workers, collate_fn=as_is)  # type: ignore[arg-type]

    for one, two in zip(islice(loader(0), 3), islice(loader(1), 3), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_another_process_with_another_hash_seed_writes_the_same_bytes(written: tuple[Path, Tensor], tmp_path: Path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_soft_labels as t; "
        "t.write_store(t.IMAGES, t.teacher, Path(sys.argv[2]), t.SETTINGS)"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        check=True,
    )
    assert checksums(tmp_path) == checksums(written[0])


def test_a_bar_is_drawn_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_store(IMAGES[:2], teacher, tmp_path, SETTINGS, progress=True)
    shown = capsys.readouterr()
    assert "soft labels" in shown.out
    assert "Creating parquet" not in shown.out + shown.err

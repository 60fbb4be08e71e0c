"""Image files: what is listed, how a batch is made of them, and that it depends on (seed, step) alone."""

import io
import pickle
import random
import shutil
import struct
import tracemalloc
import warnings
import zlib
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from lowbit.config.image_folders import list_images
from lowbit.data import Batch, ImageInput, StepDataModule, build_datamodule, data_info
from lowbit.data.image_sets import unusable_images
from lowbit.data.image_source import FileImages, PixelImages, UnreadableImageError
from lowbit.data.image_transforms import evaluation_transform, seeded
from lowbit.data.sampling import StepRows
from lowbit.hub import OutOfReachError
from lowbit.settings.data import DataConfig, DataKind, ImageConfig, Interpolation, OnBadRow

HARD = ImageConfig(size=16, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
DEIT = ImageInput(24, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic", 0.9)


def config(folder: Path, kind: DataKind = DataKind.image_folder, **changes: Any) -> DataConfig:
    settings = {"batch_size": 4, "eval_batch_size": 4, "num_workers": 0, "augment": True, "image": ImageConfig(size=16)}
    return DataConfig(name=kind.name, kind=kind, dir=str(folder), **(settings | changes))


def take(data: StepDataModule, count: int, first_step: int = 0) -> list[Batch]:
    data.first_step = first_step
    return list(islice(data.train_dataloader(), count))


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        for one, other in zip(first, second, strict=True)
    )


def test_images_and_labels_are_those_of_torchvision(images: Path):
    data = build_datamodule(config(images, augment=False), 0)
    known = ImageFolder(images / "train")
    split = data.splits.train
    assert [split.images.path(row) for row in range(len(split))] == [Path(path) for path, _ in known.samples]
    assert split.labels.tolist() == known.targets
    assert data.info.num_labels == len(known.classes) == 3
    assert list(data.info.labels) == known.classes
    for row, (image, _) in enumerate(known):
        assert split.images[row].tolist() == np.asarray(image).transpose(2, 0, 1).tolist()
    assert (data.info.train_size, len(data.splits.validation), data.splits.test) == (12, 6, None)
    assert data.info.primary_metric == "val/accuracy"


@pytest.mark.parametrize("kind", [DataKind.cifar10, DataKind.cifar100])
def test_cifar_is_read_from_the_official_files(cifar: Path, kind: DataKind):
    data = build_datamodule(config(cifar, kind, augment=False, image=ImageConfig()), 0)
    classes = 10 if kind is DataKind.cifar10 else 100
    assert (data.info.image_size, data.info.channels, data.info.num_labels) == (32, 3, classes)
    assert len(set(data.info.labels)) == classes
    assert data.info.labels[2:5] == (("bird", "cat", "deer") if classes == 10 else ("baby", "bear", "beaver"))
    name = "cifar-10-batches-py/data_batch_2" if classes == 10 else "cifar-100-python/train"
    with (cifar / name).open("rb") as file:
        content = pickle.load(file, encoding="latin1")
    split, first = data.splits.train, 10 if classes == 10 else 0
    assert split.images[first].flatten().tolist() == content["data"][0].tolist()
    assert split.labels[first : first + 10].tolist() == list(range(10))
    assert (len(split), len(data.splits.validation)) == (50, 20)
    batch = split.__getitems__([first])
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.info.image.mean, data.info.image.std))
    torch.testing.assert_close(batch["pixel_values"][0], (split.images[first] / 255 - mean) / std)


def test_a_batch_file_runs_nothing(cifar: Path, tmp_path: Path):
    shutil.copytree(cifar, tmp_path, dirs_exist_ok=True)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match=r"data_batch_3 is no batch .*it names builtins.print\); fetch it again"):
        data_info(config(tmp_path, DataKind.cifar10))
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"\x80\x02}.")
    with pytest.raises(ValueError, match=r"data_batch_3 is no batch .*KeyError"):
        data_info(config(tmp_path, DataKind.cifar10))


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ftq\0\x85R.", "TypeError"),
        (
            b"\x80\x02}(U\x04data" + ARRAY + b"J\xff\xff\xff\x7f\x85U\x01b\x87R(K\x01J\xff\xff\xff\x7fM\0\x0c\x86"
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89U\x01atbU\x06labels](K\1eu.",
            "cannot reshape array of size 1",
        ),
        (
            b"\x80\x02}(U\x04data"
            + ARRAY
            + b"K\0\x85U\x01b\x87R(K\x01K\1\x85cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R\x89]K\1atbU\x06labels](K\1eu.",
            "pixels of type O8",
        ),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "LONG_BINPUT at byte 3 declares 2147483647"),
        (b"\x80\x02Np2147483647\n.", "PUT at byte 3 declares 2147483647"),
        (b"\x80\x04\x8e\0\0\0\0\1\0\0\0abc.", "expected 4294967296 bytes"),
        (b"\x80\x04\x95\0\0\0\0\1\0\0\0N.", "FRAME at byte 2 declares"),
        (b"\x80\x02T\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
        (b"\x80\x02Pdata\n.", "UnpicklingError"),
    ],
    ids=["array", "shape", "objects", "memo", "memo in text", "bytes", "frame", "string", "persistent id"],
)
def test_a_batch_file_allocates_no_more_than_it_holds(content: bytes, said: str, cifar: Path, tmp_path: Path):
    shutil.copytree(cifar / "cifar-10-batches-py", tmp_path, dirs_exist_ok=True)
    (tmp_path / "data_batch_3").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"data_batch_3 is no batch .*{said}.*; fetch it again"):
        data_info(config(tmp_path, DataKind.cifar10))
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_a_batch_file_of_another_size_is_not_read(cifar: Path, tmp_path: Path):
    shutil.copytree(cifar / "cifar-10-batches-py", tmp_path, dirs_exist_ok=True)
    with (tmp_path / "data_batch_3").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"data_batch_3 is no batch .*it has 1099511627776 bytes"):
        data_info(config(tmp_path, DataKind.cifar10))


def test_cifar_may_also_lie_in_folders_of_classes(tmp_path: Path):
    for split in ("train", "test"):
        for name in range(10):
            (tmp_path / split / f"class{name}").mkdir(parents=True)
            Image.new("RGB", (32, 32), (name, 0, 0)).save(tmp_path / split / f"class{name}" / "a.png")
    data = build_datamodule(config(tmp_path, DataKind.cifar10, image=ImageConfig()), 0)
    assert (data.info.num_labels, data.info.image_size, len(data.splits.validation)) == (10, 32, 10)
    assert data.info.labels == tuple(f"class{name}" for name in range(10))
    assert [int(data.splits.train.images[row][0, 0, 0]) for row in range(10)] == list(range(10))


@pytest.mark.parametrize("kind", [DataKind.image_folder, DataKind.cifar10])
def test_workers_and_a_resume_change_no_bit(kind: DataKind, images: Path, cifar: Path):
    """Crop, mirror, RandAugment, erased part: timm draws them from Python's, numpy's and torch's generators."""
    settings = config(images if kind is DataKind.image_folder else cifar, kind, image=HARD)
    whole = take(build_datamodule(settings, 1), 6)
    random.seed(9)
    torch.manual_seed(9)
    assert same(take(build_datamodule(replace(settings, num_workers=2), 1), 3, first_step=3), whole[3:])
    assert same(take(build_datamodule(settings, 1), 3, first_step=3), whole[3:])
    assert not same(take(build_datamodule(settings, 2), 6), whole)
    again = take(build_datamodule(settings, 1), 1, first_step=13 if kind is DataKind.cifar10 else 3)
    assert not same(again, whole[:1]), "another epoch draws other crops"


def test_the_generators_of_the_process_are_left_alone(images: Path):
    data = build_datamodule(config(images, image=HARD), 1)
    data.setup("fit")
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    take(data, 2)
    with seeded(1, 2):
        first = random.random(), np.random.rand(), torch.rand(()).item()
    with seeded(1, 2):
        assert first == (random.random(), np.random.rand(), torch.rand(()).item())
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_only_training_rows_are_augmented(images: Path):
    data = build_datamodule(config(images), 1)
    (batch,) = take(data, 1)
    plain = build_datamodule(config(images, augment=False), 1)
    (whole,) = take(plain, 1)
    assert torch.equal(batch["labels"], whole["labels"])
    assert not torch.equal(batch["pixel_values"], whole["pixel_values"])
    assert same(list(data.val_dataloader()), list(plain.val_dataloader()))


def test_a_pretrained_model_says_how_its_images_are_made(images: Path, cifar: Path):
    data = build_datamodule(config(images, augment=False), 0, image=DEIT)
    assert (data.info.image_size, data.info.image) == (24, DEIT)
    image = data.splits.train.images.pil(0)
    side = 26  # floor(24 / 0.9)
    width, height = image.size
    scaled = image.resize((side * width // height, side), Image.Resampling.BICUBIC)
    left, top = round((scaled.width - 24) / 2), round((scaled.height - 24) / 2)
    pixels = np.asarray(scaled.crop((left, top, left + 24, top + 24))).transpose(2, 0, 1) / 255
    expected = torch.from_numpy((pixels - 0.5) / 0.25).float()
    torch.testing.assert_close(data.splits.train.__getitems__([0])["pixel_values"][0], expected)
    resized = build_datamodule(config(cifar, DataKind.cifar10, image=ImageConfig()), 0, image=DEIT)
    assert take(resized, 1)[0]["pixel_values"].shape == (4, 3, 24, 24)


def test_published_evaluation_of_the_variation_aware_paper(images: Path):
    """Resize to 256, bilinear, and cut 224 out of the centre."""
    settings = ImageConfig(crop_pct=0.875, interpolation=Interpolation.bilinear)
    wanted = data_info(config(images, image=settings)).image
    resize, cut, *_ = evaluation_transform(wanted).transforms
    assert (wanted.size, resize.size, resize.interpolation.value, cut.size) == (224, 256, "bilinear", (224, 224))


def test_at_its_own_size_an_image_is_padded_and_cut(cifar: Path):
    data = build_datamodule(config(cifar, DataKind.cifar10, image=ImageConfig(flip=0.0)), 1)
    split = data.splits.train
    mean, std = map(torch.tensor, (data.info.image.mean, data.info.image.std))
    black_C, edges = -mean / std, 0
    for batch in take(data, 3):
        for pixels, row in zip(batch["pixel_values"], range(4), strict=True):
            black = (pixels - black_C[:, None, None]).abs().amax(0) < 1e-6
            edges += bool(black[0].all() or black[-1].all() or black[:, 0].all() or black[:, -1].all())
            assert pixels.shape == split.images[row].shape
    assert edges > 6


def test_fewer_images_are_evenly_spaced(images: Path, cifar: Path):
    data = build_datamodule(config(images, train_size=6, eval_size=3), 0)
    assert data.splits.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.splits.validation.labels.tolist() == [0, 1, 2]
    assert data.info.train_size == len(data.splits.train.images) == 6
    few = build_datamodule(config(cifar, DataKind.cifar100, train_size=5), 0).splits.train
    assert few.labels.tolist() == [0, 10, 20, 30, 40]
    with pytest.raises(ValueError, match=r"data.train_size=13: image_folder has 12 such rows"):
        data_info(config(images, train_size=13))


@pytest.fixture
def damaged(images: Path, tmp_path: Path) -> Path:
    """A JPEG cut in half, a file that is no image, a class without images, and a file that is none by its name."""
    shutil.copytree(images, tmp_path / "damaged")
    first, second, third = (tmp_path / "damaged" / "train" / name for name in ("n01440764", "n02102040", "n03888257"))
    file = first / "n01440764_0.JPEG"
    file.write_bytes(file.read_bytes()[:350])
    (second / "n02102040_2.JPEG").write_text("<html>404</html>")
    (second / "Thumbs.db").write_text("not counted")
    for file in third.iterdir():
        file.unlink()
    return tmp_path / "damaged"


def test_bad_files_are_named_and_counted(damaged: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="3 bad rows") as caught:
        build_datamodule(config(damaged), 0, cache=tmp_path / "cache").setup("fit")
    for words in ("n03888257: holds no image", "n01440764_0.JPEG: ", "n02102040_2.JPEG: ", "data.on_bad_row=skip"):
        assert words in str(caught.value)


def test_bad_files_are_left_out_with_a_warning(damaged: Path, tmp_path: Path):
    settings = config(damaged, on_bad_row=OnBadRow.skip, augment=False)
    data = build_datamodule(settings, 0, cache=tmp_path / "cache")
    with pytest.warns(UserWarning, match="3 bad rows"):
        data.setup("fit")
    assert (data.info.num_labels, data.info.train_size) == (3, 8)
    with pytest.warns(UserWarning, match=r"left out of its batch: .*n0"):
        batches = take(data, 2)  # an epoch
    assert sum(len(batch["labels"]) for batch in batches) == 6
    assert sorted(label for batch in batches for label in batch["labels"].tolist()) == [0, 0, 0, 1, 1, 1]


def test_batches_without_a_readable_image_stop_no_run(damaged: Path, tmp_path: Path):
    """Known bad images are no rows of an evaluation; a training batch gets the next image that can be read."""
    for name in ("n01440764", "n02102040"):
        (damaged / "val" / name / f"ILSVRC2012_val_0000000{1 if name == 'n01440764' else 3}.JPEG").write_text("none")
    settings = config(damaged, on_bad_row=OnBadRow.skip, augment=False, batch_size=1, eval_batch_size=1)
    data = build_datamodule(settings, 0, cache=tmp_path / "cache")
    with pytest.warns(UserWarning, match="bad rows"):
        data.setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluated = [batch["labels"].tolist() for batch in data.val_dataloader()]
    assert evaluated == [[0], [1], [2], [2]]
    with pytest.warns(UserWarning, match=r"left out of its batch: .*n01440764_0"):
        batch = data.splits.train.__getitems__(StepRows(0, [0]))
    assert batch["labels"].tolist() == [0]
    assert torch.equal(batch["pixel_values"], data.splits.train.__getitems__([1])["pixel_values"])
    with pytest.warns(UserWarning, match="left out"):
        assert len(data.splits.train.__getitems__([0])["labels"]) == 0, "found bad later, in a set too large to check"


def test_a_split_of_bad_images_alone_is_refused(damaged: Path):
    for file in (damaged / "val").rglob("*.*"):
        file.write_text("none")
    with (
        pytest.raises(ValueError, match=r"val: none of the images that eval_size takes can be read"),
        pytest.warns(UserWarning, match="bad rows"),
    ):
        build_datamodule(config(damaged, on_bad_row=OnBadRow.skip), 0).setup("fit")
    for file in (damaged / "train").rglob("*.*"):
        file.write_text("none")
    with pytest.raises(ValueError, match=r"no training image can be used"):
        build_datamodule(config(damaged, on_bad_row=OnBadRow.skip), 0).setup("fit")


def test_check_names_bad_images_and_says_how_many_it_looked_at(
    damaged: Path, images: Path, cifar: Path, monkeypatch: pytest.MonkeyPatch
):
    (problem,) = unusable_images(config(damaged))
    for words in ("2 bad rows", "n01440764_0.JPEG: ", "n02102040_2.JPEG: ", "data.on_bad_row=skip"):
        assert words in problem
    assert not list(unusable_images(config(images)))
    assert not list(unusable_images(config(damaged, on_bad_row=OnBadRow.skip)))
    with pytest.raises(ValueError, match=r"data.eval_size=7: image_folder has 6 such rows"):
        list(unusable_images(config(images, eval_size=7)))
    assert not list(unusable_images(config(cifar, DataKind.cifar10)))
    monkeypatch.setattr("lowbit.data.image_sets.CHECK_SECONDS", -1)
    with pytest.raises(OutOfReachError, match="0 of 18 images were looked at"):
        list(unusable_images(config(images)))


def test_mended_files_are_no_longer_bad(damaged: Path, images: Path, tmp_path: Path):
    """What is known of a small set is kept, and files that were bad are read again."""
    cache = tmp_path / "cache"
    settings = config(damaged, on_bad_row=OnBadRow.skip)
    with pytest.warns(UserWarning, match="3 bad rows"):
        build_datamodule(settings, 0, cache=cache).setup("fit")
    known = sorted((cache / "images").iterdir())
    with pytest.warns(UserWarning, match="3 bad rows"):
        build_datamodule(settings, 0, cache=cache).setup("fit")
    assert sorted((cache / "images").iterdir()) == known
    shutil.copytree(images, damaged, dirs_exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_datamodule(settings, 0, cache=cache).setup("fit")


def test_large_sets_are_not_read_beforehand(damaged: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lowbit.data.image_sets.CHECKED_BYTES", 10)
    shutil.rmtree(damaged / "train" / "n03888257")
    shutil.rmtree(damaged / "val" / "n03888257")
    data = build_datamodule(config(damaged), 0)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"n0\d+_\d.JPEG: "):
        take(data, 2)


def test_images_go_to_workers_unless_the_config_says_otherwise(images: Path, monkeypatch: pytest.MonkeyPatch):
    data = build_datamodule(config(images, num_workers=None), 0)
    monkeypatch.setattr("lowbit.data.datamodule.cpu_cores", lambda: 3)
    loader = data.train_dataloader()
    assert (loader.num_workers, loader.persistent_workers, loader.pin_memory) == (3, True, False)
    monkeypatch.setattr("lowbit.data.datamodule.cpu_cores", lambda: 64)
    assert data.val_dataloader().num_workers == 8
    digits = DataConfig(name="digits", kind=DataKind.digits)
    assert build_datamodule(digits, 0).train_dataloader().num_workers == 0


def test_sources_know_their_bounds(images: Path):
    source = FileImages(images / "val", ["n01440764/ILSVRC2012_val_00000000.JPEG"])
    assert source.path(0) == images.absolute() / "val/n01440764/ILSVRC2012_val_00000000.JPEG"
    with pytest.raises(IndexError, match="image 1 of 1"):
        source.path(1)
    pixels = torch.arange(24, dtype=torch.uint8).reshape(1, 3, 2, 4)
    assert np.asarray(PixelImages(pixels).pil(0)).tolist() == pixels[0].permute(1, 2, 0).tolist()


def gradient(largest: int, kind: type) -> Any:
    return (np.arange(12).reshape(3, 4) * (largest / 11)).round().astype(kind)


def pgm(largest: int) -> bytes:
    pixels = gradient(largest, np.uint16)
    return f"P5 4 3 {largest}\n".encode() + (pixels.astype(">u2") if largest > 255 else pixels.astype("u1")).tobytes()


def tiff(bits: int, photometric: int, raw: bytes) -> bytes:
    """Return a grey TIFF of 4x3 pixels, little-endian, in one strip."""
    tags = {256: 4, 257: 3, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 3, 279: len(raw)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    offset = 8 + len(raw) + len(raw) % 2
    return (
        struct.pack("<2sHI", b"II", 42, offset)
        + raw.ljust(offset - 8, b"\0")
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def twelve_bits() -> bytes:
    a, b = gradient(4095, np.uint16).reshape(-1, 2).T.astype(int)
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()


GREY16 = gradient(65535, np.uint16)
PALETTE = Image.frombytes("P", (4, 3), bytes(range(12)))
RGBA = Image.merge("RGBA", [Image.fromarray(gradient(255, np.uint8))] * 4)
RAMP = gradient(255, np.uint8)
PALETTE.putpalette(RAMP.repeat(3).tolist())


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(content, id=name)
        for name, content in {
            "png 16": encoded(Image.fromarray(GREY16), "PNG"),
            "tiff 16": encoded(Image.fromarray(GREY16), "TIFF"),
            "tiff 16 big-endian": encoded(Image.frombytes("I;16B", (4, 3), GREY16.astype(">u2").tobytes()), "TIFF"),
            "tiff 16 white is 0": tiff(16, 0, (65535 - GREY16).tobytes()),
            "tiff 12": tiff(12, 1, twelve_bits()),
            "tiff 8 white is 0": tiff(8, 0, (255 - RAMP).tobytes()),
            "pgm 65535": pgm(65535),
            "pgm 4095": pgm(4095),
            "pgm 255": pgm(255),
            "pgm 100": pgm(100),
            "png palette": encoded(PALETTE, "PNG"),
            "png palette, one colour transparent": encoded(PALETTE, "PNG", transparency=3),
            "png palette, all half transparent": encoded(PALETTE, "PNG", transparency=bytes([128] * 12)),
            "gif": encoded(PALETTE, "GIF"),
            "png alpha": encoded(RGBA, "PNG"),
            "png grey and alpha": encoded(RGBA.convert("LA"), "PNG"),
            "png grey": encoded(Image.fromarray(RAMP), "PNG"),
            "bmp": encoded(Image.fromarray(RAMP), "BMP"),
            "webp": encoded(RGBA, "WEBP", lossless=True, exact=True),
            "tiff cmyk": encoded(Image.fromarray(RAMP).convert("RGB").convert("CMYK"), "TIFF"),
            "jpeg cmyk": encoded(Image.fromarray(RAMP).convert("RGB").convert("CMYK"), "JPEG", quality=100),
            "jpeg": encoded(Image.fromarray(RAMP), "JPEG", quality=100),
            "jpeg turned by exif": encoded(
                Image.fromarray(RAMP),
                "JPEG",
                quality=100,
                exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
            ),
        }.items()
    ],
)
def test_every_kind_of_pixels_keeps_its_range(content: bytes, tmp_path: Path):
    """A ramp from black to white; the name says nothing of what is in a file."""
    (tmp_path / "a.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = FileImages(tmp_path, ["a.png"])[0]
    assert pixels.shape == (3, 3, 4)
    lossy = 4 if content[:2] == b"\xff\xd8" else 1
    assert (pixels.int() - torch.from_numpy(RAMP).int()).abs().max() <= lossy


def test_bilevel_images_are_black_and_white(tmp_path: Path):
    Image.fromarray(RAMP > 100).save(tmp_path / "a.png")
    assert FileImages(tmp_path, ["a.png"])[0].unique().tolist() == [0, 255]


def test_a_link_back_to_its_folder_gives_no_image_twice(tmp_path: Path):
    (tmp_path / "a" / "more").mkdir(parents=True)
    (tmp_path / "a" / "more" / "1.png").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    elsewhere = tmp_path.with_name(f"{tmp_path.name}_linked")
    elsewhere.mkdir()
    (elsewhere / "2.png").touch()
    (tmp_path / "a" / "linked").symlink_to(elsewhere)
    assert list_images(tmp_path).files == ("a/linked/2.png", "a/more/1.png")


def eps() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


def huge_png() -> bytes:
    small = bytearray(encoded(Image.fromarray(RAMP), "PNG"))
    small[16:24] = struct.pack(">II", 40_000, 40_000)
    small[29:33] = struct.pack(">I", zlib.crc32(small[12:29]))
    return bytes(small)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), "holds floats .mode F.*convert it to 8 or 16 bits"),
        (encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), "holds signed or 32-bit integers .mode I.*8 or 16"),
        (encoded(Image.fromarray(RAMP), "TIFF", tiffinfo={339: 2}), "holds signed integers .mode L.*8 or 16 bits"),
        (huge_png(), "1600000000 pixels"),
        (b"P5 90000 90000 255\n", "8100000000 pixels"),
        (eps(), "is none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"),
        (encoded(Image.fromarray(GREY16), "PNG")[:50], ""),
        (b"", "is none of"),
    ],
    ids=["float", "int32", "int8", "png bomb", "pgm bomb", "eps", "cut", "empty"],
)
def test_what_has_no_range_or_is_no_image_is_refused_by_name(
    content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def never(*_: Any, **__: Any) -> None:
        raise SystemExit("a program was started")

    monkeypatch.setattr("subprocess.Popen", never)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=f"a.png: .*{said}"):
        FileImages(tmp_path, ["a.png"])[0]

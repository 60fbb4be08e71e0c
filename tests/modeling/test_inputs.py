"""The pixels that a pretrained image model wants, told by its library without its weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTImageProcessorPil,
)

from lowbit.data import DataInfo, ImageInput, build_datamodule
from lowbit.modeling.build import build_model
from lowbit.modeling.inputs import image_input
from lowbit.settings.data import DataConfig, DataKind, ImageConfig
from lowbit.settings.model import ModelConfig, ModelKind

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deit_tiny_patch16_224.fb_in1k", ImageInput(224, *IMAGENET, "bicubic", 0.9)),
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k", ImageInput(224, *HALF, "bicubic", 0.9)),
        ("vit_base_patch16_384.augreg_in21k_ft_in1k", ImageInput(384, *HALF, "bicubic", 1.0)),
        ("swin_tiny_patch4_window7_224.ms_in1k", ImageInput(224, *IMAGENET, "bicubic", 0.9)),
    ],
)
def test_timm_models_bring_their_own(name: str, expected: ImageInput):
    before = torch.get_rng_state()
    assert image_input(ModelConfig(name=name, kind=ModelKind.timm, timm_name=name, pretrained=True)) == expected
    assert torch.equal(torch.get_rng_state(), before)


def test_random_weights_take_the_pixels_of_the_data():
    timm = ModelConfig(name="t", kind=ModelKind.timm, timm_name="deit_tiny_patch16_224.fb_in1k")
    assert image_input(timm) is None
    assert image_input(ModelConfig(name="v", kind=ModelKind.timm_vit)) is None
    info = DataInfo("cifar10", "image", "classification", 10, "accuracy", 100, image_size=32, channels=3)
    timm.patch_size = 4
    assert build_model(timm, info, 0).patch_embed.num_patches == 64, "16 pixels would leave four patches"


def test_a_name_that_timm_does_not_know_is_refused():
    wrong = ModelConfig(name="t", kind=ModelKind.timm, timm_name="deit_tinny", pretrained=True)
    with pytest.raises(ValueError, match=r"model.timm_name=deit_tinny: .*Unknown model"):
        image_input(wrong)


SQUARE = {"height": 24, "width": 24}


def write_processor(folder: Path, settings: dict[str, Any]) -> None:
    content = {"image_processor_type": "ViTImageProcessor", "size": SQUARE, **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        *({"resample": number} for number in range(4)),
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 1 / 127.5, "do_normalize": False},
        {"do_normalize": False},
        {"do_normalize": False, "do_rescale": False},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1]},
        {"do_resize": False, "do_center_crop": True, "crop_size": SQUARE},
        {"size": {"shortest_edge": 31}, "do_center_crop": True, "crop_size": SQUARE},
        {"size": {"height": 29, "width": 33}, "do_center_crop": True, "crop_size": SQUARE},
        {"size": {"height": 20, "width": 20}, "do_center_crop": True, "crop_size": SQUARE},
        {"do_convert_rgb": True},
        {"do_pad": True, "pad_size": {"height": 28, "width": 28}},
        {"data_format": "channels_last", "input_data_format": "channels_first", "do_normalize": None},
        {
            "image_processor_type": "DeiTImageProcessor",
            "do_center_crop": True,
            "crop_size": {"height": 16, "width": 16},
        },
        {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 24}, "crop_size": SQUARE},
    ],
    ids=str,
)
def test_pixels_of_an_evaluation_are_those_of_the_processor(settings: dict[str, Any], images: Path, tmp_path: Path):
    write_processor(tmp_path, settings)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    wanted = image_input(ModelConfig(name="hf", kind=ModelKind.hf, path=str(tmp_path)))
    assert wanted is not None
    data = DataConfig(name="image_folder", kind=DataKind.image_folder, dir=str(images), num_workers=0)
    split = build_datamodule(data, 0, image=wanted).splits.validation
    batch = split.__getitems__(range(len(split)))["pixel_values"]
    for row, pixels in enumerate(batch):
        expected = processor(images=split.images.pil(row), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(pixels, expected.float())
    # The statistics that training and stored crops use are those of the processor as well.
    whole = split.images.pil(0).resize((1, 1)).resize((wanted.size, wanted.size))
    plain = torch.tensor(whole.getpixel((0, 0)))[:, None, None] / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (wanted.mean, wanted.std))
    middle = (slice(None), wanted.size // 2, wanted.size // 2)
    torch.testing.assert_close(wanted.processor(whole)[middle], ((plain - mean) / std)[:, 0, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"do_resize": False}, r"an image of 61x40 becomes \(3, 40, 61\).* with do_resize=False, size="),
        ({"size": {"shortest_edge": 24}}, r"one of 40x61 \(3, 36, 24\).*size=\{'shortest_edge': 24\}"),
        ({"size": {"height": 24, "width": 32}}, r"becomes \(3, 24, 32\)"),
        ({"image_mean": None}, "`image_mean` and `image_std` must both be specified"),
        ({"resample": None}, "`size` and `resample` must be specified.*resample=None"),
        ({"resample": 4}, "cannot be followed.*resample=4"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std="),
        ({"image_mean": [0.5]}, "image_mean="),
        ({"image_processor_type": "NoSuchProcessor"}, "cannot be loaded"),
        ({"resample": 9}, "cannot be followed"),
        ({"rescale_factor": 0.0}, "cannot be followed"),
    ],
    ids=str,
)
def test_a_processor_that_cannot_be_followed_is_refused_by_name(settings: dict[str, Any], said: str, tmp_path: Path):
    write_processor(tmp_path, settings)
    with pytest.raises(ValueError, match=said):
        image_input(ModelConfig(name="hf", kind=ModelKind.hf, path=str(tmp_path)))


def test_code_in_a_folder_is_never_executed(tmp_path: Path):
    (tmp_path / "mine.py").write_text("raise SystemExit('executed')")
    auto = {"auto_map": {"AutoImageProcessor": "mine.Mine"}, "image_processor_type": "Mine"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(auto))
    with pytest.raises(ValueError, match=r"preprocessor_config.json\) cannot be loaded"):
        image_input(ModelConfig(name="hf", kind=ModelKind.hf, path=str(tmp_path)))


def test_the_config_overrides_a_processor(images: Path, tmp_path: Path):
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    wanted = image_input(ModelConfig(name="hf", kind=ModelKind.hf, path=str(tmp_path)))
    settings = ImageConfig(crop_pct=0.5)
    data = DataConfig(name="image_folder", kind=DataKind.image_folder, dir=str(images), image=settings)
    info = build_datamodule(data, 0, image=wanted).info
    assert (info.image.processor, info.image.crop_pct, info.image.size) == (None, 0.5, 32)


def test_a_hugging_face_folder_brings_its_processor(tmp_path: Path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(image_size=24, patch_size=8, **sizes)).save_pretrained(tmp_path)
    config = ModelConfig(name="hf", kind=ModelKind.hf, path=str(tmp_path))
    with pytest.raises(ValueError, match=r"image processor \(preprocessor_config.json\) cannot be loaded"):
        image_input(config)
    processor = ViTImageProcessorPil(size={"height": 24, "width": 24}, image_mean=[0.1, 0.2, 0.3], resample=3)
    processor.save_pretrained(tmp_path)
    assert image_input(config) == ImageInput(24, (0.1, 0.2, 0.3), HALF[1], "bicubic", 1.0, "squash")
    # DeiT's on the hub: resized to 256 pixels, of these the 224 in the centre, which the model takes
    crop = {"crop_size": {"height": 24, "width": 24}, "do_center_crop": True}
    ViTImageProcessorPil(size={"height": 32, "width": 32}, **crop).save_pretrained(tmp_path)
    found = image_input(config)
    assert found is not None
    assert (found.size, found.crop_pct, found.crop_mode) == (24, 0.75, "squash")

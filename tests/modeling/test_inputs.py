"""The pixels that a pretrained image model wants, told by its library without its weights."""

from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from lowbit.config.schema import ModelConfig, ModelKind
from lowbit.data import DataInfo, ImageInput
from lowbit.modeling.build import build_model
from lowbit.modeling.inputs import image_input

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

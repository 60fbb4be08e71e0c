"""Which pixels teacher and student see where the data are image files."""

from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from lowbit.config import identity
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load
from lowbit.data import data_info
from lowbit.settings.run import Config
from lowbit.training.setup import make_datamodule, make_teacher_datamodule, make_teacher_model

IMAGENET = (0.485, 0.456, 0.406)
HALF = (0.5, 0.5, 0.5)
FRESH = "method.stages.qat.student=fresh"  # of another architecture than the teacher


def config(images: Path, *overrides: str) -> Config:
    return load(["data=image_folder", f"data.dir={images}", "budget.steps=3", "budget.epochs=null", *overrides])[1]


def test_a_pretrained_model_keeps_its_own_size(images: Path):
    data = make_datamodule(config(images, "model=deit_tiny", "data.image.size=64"), 1)
    assert (data.info.image.size, data.info.image.mean, data.info.image.crop_pct) == (224, IMAGENET, 0.9)
    published = config(images, "model=deit_tiny", "data.image.crop_pct=0.875", "data.image.interpolation=bilinear")
    assert make_teacher_datamodule(published).info.image == make_datamodule(published, 1).info.image
    assert make_datamodule(published, 1).info.image.interpolation == "bilinear"
    assert make_datamodule(config(images, "model=vit_micro", "data.image.size=64"), 1).info.image.size == 64


def test_models_that_want_other_pixels_do_not_share_a_batch(images: Path):
    models = ["model=deit_tiny", "+model@teacher.model=vit_base", "teacher=hub", FRESH]
    with pytest.raises(
        ConfigError, match=r"model=deit_tiny takes 224 pixels \(mean \(0.485.*teacher.model=vit_base 224"
    ):
        make_datamodule(config(images, *models, "method=qat_logits"), 1)
    apart = config(images, *models, "method=qat_task", "method.stages.qat.teacher=false")
    assert make_datamodule(apart, 1).info.image.mean == IMAGENET
    assert make_teacher_datamodule(apart).info.image.mean == HALF


def test_a_teacher_that_nobody_needs_changes_no_pixel(images: Path):
    """The run's id does not count it either."""
    plain = ["model=vit_micro", "model.patch_size=32", "method=finetune"]
    teacher = ["+model@teacher.model=vit_base", "teacher=hub"]
    (alone_cfg, alone), (beside_cfg, beside) = (
        load(["data=image_folder", f"data.dir={images}", *plain, *more]) for more in ([], teacher)
    )
    assert identity.run_id(alone_cfg) == identity.run_id(beside_cfg)
    assert make_datamodule(alone, 1).info == make_datamodule(beside, 1).info


def test_a_random_student_takes_the_pixels_of_its_teacher(images: Path):
    models = ["model=vit_micro", "model.patch_size=32", "+model@teacher.model=vit_base", "teacher=hub", FRESH]
    student, teacher = (
        make(config(images, *models, "method=qat_logits"), *seed).info
        for make, seed in ((make_datamodule, [1]), (make_teacher_datamodule, []))
    )
    assert student.image == teacher.image
    assert (student.image_size, student.image.mean) == (224, HALF)


@pytest.mark.parametrize("source", ["hub", "path"])
def test_a_teacher_of_images_is_right_whatever_the_order_of_its_labels(source: str, images: Path, tmp_path: Path):
    """Its outputs meet the folders by name; the folder's own processor makes the pixels."""
    info = data_info(config(images, "model=vit_micro").data)
    names = list(info.labels)
    assert len(names) == 3
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    batch = torch.randn(2, 3, 32, 32)
    outputs = []
    for order in ([0, 1, 2], [2, 0, 1]):
        folder = tmp_path / "".join(map(str, order))
        described = ViTConfig(
            image_size=32, patch_size=16, id2label={i: names[j] for i, j in enumerate(order)}, **sizes
        )
        torch.manual_seed(0)
        saved = ViTForImageClassification(described).eval()
        with torch.no_grad():
            saved.classifier.weight.copy_(saved.classifier.weight[order])
        saved.save_pretrained(folder)
        ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
        model = ["model=hf", f"model.path={folder}", f"teacher={source}", f"teacher.path={folder}"]
        run = config(images, *model, "data.augment=false", "method=qat_logits")
        data = make_teacher_datamodule(run)
        assert data.info.image is not None
        assert (data.info.image.size, data.info.image.mean) == (32, (0.1, 0.2, 0.3))
        teacher = make_teacher_model(run, data.info)
        assert teacher.config.id2label == dict(enumerate(names))
        outputs.append(teacher(batch).logits)
    assert torch.equal(*outputs)

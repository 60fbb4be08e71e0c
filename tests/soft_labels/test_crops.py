"""Crops: torchvision's geometry, one cutting function, and label types that sum to 1."""

import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from lowbit.data.sampling import Stream, generator_for
from lowbit.soft_labels.crops import CHOSEN, DRAWN, CropRule, CropTransform, crop, draw_crops
from lowbit.soft_labels.files import LabelKind, LabelType
from lowbit.soft_labels.store import StoredLabels, compress, expand

RULE = CropRule()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (37, 61), (500, 375), (2, 40), (40, 2), (1, 1)])
def test_the_boxes_are_those_of_torchvision(height: int, width: int):
    torch.manual_seed(5)
    wanted = []
    for _ in range(40):
        box = RandomResizedCrop.get_params(torch.zeros(1, height, width), list(RULE.scale), list(RULE.ratio))
        wanted.append((*box, bool(torch.rand(1) < 0.5)))
    crops = draw_crops(height, width, 40, RULE, torch.Generator().manual_seed(5))
    size = torch.tensor([height, width, height, width])
    boxes = (crops.coords.double() * size).round().long().tolist()
    assert [(*box, flip) for box, flip in zip(boxes, crops.flip.tolist(), strict=True)] == wanted


def test_crops_depend_on_the_generator_alone_and_are_mirrored_half_of_the_time():
    first = draw_crops(8, 8, 400, RULE, generator_for(1, DRAWN, 7))
    torch.manual_seed(123)
    again = draw_crops(8, 8, 400, RULE, generator_for(1, DRAWN, 7))
    other = draw_crops(8, 8, 400, RULE, generator_for(1, DRAWN, 8))
    assert torch.equal(first.coords, again.coords)
    assert torch.equal(first.flip, again.flip)
    assert not torch.equal(first.coords, other.coords)
    assert 150 < int(first.flip.sum()) < 250
    assert first.coords.dtype == torch.float32


def test_the_keys_of_generators_are_no_members_of_stream():
    assert not {DRAWN, CHOSEN} & {int(member) for member in Stream}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_is_that_of_torchvision(interpolation: str):
    image = torch.randn(3, 21, 34, generator=torch.Generator().manual_seed(0))
    crops = draw_crops(21, 34, 20, RULE, torch.Generator().manual_seed(1))
    for coords, flip in zip(crops.coords, crops.flip.tolist(), strict=True):
        top, left, h, w = (coords.double() * torch.tensor([21, 34, 21, 34])).round().long().tolist()
        wanted = TF.resized_crop(image, top, left, h, w, [16, 16], InterpolationMode(interpolation), antialias=True)
        wanted = wanted.flip(-1) if flip else wanted
        torch.testing.assert_close(crop(image, coords, flip, 16, interpolation), wanted, rtol=0, atol=1e-6)


def test_a_whole_crop_at_its_own_size_is_the_image_and_a_flip_mirrors_it():
    image = torch.arange(12.0).reshape(1, 3, 4)[:, :, :3]
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(crop(image, whole, False, 3), image)
    torch.testing.assert_close(crop(image, whole, True, 3), image.flip(2))


def test_the_bits_do_not_depend_on_how_the_image_lies_in_memory():
    images = torch.randn(4, 3, 30, 26, generator=torch.Generator().manual_seed(0))
    channels_last = images.contiguous(memory_format=torch.channels_last)
    crops = draw_crops(30, 26, 10, RULE, torch.Generator().manual_seed(2))
    for coords, flip in zip(crops.coords, crops.flip.tolist(), strict=True):
        assert torch.equal(crop(images[2], coords, flip, 9), crop(channels_last[2], coords, flip, 9))
    gray = images[:, :1]
    assert torch.equal(crop(gray[1], coords, False, 9), crop(gray[1].contiguous(), coords, False, 9))


def test_bytes_become_shares_within_bounds():
    image = torch.tensor([0, 255], dtype=torch.uint8).repeat(1, 8, 4)
    pixels = crop(image, torch.tensor([0.0, 0.0, 1.0, 1.0]), False, 19, "bicubic")
    assert pixels.dtype == torch.float32
    assert pixels.min() == 0
    assert pixels.max() == 1


@pytest.mark.parametrize("coords", [[0.9, 0.9, 0.5, 0.5], [0.0, 0.0, 1e-4, 1e-4], [0.0, 0.0, 1.001, 1.001]])
def test_coords_that_were_rounded_stay_inside(coords: list[float]):
    assert crop(torch.rand(1, 8, 8), torch.tensor(coords), False, 4).shape == (1, 4, 4)


def test_a_transform_normalises_and_survives_json():
    image = torch.rand(2, 8, 8)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0])
    transform = CropTransform(8, mean=(0.5, 0.25), std=(2.0, 4.0))
    wanted = (crop(image, whole, False, 8) - torch.tensor([0.5, 0.25])[:, None, None]) / torch.tensor([2.0, 4.0])[
        :, None, None
    ]
    assert torch.equal(transform(image, whole, False), wanted)
    facts = {"size": 8, "interpolation": "bilinear", "mean": [0.5, 0.25], "std": [2.0, 4.0]}
    assert CropTransform.from_json(facts) == transform


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CropTransform(0), "size=0"),
        (lambda: CropTransform(8, "nearest"), "choose bilinear or bicubic"),
        (lambda: CropTransform(8, mean=(0.5,)), "both or neither"),
        (lambda: CropRule(scale=(0.5, 0.1)), "scale="),
        (lambda: CropRule(ratio=(0.0, 1.0)), "ratio="),
        (lambda: CropRule(flip=1.5), "flip=1.5"),
        (lambda: LabelType.parse("marginal_smoothing"), "marginal_smoothing_kK"),
        (lambda: LabelType.parse("marginal_smoothing_k0"), "choose full, hard"),
    ],
)
def test_impossible_settings_say_what_is_allowed(make, said: str):
    with pytest.raises(ValueError, match=said):
        make()


def test_label_types_have_the_names_of_the_published_files():
    for name in ("full", "hard", "smoothing", "marginal_smoothing_k5", "marginal_renorm_k10"):
        assert str(LabelType.parse(name)) == name
    assert LabelType.parse("ori") == LabelType(LabelKind.full, 0)


def test_expansion_by_hand():
    probs = torch.tensor([[0.1, 0.5, 0.3, 0.06, 0.04]])
    wanted = {
        "full": [0.1, 0.5, 0.3, 0.06, 0.04],
        "hard": [0.0, 1.0, 0.0, 0.0, 0.0],
        "smoothing": [0.125, 0.5, 0.125, 0.125, 0.125],
        "marginal_smoothing_k2": [0.2 / 3, 0.5, 0.3, 0.2 / 3, 0.2 / 3],
        "marginal_renorm_k2": [0.0, 0.625, 0.375, 0.0, 0.0],
    }
    for name, values in wanted.items():
        label_type = LabelType.parse(name)
        found = expand(compress(probs, label_type), label_type, 5)
        torch.testing.assert_close(found, torch.tensor([values]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["full", "hard", "smoothing", "marginal_smoothing_k5", "marginal_renorm_k5"])
@pytest.mark.parametrize("half", [False, True])
def test_every_type_sums_to_1_and_keeps_the_best_class(name: str, half: bool):
    probs = (5 * torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))).softmax(-1)
    label_type = LabelType.parse(name)
    labels = compress(probs, label_type)
    if half:
        labels = StoredLabels(labels.classes, labels.probabilities.half().float())
    found = expand(labels, label_type, 1000)
    assert found.shape == (64, 1000)
    assert found.dtype == torch.float32
    assert float(found.min()) >= 0
    torch.testing.assert_close(found.double().sum(1), torch.ones(64, dtype=torch.float64), rtol=0, atol=2e-6)
    assert torch.equal(found.argmax(1), probs.argmax(1))


def test_stored_probabilities_above_1_leave_nothing_for_the_others():
    labels = StoredLabels(torch.tensor([[1, 2]]), torch.tensor([[0.8, 0.201]]))
    found = expand(labels, LabelType.parse("marginal_smoothing_k2"), 4)
    assert found[0, [0, 3]].tolist() == [0, 0]
    assert float(found.sum()) == pytest.approx(1, abs=1e-6)

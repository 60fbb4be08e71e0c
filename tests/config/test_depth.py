"""What refers to layers is checked against the depth that a model's file says, and stages of layers rule things out."""

import pytest

from lowbit.config.depth import depth_of
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load

BERT = ("model=bert_base", "data=agreement", "data.tokenizer=model")
SWIN = ("model=swin_tiny",)


def problems(*overrides: str) -> list[str]:
    try:
        load([*overrides])
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((*BERT, "method.layer_map=[1,12]"), ["method.layer_map=[1, 12]", "1 to 12 student layers", "0 to 11"]),
        ((*BERT, "method.embedding_target=12"), ["method.embedding_target=12", "0 to 11"]),
        ((*BERT, "method=ti_o", "method.stages.intervene.intervention.layers=[12]"), [".layers: 12", "0 to 11"]),
        ((*SWIN, "method=xtc_layers"), ["method.layer_map=[1, 3]", "stages of [2, 2, 6, 2]", "set it to null"]),
        ((*SWIN, "method.embedding_target=2"), ["method.embedding_target=2", "stages of", "0 to 1"]),
        ((*SWIN, "method.embedding_target=12"), ["method.embedding_target=12", "0 to 11"]),
        (("model.depths=[4]",), ["model.depths=[4]", "model=vit_micro is built to size", "model.num_layers"]),
        ((*SWIN, "model.depths=[2,0]"), ["model.depths=[2, 0]", "greater than 0"]),
        ((*SWIN, "model.depths=[]"), ["model.depths=[]", "for example [12]"]),
    ],
)
def test_what_does_not_fit_the_layers_is_one_problem(overrides: tuple[str, ...], words: list[str]):
    (problem,) = problems(*overrides)
    assert all(word in problem for word in words), problem


@pytest.mark.parametrize(
    "overrides",
    [
        (*BERT, "method=xtc_layers", "method.layer_map=[1,3,5,7,9,11]"),
        (*BERT, "method=xtc_layers", "method.layer_map=[2,4,6,8,10]", "method.embedding_target=0"),
        (*BERT, "method=ti_o", "method.stages.intervene.intervention.layers=[0,11]"),
        (*SWIN, "method=ti_g", "method.stages.intervene.intervention.layers=[0,11]"),
        (*SWIN, "method.embedding_target=1"),
        ("model=timm", "model.timm_name=vit_tiny_patch16_224", "method.layer_map=[40]"),  # known only once it is built
    ],
)
def test_what_fits_is_allowed(overrides: tuple[str, ...]):
    assert problems(*overrides) == []


def test_depths():
    assert depth_of(load([*SWIN])[1].model) == 12
    assert depth_of(load([])[1].model) == 4
    assert depth_of(load(["model=timm", "model.timm_name=deit_tiny_patch16_224"])[1].model) is None

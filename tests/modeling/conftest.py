"""Tiny random models of every family, with what a test needs to know about them independently of `families.py`."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from lowbit.modeling import Rule
from lowbit.quantizers import QuantizerSpec

DEPTH, WIDTH, HEADS, CLASSES = 3, 16, 2, 3
Batch = dict[str, Tensor]
Rows = slice


@dataclass(frozen=True)
class Zoo:
    """One family: how to build it, a batch for it, and where its weights are."""

    name: str
    make: Callable[..., nn.Module]
    make_batch: Callable[[], Batch]
    layers: tuple[str, ...]
    weights: dict[str, tuple[str, int | None]]
    embedding: str
    classifier: str
    tolerance: float

    def build(self, seed: int = 0, **changes: object) -> nn.Module:
        """Return a model in eval mode whose every parameter is random and of order 0.3."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.make(**changes)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return model.eval()

    def batch(self) -> Batch:
        return self.make_batch()

    @property
    def is_hf(self) -> bool:
        return self.name.startswith("hf")

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Call the library's model as a user would."""
        if self.is_hf:
            return model(**batch).logits
        return model(batch["pixel_values"])

    def eager(self, model: nn.Module) -> nn.Module:
        if self.is_hf:
            model.set_attn_implementation("eager")
        return model

    def weight(self, model: nn.Module, layer: int, role: str) -> tuple[nn.Parameter, Rows]:
        """Return the weight of a role, and the rows of it that are the role's."""
        parameter, block = model.get_parameter(self.weight_name(layer, role)), self.weights[role][1]
        third = len(parameter) // 3
        return parameter, ALL if block is None else slice(block * third, (block + 1) * third)

    def weight_name(self, layer: int, role: str) -> str:
        return f"{self.layers[layer]}.{self.weights[role][0]}.weight"

    def perturb(self, model: nn.Module, roles: tuple[str, ...]) -> None:
        with torch.no_grad():
            for layer in range(DEPTH):
                for role in roles:
                    parameter, rows = self.weight(model, layer, role)
                    parameter[rows] += torch.randn_like(parameter[rows])


TEXT_SIZES = {
    "vocab_size": 30,
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 24,
    "num_labels": CLASSES,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def bert(**changes: object) -> nn.Module:
    settings = {**TEXT_SIZES, "max_position_embeddings": 12}
    return BertForSequenceClassification(BertConfig(**settings | changes))


def bert_batch() -> Batch:
    ids = torch.randint(1, 30, (3, 7), generator=torch.Generator().manual_seed(5))
    mask = torch.arange(7) < torch.tensor([[7], [4], [5]])
    types_ = (torch.arange(7) >= 3).long().expand(3, 7)
    return {"input_ids": ids * mask, "attention_mask": mask.long(), "token_type_ids": types_ * mask}


def xlmr(**changes: object) -> nn.Module:
    # Two positions more than tokens: they begin behind the padding id.
    settings = {**TEXT_SIZES, "max_position_embeddings": 14, "type_vocab_size": 1}
    return XLMRobertaForSequenceClassification(XLMRobertaConfig(**settings | changes))


def xlmr_batch() -> Batch:
    ids = torch.randint(4, 30, (3, 7), generator=torch.Generator().manual_seed(5))
    mask = torch.arange(7) < torch.tensor([[7], [4], [5]])
    return {"input_ids": ids.where(mask, 1), "attention_mask": mask.long()}


def hf_vit(**changes: object) -> nn.Module:
    settings = {
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": 24,
        "num_labels": CLASSES,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return ViTForImageClassification(ViTConfig(**settings | changes))


def timm_settings(changes: dict[str, object]) -> dict[str, object]:
    settings = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": CLASSES}
    return settings | {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 1.5} | changes


def timm_vit(**changes: object) -> nn.Module:
    return VisionTransformer(**timm_settings(changes))


def timm_deit(**changes: object) -> nn.Module:
    return VisionTransformerDistilled(**timm_settings(changes))


def timm_swin(**changes: object) -> nn.Module:
    """Windows of 2x2 tokens: four, shifted by one token in layer 1, then one in the second stage."""
    settings = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": CLASSES, "window_size": 2}
    settings |= {"embed_dim": WIDTH, "depths": (2, 1), "num_heads": (HEADS, 2 * HEADS), "mlp_ratio": 1.5}
    return SwinTransformer(**settings | changes)


def images() -> Batch:
    return {"pixel_values": torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(5))}


ALL = slice(None)
BERT_WEIGHTS = {
    "query": ("attention.self.query", None),
    "key": ("attention.self.key", None),
    "value": ("attention.self.value", None),
    "attn_out": ("attention.output.dense", None),
    "norm": ("attention.output.LayerNorm", None),
    "ffn_in": ("intermediate.dense", None),
    "ffn_out": ("output.dense", None),
}
VIT_WEIGHTS = {
    "query": ("attention.q_proj", None),
    "key": ("attention.k_proj", None),
    "value": ("attention.v_proj", None),
    "attn_out": ("attention.o_proj", None),
    "norm": ("layernorm_after", None),
    "ffn_in": ("mlp.fc1", None),
    "ffn_out": ("mlp.fc2", None),
}
TIMM_WEIGHTS = {
    "query": ("attn.qkv", 0),
    "key": ("attn.qkv", 1),
    "value": ("attn.qkv", 2),
    "attn_out": ("attn.proj", None),
    "norm": ("norm2", None),
    "ffn_in": ("mlp.fc1", None),
    "ffn_out": ("mlp.fc2", None),
}


def numbered(template: str) -> tuple[str, ...]:
    return tuple(template.format(index) for index in range(DEPTH))


BLOCKS = numbered("blocks.{}")
ZOO = (
    Zoo(
        "hf_bert",
        bert,
        bert_batch,
        numbered("bert.encoder.layer.{}"),
        BERT_WEIGHTS,
        "bert.embeddings.word_embeddings.weight",
        "classifier",
        0.0,
    ),
    Zoo(
        "hf_vit",
        hf_vit,
        images,
        numbered("vit.layers.{}"),
        VIT_WEIGHTS,
        "vit.embeddings.position_embeddings",
        "classifier",
        0.0,
    ),
    Zoo("timm_vit", timm_vit, images, BLOCKS, TIMM_WEIGHTS, "pos_embed", "head", 1e-6),
    Zoo("timm_deit", timm_deit, images, BLOCKS, TIMM_WEIGHTS, "pos_embed", "head", 1e-6),
    Zoo(
        "hf_xlmr",
        xlmr,
        xlmr_batch,
        numbered("roberta.encoder.layer.{}"),
        BERT_WEIGHTS,
        "roberta.embeddings.word_embeddings.weight",
        "classifier.out_proj",
        0.0,
    ),
    Zoo(
        "timm_swin",
        timm_swin,
        images,
        ("layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"),
        TIMM_WEIGHTS,
        "patch_embed.proj.weight",
        "head.fc",
        1e-6,
    ),
)
UNIFORM = tuple(zoo for zoo in ZOO if zoo.name != "timm_swin")
HF = tuple(zoo for zoo in ZOO if zoo.is_hf)


@pytest.fixture(params=ZOO, ids=lambda zoo: zoo.name)
def zoo(request: pytest.FixtureRequest) -> Zoo:
    """Every family in turn."""
    return request.param


@pytest.fixture(params=UNIFORM, ids=lambda zoo: zoo.name)
def uniform_zoo(request: pytest.FixtureRequest) -> Zoo:
    """The families whose layers are all alike, in turn."""
    return request.param


@pytest.fixture(params=HF, ids=lambda zoo: zoo.name)
def hf_zoo(request: pytest.FixtureRequest) -> Zoo:
    """The Hugging Face families in turn."""
    return request.param


@pytest.fixture
def bert_zoo() -> Zoo:
    return ZOO[0]


@pytest.fixture
def timm_zoo() -> Zoo:
    return ZOO[2]


@pytest.fixture
def xlmr_zoo() -> Zoo:
    return ZOO[4]


@pytest.fixture
def swin_zoo() -> Zoo:
    return ZOO[5]


@pytest.fixture
def w2a8() -> Callable[..., tuple[Rule, ...]]:
    """Return TernaryBERT's rules with a granularity of activation scales."""

    def rules(granularity: str = "tensor") -> tuple[Rule, ...]:
        weight = QuantizerSpec("twn", clip=2.5)
        activation = QuantizerSpec("minmax_symmetric", bits=8, clip=2.5, granularity=granularity)
        return (
            Rule(("query", "key", "value", "attn_out", "ffn_in", "ffn_out"), weight=weight, input=activation),
            Rule(("attention",), bmm=activation),
            Rule(("word_embedding",), weight=QuantizerSpec("twn", clip=2.5, granularity="row"), required=False),
            Rule(("pooler",), weight=weight, input=activation, required=False),
        )

    return rules

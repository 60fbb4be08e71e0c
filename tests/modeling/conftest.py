"""Tiny random models of every family, with what a test needs to know about them independently of `families.py`."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

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
    weights: dict[str, tuple[str, Rows]]
    embedding: str
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
        name, rows = self.weights[role]
        return model.get_parameter(name.format(layer)), rows

    def perturb(self, model: nn.Module, roles: tuple[str, ...]) -> None:
        with torch.no_grad():
            for layer in range(DEPTH):
                for role in roles:
                    parameter, rows = self.weight(model, layer, role)
                    parameter[rows] += torch.randn_like(parameter[rows])


def bert(**changes: object) -> nn.Module:
    settings = {
        "vocab_size": 30,
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": 24,
        "max_position_embeddings": 12,
        "num_labels": CLASSES,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return BertForSequenceClassification(BertConfig(**settings | changes))


def bert_batch() -> Batch:
    ids = torch.randint(1, 30, (3, 7), generator=torch.Generator().manual_seed(5))
    mask = torch.arange(7) < torch.tensor([[7], [4], [5]])
    types_ = (torch.arange(7) >= 3).long().expand(3, 7)
    return {"input_ids": ids * mask, "attention_mask": mask.long(), "token_type_ids": types_ * mask}


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


def images() -> Batch:
    return {"pixel_values": torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(5))}


ALL = slice(None)
BERT_WEIGHTS = {
    "query": ("bert.encoder.layer.{}.attention.self.query.weight", ALL),
    "key": ("bert.encoder.layer.{}.attention.self.key.weight", ALL),
    "value": ("bert.encoder.layer.{}.attention.self.value.weight", ALL),
    "attn_out": ("bert.encoder.layer.{}.attention.output.dense.weight", ALL),
    "norm": ("bert.encoder.layer.{}.attention.output.LayerNorm.weight", ALL),
    "ffn_in": ("bert.encoder.layer.{}.intermediate.dense.weight", ALL),
    "ffn_out": ("bert.encoder.layer.{}.output.dense.weight", ALL),
}
VIT_WEIGHTS = {
    "query": ("vit.layers.{}.attention.q_proj.weight", ALL),
    "key": ("vit.layers.{}.attention.k_proj.weight", ALL),
    "value": ("vit.layers.{}.attention.v_proj.weight", ALL),
    "attn_out": ("vit.layers.{}.attention.o_proj.weight", ALL),
    "norm": ("vit.layers.{}.layernorm_after.weight", ALL),
    "ffn_in": ("vit.layers.{}.mlp.fc1.weight", ALL),
    "ffn_out": ("vit.layers.{}.mlp.fc2.weight", ALL),
}
TIMM_WEIGHTS = {
    "query": ("blocks.{}.attn.qkv.weight", slice(0, WIDTH)),
    "key": ("blocks.{}.attn.qkv.weight", slice(WIDTH, 2 * WIDTH)),
    "value": ("blocks.{}.attn.qkv.weight", slice(2 * WIDTH, 3 * WIDTH)),
    "attn_out": ("blocks.{}.attn.proj.weight", ALL),
    "norm": ("blocks.{}.norm2.weight", ALL),
    "ffn_in": ("blocks.{}.mlp.fc1.weight", ALL),
    "ffn_out": ("blocks.{}.mlp.fc2.weight", ALL),
}
ZOO = (
    Zoo("hf_bert", bert, bert_batch, BERT_WEIGHTS, "bert.embeddings.word_embeddings.weight", 0.0),
    Zoo("hf_vit", hf_vit, images, VIT_WEIGHTS, "vit.embeddings.position_embeddings", 0.0),
    Zoo("timm_vit", timm_vit, images, TIMM_WEIGHTS, "pos_embed", 1e-6),
    Zoo("timm_deit", timm_deit, images, TIMM_WEIGHTS, "pos_embed", 1e-6),
)


@pytest.fixture(params=ZOO, ids=lambda zoo: zoo.name)
def zoo(request: pytest.FixtureRequest) -> Zoo:
    """Every family in turn."""
    return request.param


@pytest.fixture(params=ZOO[:2], ids=lambda zoo: zoo.name)
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

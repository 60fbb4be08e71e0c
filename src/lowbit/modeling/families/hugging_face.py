"""BERT, RoBERTa, XLM-R and ViT of transformers, with heads for classes, spans or tags."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from lowbit.modeling.attention import attend
from lowbit.modeling.families.family import Family, LayerNames, Undo

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_NAME = "lowbit"


def route_attention_function(model: nn.Module, attentions: list[nn.Module]) -> Undo:
    """Choose the core as the attention function of one model of transformers.

    This suits every model whose attention calls `ALL_ATTENTION_FUNCTIONS`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    # With the attention alone, transformers would silently pass no padding mask.
    AttentionInterface.register(ATTENTION_NAME, _hf_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, eager_mask)
    # Models that are built from one config object share its attention implementation, so this one gets copies.
    shared = {module: module.config for module in model.modules() if hasattr(module, "config")}
    copies: dict[int, Any] = {}
    for module, config in shared.items():
        module.config = copies.setdefault(id(config), copy.deepcopy(config))
    cast("PreTrainedModel", model).set_attn_implementation(ATTENTION_NAME)

    def undo() -> None:
        for module, config in shared.items():
            module.config = config

    return undo


def _hf_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, Tensor]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    context_BHLD, probs_BHLL = attend(module, query, key, value, attention_mask, scale, dropout)
    return context_BHLD.transpose(1, 2).contiguous(), probs_BHLL


def _text_heads(*models: str) -> tuple[str, ...]:
    tasks = ("SequenceClassification", "QuestionAnswering", "TokenClassification")
    return tuple(f"{model}For{task}" for model in models for task in tasks)


def _text_embeddings(encoder: str) -> dict[str, tuple[str, ...]]:
    kinds = {"word_embedding": "word", "position_embedding": "position", "token_type_embedding": "token_type"}
    return {role: (f"{encoder}.embeddings.{kind}_embeddings",) for role, kind in kinds.items()}


_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_BERT_LAYER = LayerNames(
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attn_out="attention.output.dense",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    attn_block="attention.output",
    activation="intermediate.intermediate_act_fn",
    attn_block_at="output",
)
HF_BERT = Family(
    name="hf_bert",
    class_names=_text_heads("Bert"),
    layers="bert.encoder.layer",
    names=_BERT_LAYER,
    model_roles={
        **_text_embeddings("bert"),
        "pooler": ("bert.pooler.dense",),
        "classifier": ("classifier", "qa_outputs"),
    },
    inputs=_TEXT_INPUTS,
    route_attention=route_attention_function,
)
HF_ROBERTA = Family(
    name="hf_roberta",
    class_names=_text_heads("Roberta", "XLMRoberta"),
    layers="roberta.encoder.layer",
    names=_BERT_LAYER,
    model_roles={
        **_text_embeddings("roberta"),
        "pooler": ("classifier.dense",),  # the head's tanh layer on the first token does what BERT's pooler does
        "classifier": ("classifier.out_proj", "classifier", "qa_outputs"),  # a linear layer, where words are tagged
    },
    inputs=_TEXT_INPUTS,
    route_attention=route_attention_function,
)
HF_VIT = Family(
    name="hf_vit",
    class_names=("ViTForImageClassification",),
    layers="vit.layers",
    names=LayerNames(
        attention="attention",
        query="attention.q_proj",
        key="attention.k_proj",
        value="attention.v_proj",
        attn_out="attention.o_proj",
        ffn_in="mlp.fc1",
        ffn_out="mlp.fc2",
        attn_block="layernorm_after",
        activation="mlp.activation_fn",
        attn_block_at="input",
    ),
    model_roles={
        "patch_embed": ("vit.embeddings.patch_embeddings.projection",),
        "classifier": ("classifier",),
    },
    inputs=("pixel_values",),
    route_attention=route_attention_function,
)

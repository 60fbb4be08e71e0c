"""The model families: the only file that knows module names of transformers and timm.

A family says which modules play which role, and how its attention is routed through `attention.attend`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowbit.modeling.attention import TAP, Tap, attend
from lowbit.quantizers import QuantFusedLinear

QKV = ("query", "key", "value")
LAYER_ROLES = (*QKV, "attn_out", "ffn_in", "ffn_out")
MODEL_ROLES = (
    "word_embedding",
    "position_embedding",
    "token_type_embedding",
    "patch_embed",
    "pooler",
    "classifier",
)
ROLES = (*LAYER_ROLES, "attention", *MODEL_ROLES)
ATTENTION_NAME = "lowbit"
_HEAD_COUNTS = ("num_attention_heads", "num_heads")
Undo = Callable[[], None]


@dataclass(frozen=True)
class LayerNames:
    """Names inside one layer. `attn_block` is read at the output of a module or at the input of one."""

    attention: str
    query: str
    key: str
    value: str
    attn_out: str
    ffn_in: str
    ffn_out: str
    attn_block: str
    activation: str
    attn_block_at: Literal["input", "output"]


@dataclass(frozen=True)
class Family:
    """One model family: how to recognise it, what its modules are called, how its attention is replaced."""

    name: str
    class_names: tuple[str, ...]
    layers: str
    names: LayerNames
    model_roles: dict[str, tuple[str, ...]]
    inputs: tuple[str, ...]
    fused_qkv: bool
    route_attention: Callable[[nn.Module, list[nn.Module]], Undo]

    def layers_of(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return (name, module) of every layer, in order."""
        return [(f"{self.layers}.{index}", layer) for index, layer in enumerate(_children(model, self.layers))]

    def heads_of(self, layer: nn.Module) -> tuple[int, int]:
        """Return the number of attention heads of a layer and their width."""
        attention: Any = layer.get_submodule(self.names.attention)
        count = next(getattr(attention, name) for name in _HEAD_COUNTS if hasattr(attention, name))
        return int(count), int(layer.get_submodule(self.names.attn_out).in_features) // int(count)  # type: ignore[arg-type]

    def set_activation(self, model: nn.Module, name: str) -> None:
        """Replace the activation of every feed-forward layer, in place: `gelu` or `relu`."""
        for _, layer in self.layers_of(model):
            layer.set_submodule(self.names.activation, {"gelu": nn.GELU, "relu": nn.ReLU}[name]())

    def role_names(self, model: nn.Module) -> dict[str, list[str]]:
        """Map each role to the qualified names of its modules, or of their halves; those that it lacks are left out."""
        found: dict[str, list[str]] = {}
        for name, _ in self.layers_of(model):
            for role in (*LAYER_ROLES, "attention"):
                module = f"{name}.{getattr(self.names, role)}"
                found.setdefault(role, []).extend(_halves(model, module))
        modules = dict(model.named_modules())
        for role, names in self.model_roles.items():
            there = [half for name in names if name in modules for half in _halves(model, name)]
            present = [name for name in there if isinstance(modules[name], nn.Linear | nn.Embedding | nn.Conv2d)]
            if present:
                found[role] = present
        return found

    def call(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Run the model on the batch's inputs and return its logits, BC."""
        inputs = {name: batch[name] for name in self.inputs if name in batch}
        output = model(**inputs) if self.name.startswith("hf") else model(*inputs.values())
        return output if isinstance(output, Tensor) else output.logits


def _halves(model: nn.Module, name: str) -> list[str]:
    """Return the names of the halves of a split module (`surgery.Split`), else its own name."""
    return [f"{name}.{half}" for half in getattr(model.get_submodule(name), "halves", ())] or [name]


def _children(model: nn.Module, path: str) -> Iterator[nn.Module]:
    return iter(model.get_submodule(path).children())


def _route_hf(model: nn.Module, attentions: list[nn.Module]) -> Undo:
    """Register the core once and choose it for this model, on a config of its own.

    Both interfaces are needed: with the attention alone, transformers passes no padding mask, silently.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(ATTENTION_NAME, _hf_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, eager_mask)
    # Two models built from one config object share its attention implementation; this one gets its own copies.
    shared = {module: module.config for module in model.modules() if hasattr(module, "config")}
    copies: dict[int, Any] = {}
    for module, config in shared.items():
        module.config = copies.setdefault(id(config), copy.deepcopy(config))
    model.set_attn_implementation(ATTENTION_NAME)  # type: ignore[operator]

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
    **_: Any,
) -> tuple[Tensor, Tensor]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    context_BHLD, probs_BHLL = attend(module, query, key, value, attention_mask, scale, dropout)
    return context_BHLD.transpose(1, 2).contiguous(), probs_BHLL


def _route_timm(model: nn.Module, attentions: list[nn.Module]) -> Undo:
    """Swap the class of each attention module for one that computes the same through the core."""
    from timm.layers.attention import Attention

    for attention in attentions:
        gated = getattr(attention, "gate", None) is not None
        if type(attention) is not Attention or gated:
            kind = "gated Attention" if gated else type(attention).__name__
            raise ValueError(f"timm attention {kind!r} is not supported: allowed is the plain timm Attention")
    traced = type("TracedAttention", (Attention,), {"forward": _timm_forward})
    for attention in attentions:
        attention.__class__ = traced

    def undo() -> None:
        for attention in attentions:
            attention.__class__ = Attention

    return undo


def _timm_forward(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    if attn_mask is not None or is_causal:
        raise ValueError("masked or causal timm attention is not supported: allowed is plain image attention")
    batch, tokens, _ = x.shape
    qkv = _project_qkv(self, x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    context_BHLD, _ = attend(self, self.q_norm(query), self.k_norm(key), value, None, self.scale, self.attn_drop.p)
    merged = self.norm(context_BHLD.transpose(1, 2).reshape(batch, tokens, self.attn_dim))
    return self.proj_drop(self.proj(merged))  # type: ignore[no-any-return]


def _project_qkv(self: Any, x: Tensor) -> Tensor:
    """Project to query, key and value, each cut off from the gradient of its input where the plan says so."""
    tap: Tap | None = getattr(self, TAP, None)
    detached = frozenset(role for role in QKV if tap is not None and tap.tape.detaches(tap.layer, role))
    if isinstance(self.qkv, QuantFusedLinear):
        return self.qkv(x, detached)  # type: ignore[no-any-return]
    if not detached:
        return self.qkv(x)  # type: ignore[no-any-return]
    weights = self.qkv.weight.chunk(len(QKV))
    biases = (None,) * len(QKV) if self.qkv.bias is None else self.qkv.bias.chunk(len(QKV))
    inputs = (x.detach() if role in detached else x for role in QKV)
    return torch.cat([nn.functional.linear(*part) for part in zip(inputs, weights, biases, strict=True)], dim=-1)


_HF_BERT = Family(
    name="hf_bert",
    class_names=("BertForSequenceClassification",),
    layers="bert.encoder.layer",
    names=LayerNames(
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
    ),
    model_roles={
        "word_embedding": ("bert.embeddings.word_embeddings",),
        "position_embedding": ("bert.embeddings.position_embeddings",),
        "token_type_embedding": ("bert.embeddings.token_type_embeddings",),
        "pooler": ("bert.pooler.dense",),
        "classifier": ("classifier",),
    },
    inputs=("input_ids", "attention_mask", "token_type_ids"),
    fused_qkv=False,
    route_attention=_route_hf,
)
_HF_VIT = Family(
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
    fused_qkv=False,
    route_attention=_route_hf,
)
_TIMM_VIT = Family(
    name="timm_vit",
    class_names=("VisionTransformer", "VisionTransformerDistilled"),
    layers="blocks",
    names=LayerNames(
        attention="attn",
        query="attn.qkv",
        key="attn.qkv",
        value="attn.qkv",
        attn_out="attn.proj",
        ffn_in="mlp.fc1",
        ffn_out="mlp.fc2",
        attn_block="norm2",
        activation="mlp.act",
        attn_block_at="input",
    ),
    model_roles={
        "patch_embed": ("patch_embed.proj",),
        "classifier": ("head", "head_dist"),
    },
    inputs=("pixel_values",),
    fused_qkv=True,
    route_attention=_route_timm,
)
FAMILIES = (_HF_BERT, _HF_VIT, _TIMM_VIT)


def family_of(model: nn.Module) -> Family:
    """Return the family of a model.

    Raises:
        ValueError: no family knows the model's class.
    """
    for cls in type(model).__mro__:
        for family in FAMILIES:
            if cls.__name__ in family.class_names and cls.__module__.split(".")[0] in ("transformers", "timm"):
                return family
    known = ", ".join(name for family in FAMILIES for name in family.class_names)
    raise ValueError(f"no model family for {type(model).__name__}: known classes are {known}")

"""timm's VisionTransformer, DeiT and Swin: their module names, and their attention by class swap.

Shape suffixes: B batch (of windows in Swin), H heads, L tokens, D head width, E hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from lowbit.modeling.attention import TAP, Tap, attend
from lowbit.modeling.families.family import QKV, Family, LayerNames, Undo
from lowbit.quantizers import QuantFusedLinear

if TYPE_CHECKING:
    from timm.layers.attention import Attention
    from timm.models.swin_transformer import WindowAttention


def project_blocks(qkv: nn.Module, x_BLE: Tensor, detached: frozenset[str]) -> Tensor:
    """Project to query, key and value side by side; the input of the blocks in `detached` gets no gradient.

    Args:
        qkv: Float, quantized or split projection. The last two take `detached` themselves.
        x_BLE: Input of all three blocks.
        detached: object of `QKV`.
    """
    blocks: Tensor
    if isinstance(qkv, QuantFusedLinear) or hasattr(qkv, "halves"):
        blocks = qkv(x_BLE, detached)
    elif not detached:
        blocks = qkv(x_BLE)
    else:
        linear = cast("nn.Linear", qkv)
        weights = linear.weight.chunk(len(QKV))
        biases = (None,) * len(QKV) if linear.bias is None else linear.bias.chunk(len(QKV))
        inputs = (x_BLE.detach() if role in detached else x_BLE for role in QKV)
        parts = zip(inputs, weights, biases, strict=True)
        blocks = torch.cat([nn.functional.linear(x, weight, bias) for x, weight, bias in parts], dim=-1)
    return blocks


def _heads(attention: Attention | WindowAttention, x_BLE: Tensor) -> tuple[Tensor, ...]:
    """Return query, key and value, BHLD each, detached from their input where the plan says so."""
    tap: Tap | None = getattr(attention, TAP, None)
    detached = frozenset(role for role in QKV if tap is not None and tap.tape.detaches(tap.layer, role))
    qkv = project_blocks(attention.qkv, x_BLE, detached)
    return qkv.reshape(*qkv.shape[:-1], len(QKV), attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def _image_forward(self: Attention, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    if attn_mask is not None or is_causal:
        raise ValueError("masked or causal timm attention is not supported: allowed is plain image attention")
    query, key, value = _heads(self, x)
    context_BHLD, _ = attend(self, self.q_norm(query), self.k_norm(key), value, None, self.scale, self.attn_drop.p)
    merged_BLE = self.norm(context_BHLD.transpose(1, 2).flatten(2))
    output_BLE: Tensor = self.proj_drop(self.proj(merged_BLE))
    return output_BLE


def _window_forward(self: WindowAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute Swin's attention inside windows; `mask`, one LL per window of an image, is 0 or -100."""
    query, key, value = _heads(self, x)
    if mask is not None:
        mask = mask.repeat(len(x) // len(mask), 1, 1)[:, None]
    apart = None if mask is None else mask != 0
    bias_1HLL = self._get_rel_pos_bias()
    context_BHLD, _ = attend(self, query, key, value, mask, self.scale, self.attn_drop.p, bias=bias_1HLL, apart=apart)
    output_BLE: Tensor = self.proj_drop(self.proj(context_BHLD.transpose(1, 2).flatten(2)))
    return output_BLE


def _route_attention(model: nn.Module, attentions: list[nn.Module]) -> Undo:
    from timm.layers.attention import Attention

    return _swap_class(attentions, Attention, _image_forward)


def _route_windows(model: nn.Module, attentions: list[nn.Module]) -> Undo:
    from timm.models.swin_transformer import WindowAttention

    return _swap_class(attentions, WindowAttention, _window_forward)


def _swap_class(attentions: list[nn.Module], plain: type[nn.Module], forward: Callable[..., Tensor]) -> Undo:
    """Give each attention module a class that computes the same through the core."""
    for attention in attentions:
        gated = getattr(attention, "gate", None) is not None
        if type(attention) is not plain or gated:
            kind = f"gated {plain.__name__}" if gated else type(attention).__name__
            raise ValueError(f"timm attention {kind!r} is not supported: allowed is the plain timm {plain.__name__}")
    traced = type(f"Traced{plain.__name__}", (plain,), {"forward": forward})
    for attention in attentions:
        attention.__class__ = traced

    def undo() -> None:
        for attention in attentions:
            attention.__class__ = plain

    return undo


_BLOCK = LayerNames(
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
)
TIMM_VIT = Family(
    name="timm_vit",
    class_names=("VisionTransformer", "VisionTransformerDistilled"),
    layers="blocks",
    names=_BLOCK,
    model_roles={
        "patch_embed": ("patch_embed.proj",),
        "classifier": ("head", "head_dist"),
    },
    inputs=("pixel_values",),
    route_attention=_route_attention,
    dropout=("proj_drop_rate", "attn_drop_rate", "pos_drop_rate"),
    head_count="num_heads",
    heads_width="attn_dim",
    fused_qkv=True,
    library="timm",
)
TIMM_SWIN = Family(
    name="timm_swin",
    class_names=("SwinTransformer",),
    layers="layers.*.blocks",
    names=_BLOCK,
    model_roles={
        "patch_embed": ("patch_embed.proj",),
        "patch_merging": ("layers.*.downsample.reduction",),
        "classifier": ("head.fc",),
    },
    inputs=("pixel_values",),
    route_attention=_route_windows,
    dropout=("proj_drop_rate", "attn_drop_rate"),
    head_count="num_heads",
    heads_width="attn_dim",
    fused_qkv=True,
    library="timm",
)

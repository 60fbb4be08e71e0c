"""Surgery on plain models: fewer layers (XTC), half width (DynaBERT), ternary weight splitting (BinaryBERT).

Each function returns a new model and leaves the given one unchanged. A model is plain before `prepare()` and after
`restore()`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from lowbit.modeling.attention import TAP
from lowbit.modeling.families import LAYER_ROLES, QKV, ROLES, Family, family_of, project_blocks
from lowbit.quantizers.functional.splitting import ternary_split

Keep = Literal["largest", "first"]
SPLIT_GRANULARITY: Mapping[str, str] = MappingProxyType(
    {**dict.fromkeys((*LAYER_ROLES, "pooler"), "tensor"), "word_embedding": "row"}
)
"""What BinaryBERT splits, and which weights share a scale there."""


# --- layers ---------------------------------------------------------------------------------------------------------


def reduce_layers(model: nn.Module, layers: Sequence[int]) -> nn.Module:
    """Return a copy of a model whose layer i is layer `layers[i]` of the model, counted from 0.

    State-dict keys are numbered from 0. A layer may be named twice: its copies are independent. The config of a Hugging
    Face model gets the new depth; each layer keeps its rate of stochastic depth.

    Source: Wu et al. 2022 (XTC, arXiv 2206.01859), lightweight layer reduction; [1, 3, 5, 7, 9, 11] is its map of 6.

    Raises:
        ValueError: If there are no layers, the model lacks one of them, is prepared, or has its layers in stages.
    """
    family = _plain_family(model)
    _refuse_stages(family, model, "layers cannot be chosen, repeated or left out (method.layer_map)")
    student = copy.deepcopy(model)
    old = [layer for _, layer in family.layers_of(student)]
    ((_, container),) = family.layer_lists(student)
    wrong = [index for index in layers if not 0 <= index < len(old)]
    if wrong or not layers:
        raise ValueError(f"layers={list(layers)}: name one layer or more, each from 0 to {len(old) - 1}")
    configs = {id(module.config): module.config for module in student.modules() if hasattr(module, "config")}
    container._modules.clear()
    for index, source in enumerate(layers):
        # A second copy shares the configs: `prepare` switches the attention of all layers by one of them.
        again = source in layers[:index]
        layer = copy.deepcopy(old[source], dict(configs)) if again else old[source]
        container.add_module(str(index), layer)
        numbered: list[Any] = [module for module in layer.modules() if hasattr(module, "layer_idx")]
        for module in numbered:
            module.layer_idx = index
    for config in configs.values():
        if hasattr(config, "num_hidden_layers"):
            config.num_hidden_layers = len(layers)
    del getattr(student, "feature_info", [])[len(layers) :]  # timm's facts of each layer
    return student


# --- width ----------------------------------------------------------------------------------------------------------


def narrow(model: nn.Module, share: float = 0.5, keep: Keep = "largest") -> nn.Module:
    """Return a copy that keeps a share of the attention heads and of the feed-forward neurons of each layer.

    The hidden size and the width of a head stay, and with it the scale of the scores. Heads and neurons keep their
    order. A Hugging Face config cannot express heads that do not fill the hidden size, so it does not change. To
    rebuild a narrow model, build the full one, narrow it, then load the state dict.

    Args:
        model: Plain model of any family.
        share: Share of heads and of neurons to keep, rounded, at least one of each.
        keep: `largest` keeps those whose outgoing weights have the largest L1 norm. `first` keeps the first ones, as
            published, for checkpoints that are sorted by importance (DynaBERT's are).

    Source: Hou et al. 2020 (DynaBERT, arXiv 2004.04037), width; BinaryBERT starts from its width of 0.5.

    Raises:
        ValueError: If the share is outside (0, 1], `keep` is unknown, the model is prepared, split or has its layers in
            stages, or a layer has parts whose width cannot be reduced here.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: must be greater than 0 and at most 1")
    if keep not in ("largest", "first"):
        raise ValueError(f"keep={keep!r}: allowed are 'largest' and 'first'")
    family = _plain_family(model)
    _refuse_split(model)
    _refuse_stages(family, model, "its heads cannot be removed (a student that is narrow)")
    student = copy.deepcopy(model)
    for name, layer in family.layers_of(student):
        _check_widths(family, name, layer)
        _narrow_attention(family, layer, share, keep)
        ffn_in, ffn_out = (_linear(layer, getattr(family.names, role)) for role in ("ffn_in", "ffn_out"))
        neurons = _most_important(ffn_out, ffn_out.in_features, share, keep)
        _keep_rows(ffn_in, neurons)
        _keep_columns(ffn_out, neurons)
    return student


def _narrow_attention(family: Family, layer: nn.Module, share: float, keep: Keep) -> None:
    heads, width = family.heads_of(layer)
    attn_out = _linear(layer, family.names.attn_out)
    kept = _most_important(attn_out, heads, share, keep)
    if family.fused_qkv:
        blocks = [kept + block * heads * width for block in range(len(QKV))]
        _keep_rows(_linear(layer, family.names.query), torch.cat(blocks))
    else:
        for role in QKV:
            _keep_rows(_linear(layer, getattr(family.names, role)), kept)
    _keep_columns(attn_out, kept)
    family.set_head_count(layer, len(kept) // width, len(kept))


def _most_important(outgoing: nn.Linear, groups: int, share: float, keep: Keep) -> Tensor:
    """Return the columns of the groups to keep, in order."""
    count = max(1, round(groups * share))
    width = outgoing.in_features // groups
    weight = outgoing.weight.detach()
    chosen = torch.arange(groups, device=weight.device)
    if keep == "largest":
        norms = weight.abs().sum(0).reshape(groups, width).sum(1)
        chosen = norms.argsort(descending=True, stable=True)
    kept = chosen[:count].sort().values
    return (kept[:, None] * width + torch.arange(width, device=weight.device)).flatten()


def _check_widths(family: Family, name: str, layer: nn.Module) -> None:
    """Refuse layers in which more than the projections depends on the number of heads or neurons."""
    names = family.names
    projections = {role: _linear(layer, getattr(names, role)) for role in LAYER_ROLES}
    heads, width = family.heads_of(layer)
    rows = len(QKV) * heads * width if family.fused_qkv else heads * width
    fits = all(projections[role].out_features == rows for role in QKV)
    if not fits or projections["ffn_in"].out_features != projections["ffn_out"].in_features:
        raise ValueError(f"layer {name!r}: grouped heads and gated feed-forward blocks cannot be narrowed")
    inside = tuple(f"{getattr(names, role)}." for role in LAYER_ROLES)
    for key, parameter in layer.named_parameters():
        wanted = width if key.startswith(f"{names.attention}.") else projections["ffn_in"].in_features
        if not key.startswith(inside) and tuple(parameter.shape) != (wanted,):
            shape = tuple(parameter.shape)
            raise ValueError(f"layer {name!r} cannot be narrowed: {key} of shape {shape} is none of its projections")


def _linear(layer: nn.Module, name: str) -> nn.Linear:
    module = layer.get_submodule(name)
    if isinstance(module, nn.Linear):
        return module
    raise ValueError(f"module {name!r} is a {type(module).__name__}: only plain Linear layers can be narrowed")


def _keep_rows(linear: nn.Linear, rows: Tensor) -> None:
    linear.weight = _parameter_like(linear.weight, linear.weight.detach()[rows])
    if linear.bias is not None:
        linear.bias = _parameter_like(linear.bias, linear.bias.detach()[rows])
    linear.out_features = len(rows)


def _keep_columns(linear: nn.Linear, columns: Tensor) -> None:
    linear.weight = _parameter_like(linear.weight, linear.weight.detach()[:, columns])
    linear.in_features = len(columns)


def _parameter_like(parameter: Tensor, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=parameter.requires_grad)


# --- ternary weight splitting ---------------------------------------------------------------------------------------


class Split(nn.Module):
    """A layer that is the sum of two, `first` and `second`. It stands at the path of the layer that was split.

    Attributes:
        halves: Names of the two; `Family.role_names` gives them in place of the module's own name.
    """

    halves: ClassVar[tuple[str, str]] = ("first", "second")
    first: nn.Module
    second: nn.Module

    def __init__(self, source: nn.Linear | nn.Embedding, *granularity: str) -> None:
        """Split the weight of a ternary layer in as many blocks of rows as there are granularities, and its bias."""
        super().__init__()
        blocks = source.weight.detach().chunk(len(granularity))
        parts = [ternary_split(block, granularity=kind) for block, kind in zip(blocks, granularity, strict=True)]
        for name, rows in zip(self.halves, zip(*parts, strict=True), strict=True):
            half = copy.deepcopy(source)
            half.weight = _parameter_like(source.weight, torch.cat(rows).to(source.weight.dtype))
            if isinstance(half, nn.Linear) and half.bias is not None:
                half.bias = _parameter_like(half.bias, half.bias.detach() / 2)
            self.add_module(name, half)
        self.train(source.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of what the halves make of `x`; each half quantizes `x` itself."""
        total: Tensor = self.first(x) + self.second(x)
        return total


class SplitLinear(Split):
    """Sum of two linear layers of one shape."""

    def __init__(self, source: nn.Linear, *granularity: str) -> None:
        super().__init__(source, *granularity)
        self.in_features, self.out_features = source.in_features, source.out_features


class SplitFusedLinear(SplitLinear):
    """Split `qkv` of timm."""

    def forward(self, x: Tensor, detached: frozenset[str] = frozenset()) -> Tensor:
        """Return the sum of the halves; the input of the blocks named in `detached` gets no gradient."""
        return project_blocks(self.first, x, detached) + project_blocks(self.second, x, detached)


class SplitEmbedding(Split):
    """Sum of two embeddings of one shape."""

    def __init__(self, source: nn.Embedding, granularity: str) -> None:
        super().__init__(source, granularity)
        self.num_embeddings, self.embedding_dim = source.num_embeddings, source.embedding_dim
        self.padding_idx = source.padding_idx


def split_ternary(model: nn.Module, granularity: Mapping[str, str] = SPLIT_GRANULARITY) -> nn.Module:
    """Return a copy whose ternary layers are sums of two layers, which as binary ones compute the same.

    Every layer of a role in `granularity` becomes a `SplitLinear` or `SplitEmbedding`, and its bias is halved. The
    weights of the model are the latent weights of TWN (threshold 0.7, no clip) at these granularities. Under BWN at the
    same granularities, and with the same input quantizers, the result computes what the ternary model computes.

    Args:
        model: Trained half-width model, plain.
        granularity: `tensor` or `row` for each role. Roles that the family lacks do not count.

    Source: Bai et al. 2021 (BinaryBERT, arXiv 2012.15701), section 3.

    Raises:
        ValueError: If the model is prepared or split already, a role is unknown or has no linear layer or embedding, or
            only some blocks of a fused qkv are named.
    """
    family = _plain_family(model)
    _refuse_split(model)
    unknown = sorted(set(granularity) - set(ROLES) | {"attention"} & set(granularity))
    if unknown:
        raise ValueError(f"role {unknown[0]!r} cannot be split: allowed are linear layers and embeddings")
    blocks = [granularity[role] for role in QKV if role in granularity]
    if family.fused_qkv and len(blocks) not in (0, len(QKV)):
        raise ValueError(f"{family.name} has one qkv: split query, key and value, or none of them")
    student = copy.deepcopy(model)
    names = family.role_names(student)
    for role, kind in granularity.items():
        for name in names.get(role, []):
            module = student.get_submodule(name)
            if family.fused_qkv and role in QKV:
                if role == QKV[0]:
                    student.set_submodule(name, SplitFusedLinear(cast("nn.Linear", module), *blocks))
            elif isinstance(module, nn.Linear):
                student.set_submodule(name, SplitLinear(module, kind))
            elif isinstance(module, nn.Embedding):
                student.set_submodule(name, SplitEmbedding(module, kind))
            else:
                raise ValueError(f"module {name!r} is a {type(module).__name__}: only Linear and Embedding are split")
    return student


def split_quantizer_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the quantizer state of a ternary model for the binary model that it was split into.

    Both halves of a layer get the state of its input quantizer. Attention operands and layers that are not split keep
    their state. Split weights have none, because BWN has none.

    Args:
        model: The split model.
        state: `Instrument.quantizer_state` of the ternary model.
    """
    split = {name: module for name, module in model.named_modules() if isinstance(module, Split)}
    return {new: value.clone() for key, value in state.items() for new in _new_keys(key, split)}


def _new_keys(key: str, split: Mapping[str, Split]) -> Iterator[str]:
    name = next((name for name in split if key.startswith(f"{name}.")), None)
    if name is None:
        yield key
    elif not (rest := key.removeprefix(f"{name}.")).startswith("weight_quantizer"):
        yield from (f"{name}.{half}.{rest}" for half in split[name].halves)


def _plain_family(model: nn.Module) -> Family:
    if any(hasattr(module, TAP) for module in model.modules()):
        raise ValueError(f"this {type(model).__name__} is instrumented: call restore() on its Instrument first")
    return family_of(model)


def _refuse_split(model: nn.Module) -> None:
    found = [name for name, module in model.named_modules() if isinstance(module, Split)]
    if found:
        raise ValueError(f"module {found[0]!r} is split already: split and narrow take models of whole layers")


def _refuse_stages(family: Family, model: nn.Module, what: str) -> None:
    depths = family.depths(model)
    if len(depths) > 1:
        raise ValueError(f"{family.name} has stages of {depths} layers, each of its own width: {what}")

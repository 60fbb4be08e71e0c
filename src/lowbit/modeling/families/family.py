"""What a model family is: which modules play which role, and how its attention is routed through the core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

QKV = ("query", "key", "value")
LAYER_ROLES = (*QKV, "attn_out", "ffn_in", "ffn_out")
MODEL_ROLES = (
    "word_embedding",
    "position_embedding",
    "token_type_embedding",
    "patch_embed",
    "patch_merging",
    "pooler",
    "classifier",
)
ROLES = (*LAYER_ROLES, "attention", *MODEL_ROLES)
Undo = Callable[[], None]


@dataclass(frozen=True)
class LayerNames:
    """Names of the modules inside one layer; `attn_block` is read at the output of a module or at the input of one."""

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
    """One model family: how to recognise it, what its modules are called, how its attention is replaced.

    Attributes:
        name: Name of the family in messages.
        class_names: Classes of classifiers, span extractors and taggers.
        layers: Path of the list of layers. `layers.*.blocks` means one list in each child of `layers`, the stages.
        names: Names inside a layer.
        model_roles: Names, or patterns of names, of the modules outside the layers, by role.
        inputs: Arguments of the model's call, in order. A batch may lack some.
        route_attention: Makes attention modules compute through `attention.attend`, and returns how to undo it.
        dropout: Names of the dropout rates: in the config of a transformers model, or in the arguments of a timm model.
        head_count: Attribute of an attention module that holds the number of its heads.
        heads_width: Attribute of an attention module that holds the width of all its heads, where it has one.
        fused_qkv: Whether query, key and value are row blocks of one linear layer.
        library: Top-level package of the classes. Models of timm take their inputs by position, all others by name.
    """

    name: str
    class_names: tuple[str, ...]
    layers: str
    names: LayerNames
    model_roles: dict[str, tuple[str, ...]]
    inputs: tuple[str, ...]
    route_attention: Callable[[nn.Module, list[nn.Module]], Undo]
    dropout: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    head_count: str = "num_attention_heads"
    heads_width: str = "all_head_size"
    fused_qkv: bool = False
    library: str = "transformers"

    def knows(self, cls: type) -> bool:
        """Whether a class is one of the family's."""
        return cls.__name__ in self.class_names and cls.__module__.partition(".")[0] == self.library

    def layers_of(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return (name, module) of every layer, in order."""
        lists = self.layer_lists(model)
        return [(f"{name}.{index}", layer) for name, layers in lists for index, layer in enumerate(layers.children())]

    def layer_lists(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return (name, module) of every list of layers: the only one, or one per stage."""
        parent, staged, rest = self.layers.partition(".*.")
        if not staged:
            return [(parent, model.get_submodule(parent))]
        stages = model.get_submodule(parent).named_children()
        return [(f"{parent}.{index}.{rest}", stage.get_submodule(rest)) for index, stage in stages]

    def depths(self, model: nn.Module) -> list[int]:
        """Return the number of layers of each stage; one number where all layers are alike."""
        return [len(list(layers.children())) for _, layers in self.layer_lists(model)]

    def heads_of(self, layer: nn.Module) -> tuple[int, int]:
        """Return the number of attention heads of a layer and their width."""
        count = int(getattr(layer.get_submodule(self.names.attention), self.head_count))
        return count, cast("nn.Linear", layer.get_submodule(self.names.attn_out)).in_features // count

    def set_head_count(self, layer: nn.Module, count: int, width: int) -> None:
        """Tell the attention module of a layer how many heads it has, and how wide they are together."""
        attention = layer.get_submodule(self.names.attention)
        setattr(attention, self.head_count, count)
        if hasattr(attention, self.heads_width):
            setattr(attention, self.heads_width, width)

    def set_activation(self, model: nn.Module, name: str) -> None:
        """Replace the activation of every feed-forward layer, in place: `gelu` or `relu`."""
        for _, layer in self.layers_of(model):
            layer.set_submodule(self.names.activation, {"gelu": nn.GELU, "relu": nn.ReLU}[name]())

    def dropout_rates(self, rate: float | None) -> dict[str, Any]:
        """Return the settings of the library that set every dropout rate; none if the model keeps its own rates."""
        return {} if rate is None else dict.fromkeys(self.dropout, rate)

    def role_names(self, model: nn.Module) -> dict[str, list[str]]:
        """Map each role that the model has to the qualified names of its modules, or of the halves of split ones."""
        found: dict[str, list[str]] = {}
        for name, _ in self.layers_of(model):
            for role in (*LAYER_ROLES, "attention"):
                found.setdefault(role, []).extend(_halves(model, f"{name}.{getattr(self.names, role)}"))
        modules = dict(model.named_modules())
        for role, patterns in self.model_roles.items():
            names = [name for name in modules if any(fnmatchcase(name, pattern) for pattern in patterns)]
            halves = [half for name in names for half in _halves(model, name)]
            present = [name for name in halves if isinstance(modules[name], nn.Linear | nn.Embedding | nn.Conv2d)]
            if present:
                found[role] = present
        return found

    def call(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Run the model and return its logits: BC for classes, BSL (start, end) for spans, BLC for tagged words."""
        inputs = {name: batch[name] for name in self.inputs if name in batch}
        if self.library == "timm":
            logits: Tensor = model(*inputs.values())
            return logits
        if getattr(model.config, "type_vocab_size", 1) < 2:  # with one row of types, the type 1 is out of range
            inputs.pop("token_type_ids", None)
        output = model(**inputs)
        return torch.stack([output.start_logits, output.end_logits], 1) if "start_logits" in output else output.logits


def _halves(model: nn.Module, name: str) -> list[str]:
    return [f"{name}.{half}" for half in getattr(model.get_submodule(name), "halves", ())] or [name]

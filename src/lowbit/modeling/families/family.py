"""What a model family is: which modules play which role, and how its attention is routed through the core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

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
    """One model family: how to recognise it, what its modules are called, how its attention is replaced.

    Attributes:
        name: begins with `hf` for models of transformers, which take their inputs by name.
        class_names: of the classifiers, span extractors and taggers of the family.
        layers: path of the list of layers; `layers.*.blocks` for one list in each child of `layers`, the stages.
        names: inside a layer.
        model_roles: modules outside the layers by role, as names or patterns of names.
        inputs: of the model's call, in order; a batch may lack some.
        fused_qkv: query, key and value are row blocks of one linear layer.
        route_attention: makes the attention modules compute through `attention.attend`.
    """

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
        lists = self.layer_lists(model)
        return [(f"{name}.{index}", layer) for name, layers in lists for index, layer in enumerate(layers.children())]

    def layer_lists(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return (name, module) of every list of layers: the only one, or that of each stage."""
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
        for role, patterns in self.model_roles.items():
            names = [name for name in modules if any(fnmatchcase(name, pattern) for pattern in patterns)]
            there = [half for name in names for half in _halves(model, name)]
            present = [name for name in there if isinstance(modules[name], nn.Linear | nn.Embedding | nn.Conv2d)]
            if present:
                found[role] = present
        return found

    def call(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Run the model on the batch and return its logits: BC, BSL (start, end) of a span, BLC where it tags words."""
        inputs = {name: batch[name] for name in self.inputs if name in batch}
        if not self.name.startswith("hf"):
            return model(*inputs.values())  # type: ignore[no-any-return]
        if getattr(model.config, "type_vocab_size", 1) < 2:  # one type for all tokens: BERT's second is out of range
            inputs.pop("token_type_ids", None)
        output = model(**inputs)
        if "start_logits" in output:
            return torch.stack([output.start_logits, output.end_logits], 1)
        return output.logits  # type: ignore[no-any-return]


def _halves(model: nn.Module, name: str) -> list[str]:
    """Return the names of the halves of a split module (`surgery.Split`), else its own name."""
    return [f"{name}.{half}" for half in getattr(model.get_submodule(name), "halves", ())] or [name]

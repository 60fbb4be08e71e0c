"""prepare() and restore(): quantize, trace and intervene in a model that we do not own, and undo it.

Linear, Embedding and Conv2d layers are replaced by quantized layers that adopt the same Parameters; attention goes
through `attention.attend`; hooks read the other points. State-dict keys stay those of the library.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lowbit.modeling.attention import QUANTIZER_NAMES, TAP, Tap
from lowbit.modeling.families import QKV, Family, family_of
from lowbit.modeling.intervention import Plan
from lowbit.modeling.rules import Resolved, Rule, resolve
from lowbit.modeling.tape import Tape
from lowbit.modeling.trace import FIELDS, Trace
from lowbit.quantizers import (
    QuantConv2d,
    QuantEmbedding,
    QuantFusedLinear,
    QuantLinear,
    Target,
    build_quantizer,
    quantizers_of,
)

_QUANTIZED: dict[type[nn.Module], Any] = {
    nn.Linear: QuantLinear,
    nn.Embedding: QuantEmbedding,
    nn.Conv2d: QuantConv2d,
}


class Instrument:
    """A prepared model: run it for a Trace, or restore it.

    Attributes:
        model: the model, changed in place.
        family: its family.
        resolved: which slot got which quantizer, and the match report.
    """

    def __init__(self, model: nn.Module, family: Family, resolved: Resolved, *, initialize: bool = True) -> None:
        self.model = model
        self.family = family
        self.resolved = resolved
        self.depth = len(family.layers_of(model))
        self._tape = Tape()
        self._handles: list[RemovableHandle] = []
        self._originals: dict[str, nn.Module] = {}
        self._attentions = [model.get_submodule(f"{n}.{family.names.attention}") for n, _ in family.layers_of(model)]
        # What may refuse the model comes first, so that a refusal leaves it as it was.
        self._heads, self._initialize = self._head_splits(), initialize
        quantized = {name: self._quantized(name, model.get_submodule(name)) for name in self._quantized_names()}
        operands = {slot: self._operand_quantizer(*slot) for slot in resolved.operands}
        self._undo_routing = family.route_attention(model, self._attentions)
        self._swap_layers(quantized)
        for (name, operand), quantizer in operands.items():
            model.get_submodule(name).add_module(QUANTIZER_NAMES[operand], quantizer)
        self._attach()

    def run(self, batch: dict[str, Tensor], fields: Iterable[str] = (), plan: Plan | None = None) -> Trace:
        """Run one forward pass and return logits plus the fields asked for.

        The plan stays in force until the next `run`, because gradient checkpointing runs layers again in the backward:
        do not call the model itself in between.

        Args:
            batch: the model's inputs by name; other entries (labels) are ignored.
            fields: names of `LayerTrace` fields, and `embeddings`.
            plan: teacher tensors to compute with; None for the plain student.

        Raises:
            ValueError: unknown field.
        """
        wanted = frozenset(fields)
        if not wanted <= FIELDS:
            unknown = sorted(wanted - FIELDS)
            raise ValueError(f"trace field {unknown[0]!r}: allowed are {', '.join(sorted(FIELDS))}")
        self._tape.begin(wanted, plan, self.depth)
        logits = self.family.call(self.model, batch)
        mask = batch.get("attention_mask")
        return self._tape.end(logits, None if mask is None else mask.bool())

    def quantizer_state(self) -> dict[str, Tensor]:
        """Return what the quantizers learned or keep, by state-dict key; all other keys are the plain model's."""
        prefixes = tuple(f"{name}." for name in quantizers_of(self.model))
        return {key: value for key, value in self.model.state_dict().items() if key.startswith(prefixes)}

    def load_quantizer_state(self, state: dict[str, Tensor]) -> None:
        """Load what `quantizer_state` returned.

        Raises:
            ValueError: keys that do not belong to the quantizers of this model.
        """
        mine = self.quantizer_state()
        state = {
            key: value for key, value in mine.items() if key.endswith(".floor")
        } | state  # earlier versions had none
        wrong = sorted(mine.keys() ^ state.keys())
        if wrong:
            raise ValueError(f"quantizer state of {len(wrong)} tensors does not fit the rules, the first is {wrong[0]}")
        self.model.load_state_dict(state, strict=False)

    def restore(self) -> nn.Module:
        """Undo everything; the original modules come back with the current Parameters."""
        for handle in self._handles:
            handle.remove()
        self._undo_routing()
        for attention in self._attentions:
            delattr(attention, TAP)
            for name in QUANTIZER_NAMES.values():
                attention._modules.pop(name, None)
        for name, original in self._originals.items():
            swapped = self.model.get_submodule(name)
            for key, parameter in swapped._parameters.items():
                original.register_parameter(key, parameter)
            original.train(swapped.training)
            self.model.set_submodule(name, original)
        return self.model

    def _quantized_names(self) -> list[str]:
        return sorted({name for name, _ in self.resolved.slots})

    def _swap_layers(self, quantized: dict[str, nn.Module]) -> None:
        for name, layer in quantized.items():
            self._originals[name] = self.model.get_submodule(name)
            self.model.set_submodule(name, layer)

    def _quantized(self, name: str, original: nn.Module) -> nn.Module:
        weights, inputs = self.resolved.weights, self.resolved.inputs
        if any((name, role) in self.resolved.slots for role in QKV):
            specs = {role: (weights.get((name, role)), inputs.get((name, role))) for role in QKV}
            heads_of_block = self._heads.get(name)
            return QuantFusedLinear.from_float(original, specs, heads_of_block, initialize=self._initialize)  # type: ignore[arg-type]
        layer = _QUANTIZED.get(type(original))
        if layer is None:
            raise ValueError(
                f"module {name!r} is a {type(original).__name__}: plain Linear, Embedding and Conv2d layers can "
                "be quantized; change the rule that matches it"
            )
        more: dict[str, Any] = {"heads": self._heads[name]} if name in self._heads else {}
        more["initialize"] = self._initialize
        try:
            return layer.from_float(original, weights.get((name, None)), inputs.get((name, None)), **more)  # type: ignore[no-any-return]
        except ValueError as error:
            raise ValueError(f"module {name!r}: {error}") from error

    def _head_splits(self) -> dict[str, tuple[int, int]]:
        """Map projections to (heads, dimension of the weight that the heads share); see `lowbit.quantizers.Target`."""
        splits: dict[str, tuple[int, int]] = {}
        for name, layer in self.family.layers_of(self.model):
            count, _ = self.family.heads_of(layer)
            splits[f"{name}.{self.family.names.attn_out}"] = (count, 1)
            splits.update({f"{name}.{getattr(self.family.names, role)}": (count, 0) for role in QKV})
        return splits

    def _operand_quantizer(self, name: str, operand: str) -> nn.Module:
        layer = next(layer for prefix, layer in self.family.layers_of(self.model) if name.startswith(f"{prefix}."))
        heads, width = self.family.heads_of(layer)
        shape = (heads, 1, 1 if operand == "probs" else width)
        like = next(layer.parameters())
        try:
            return build_quantizer(self.resolved.operands[name, operand], Target(shape, like))
        except ValueError as error:
            raise ValueError(f"operand {operand!r} of {name!r}: {error}") from error

    def _attach(self) -> None:
        tape, names = self._tape, self.family.names
        for index, (_, layer) in enumerate(self.family.layers_of(self.model)):
            setattr(layer.get_submodule(names.attention), TAP, Tap(tape, index))
            if index == 0:
                self._handles.append(layer.register_forward_pre_hook(_embeddings_hook(tape), with_kwargs=True))
            for point, path in (("attn_out", names.attn_out), ("ffn_out", names.ffn_out)):
                module = layer.get_submodule(path)
                self._handles.append(module.register_forward_hook(_exchange_hook(tape, index, point)))
            self._handles.append(layer.register_forward_hook(_exchange_hook(tape, index, "hidden")))
            block = layer.get_submodule(names.attn_block)
            if names.attn_block_at == "output":
                self._handles.append(block.register_forward_hook(_exchange_hook(tape, index, "attn_block")))
            else:
                self._handles.append(block.register_forward_pre_hook(_read_input_hook(tape, index)))
            if not self.family.fused_qkv:
                for role in QKV:
                    module = layer.get_submodule(getattr(names, role))
                    self._handles.append(module.register_forward_pre_hook(_detach_hook(tape, index, role)))


def prepare(model: nn.Module, rules: tuple[Rule, ...] = (), *, initialize: bool = True) -> Instrument:
    """Instrument a model in place, quantized by `rules` (none: traced only).

    Learned and kept scales of weights start from the weights. `initialize=False` leaves that out where a state is
    loaded next: least squares and codebooks of a large model take a minute.

    Raises:
        ValueError: unknown model class, a model that is instrumented already, or rules that do not fit.
    """
    family = family_of(model)
    if any(hasattr(module, TAP) for module in model.modules()):
        raise ValueError(f"this {type(model).__name__} is instrumented already: call restore() on its Instrument first")
    return Instrument(model, family, resolve(model, family, rules), initialize=initialize)


def _tokens(x: Tensor) -> Tensor:
    """Return BLE; Swin passes images on, height and width apart."""
    return x if x.dim() == 3 else x.flatten(1, 2)


def _exchange_hook(tape: Tape, layer: int, point: str) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        own = output[0] if isinstance(output, tuple) else output
        tokens = _tokens(own)
        used = tape.exchange(layer, point, tokens)
        if used is own:
            return None
        used = used.reshape(own.shape)
        return (used, *output[1:]) if isinstance(output, tuple) else used

    return hook


def _read_input_hook(tape: Tape, layer: int) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        tape.exchange(layer, "attn_block", inputs[0])

    return hook


def _embeddings_hook(tape: Tape) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if tape.recording and "embeddings" in tape.fields:
            tape.embeddings = _tokens(inputs[0] if inputs else kwargs["hidden_states"])

    return hook


def _detach_hook(tape: Tape, layer: int, role: str) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
        return (inputs[0].detach(), *inputs[1:]) if tape.detaches(layer, role) else None

    return hook

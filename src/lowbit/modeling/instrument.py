"""prepare() and restore(): quantize, trace and intervene in a model that we do not own, and undo it.

Linear, Embedding and Conv2d layers are replaced by quantized layers that adopt the same Parameters; attention goes
through `attention.attend`; hooks read the other points. State-dict keys stay those of the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import cast

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

_QUANTIZE: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: QuantLinear.from_float,
    nn.Embedding: QuantEmbedding.from_float,
    nn.Conv2d: QuantConv2d.from_float,
}
Output = Tensor | tuple[Tensor, ...]


class Instrument:
    """A prepared model: run it for a Trace, or restore it.

    Attributes:
        model: The model, changed in place.
        family: Its family.
        resolved: Which slot got which quantizer, and the match report.
    """

    def __init__(self, model: nn.Module, family: Family, resolved: Resolved, *, initialize: bool = True) -> None:
        self.model = model
        self.family = family
        self.resolved = resolved
        self._initialize = initialize
        self._layers = family.layers_of(model)
        self.depth = len(self._layers)
        self._attentions = [layer.get_submodule(family.names.attention) for _, layer in self._layers]
        # Whatever may refuse the model comes first, so that a refusal leaves it unchanged.
        heads, names = self._head_splits(), sorted({name for name, _ in resolved.slots})
        self._originals = {name: model.get_submodule(name) for name in names}
        quantized = {name: self._quantize(name, layer, heads.get(name)) for name, layer in self._originals.items()}
        operands = {slot: self._operand_quantizer(*slot) for slot in resolved.operands}
        self._undo_routing = family.route_attention(model, self._attentions)
        for name, layer in quantized.items():
            model.set_submodule(name, layer)
        for (name, operand), quantizer in operands.items():
            model.get_submodule(name).add_module(QUANTIZER_NAMES[operand], quantizer)
        self._tape = Tape()
        self._handles = [handle for index in range(self.depth) for handle in self._attach(index)]

    def run(self, batch: dict[str, Tensor], fields: Iterable[str] = (), plan: Plan | None = None) -> Trace:
        """Run one forward pass and return its logits and the fields that are asked for.

        The plan stays in force until the next `run`, because gradient checkpointing runs layers again in the backward:
        do not call the model itself in between.

        Args:
            batch: The model's inputs by name; other entries (labels) are ignored.
            fields: Names of `LayerTrace` fields, and `embeddings`.
            plan: Teacher tensors to compute with; None for the plain student.

        Raises:
            ValueError: If a field is unknown.
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
            ValueError: If keys do not belong to the quantizers of this model.
        """
        mine = self.quantizer_state()
        state = {key: value for key, value in mine.items() if key.endswith(".floor")} | state  # some files lack it
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

    def _quantize(self, name: str, original: nn.Module, heads: tuple[int, int] | None) -> nn.Module:
        weights, inputs = self.resolved.weights, self.resolved.inputs
        if any((name, role) in self.resolved.slots for role in QKV):
            specs = {role: (weights.get((name, role)), inputs.get((name, role))) for role in QKV}
            linear = cast("nn.Linear", original)
            return QuantFusedLinear.from_float(linear, specs, heads, initialize=self._initialize)
        quantize = _QUANTIZE.get(type(original))
        if quantize is None:
            raise ValueError(
                f"module {name!r} is a {type(original).__name__}: plain Linear, Embedding and Conv2d layers can "
                "be quantized; change the rule that matches it"
            )
        spec, input_spec = weights.get((name, None)), inputs.get((name, None))
        split = {} if heads is None else {"heads": heads}
        try:
            return quantize(original, spec, input_spec, **split, initialize=self._initialize)
        except ValueError as error:
            raise ValueError(f"module {name!r}: {error}") from error

    def _head_splits(self) -> dict[str, tuple[int, int]]:
        """Map projections to (heads, dimension of the weight that the heads share); see `lowbit.quantizers.Target`."""
        splits: dict[str, tuple[int, int]] = {}
        for name, layer in self._layers:
            count, _ = self.family.heads_of(layer)
            splits[f"{name}.{self.family.names.attn_out}"] = (count, 1)
            splits.update({f"{name}.{getattr(self.family.names, role)}": (count, 0) for role in QKV})
        return splits

    def _operand_quantizer(self, name: str, operand: str) -> nn.Module:
        layer = next(layer for prefix, layer in self._layers if name.startswith(f"{prefix}."))
        heads, width = self.family.heads_of(layer)
        shape = (heads, 1, 1 if operand == "probs" else width)
        try:
            return build_quantizer(self.resolved.operands[name, operand], Target(shape, next(layer.parameters())))
        except ValueError as error:
            raise ValueError(f"operand {operand!r} of {name!r}: {error}") from error

    def _attach(self, index: int) -> Iterator[RemovableHandle]:
        """Hook one layer's points to the tape."""
        tape, names, (_, layer) = self._tape, self.family.names, self._layers[index]
        setattr(self._attentions[index], TAP, Tap(tape, index))
        if index == 0:
            yield layer.register_forward_pre_hook(_embeddings_hook(tape), with_kwargs=True)
        for point, path in (("attn_out", names.attn_out), ("ffn_out", names.ffn_out)):
            yield layer.get_submodule(path).register_forward_hook(_exchange_hook(tape, index, point))
        yield layer.register_forward_hook(_exchange_hook(tape, index, "hidden"))
        block = layer.get_submodule(names.attn_block)
        if names.attn_block_at == "output":
            yield block.register_forward_hook(_exchange_hook(tape, index, "attn_block"))
        else:
            yield block.register_forward_pre_hook(_read_input_hook(tape, index))
        if not self.family.fused_qkv:
            for role in QKV:
                projection = layer.get_submodule(getattr(names, role))
                yield projection.register_forward_pre_hook(_detach_hook(tape, index, role))


def prepare(model: nn.Module, rules: tuple[Rule, ...] = (), *, initialize: bool = True) -> Instrument:
    """Instrument a model in place, quantized by `rules`; without rules it is only traced.

    Learned and kept scales of weights start from the weights. `initialize=False` skips that if a state is loaded next:
    least squares and codebooks of a large model take a minute.

    Raises:
        ValueError: If the model's class is unknown, the model is instrumented already, or the rules do not fit it.
    """
    family = family_of(model)
    if any(hasattr(module, TAP) for module in model.modules()):
        raise ValueError(f"this {type(model).__name__} is instrumented already: call restore() on its Instrument first")
    return Instrument(model, family, resolve(model, family, rules), initialize=initialize)


def _tokens(x: Tensor) -> Tensor:
    """Return BLE; Swin keeps height and width apart."""
    return x if x.dim() == 3 else x.flatten(1, 2)


def _exchange_hook(tape: Tape, layer: int, point: str) -> Callable[..., Output | None]:
    def hook(_: nn.Module, __: object, output: Output) -> Output | None:
        own = output[0] if isinstance(output, tuple) else output
        used = tape.exchange(layer, point, _tokens(own))
        if used is own:
            return None
        used = used.reshape(own.shape)
        return (used, *output[1:]) if isinstance(output, tuple) else used

    return hook


def _read_input_hook(tape: Tape, layer: int) -> Callable[..., None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tape.exchange(layer, "attn_block", inputs[0])

    return hook


def _embeddings_hook(tape: Tape) -> Callable[..., None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if tape.recording and "embeddings" in tape.fields:
            tape.embeddings = _tokens(inputs[0] if inputs else kwargs["hidden_states"])

    return hook


def _detach_hook(tape: Tape, layer: int, role: str) -> Callable[..., tuple[Tensor, ...] | None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (inputs[0].detach(), *inputs[1:]) if tape.detaches(layer, role) else None

    return hook

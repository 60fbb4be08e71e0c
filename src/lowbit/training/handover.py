"""What a stage's student takes over from the stage before: weights, and what its quantizers learned."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lowbit.modeling import Instrument, Rule, prepare
from lowbit.modeling.surgery import split_quantizer_state
from lowbit.quantizers import QuantizerSpec, quantizers_of


@dataclass(frozen=True)
class Student:
    """A student between stages: the plain model, and what its quantizers learned under the stage's rules."""

    model: nn.Module
    quantizers: dict[str, Tensor]
    rules: tuple[Rule, ...]

    def prepared(self) -> Instrument:
        """Prepare the model as it was at the end of its stage."""
        instrument = prepare(self.model, self.rules, initialize=not self.quantizers)
        instrument.load_quantizer_state(self.quantizers)
        return instrument

    def specs(self) -> dict[str, QuantizerSpec]:
        """Return the settings of its quantizers by module name."""
        instrument = prepare(self.model, self.rules, initialize=False)
        specs = {name: quantizer.spec for name, quantizer in quantizers_of(self.model).items()}
        instrument.restore()
        return specs


def take_over(instrument: Instrument, previous: Student) -> None:
    """Let quantizers go on with what those of the stage before learned.

    One whose settings are the same takes everything; one that changed its width starts its scale anew (a 2-bit step is
    no 1-bit step) and keeps its learned shift.
    """
    before = previous.specs()
    state = instrument.quantizer_state()
    for name, quantizer in quantizers_of(instrument.model).items():
        old = before.get(name)
        for key in (key for key in state if key.startswith(f"{name}.")):
            same = old == quantizer.spec or (
                old is not None and old.kind == quantizer.spec.kind and key.endswith(".shift")
            )
            if same and key in previous.quantizers and previous.quantizers[key].shape == state[key].shape:
                state[key] = previous.quantizers[key]
    instrument.load_quantizer_state(state)


def take_over_halves(instrument: Instrument, previous: Student) -> None:
    """After ternary weight splitting, both halves of a layer take over its input quantizer."""
    halves = split_quantizer_state(instrument.model, previous.quantizers)
    own = instrument.quantizer_state()
    instrument.load_quantizer_state({key: halves.get(key, value) for key, value in own.items()})

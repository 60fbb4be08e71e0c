"""Models that we do not own: families, instrumentation, traces, intervention, construction, sizes."""

from lowbit.modeling.instrument import Instrument, prepare
from lowbit.modeling.intervention import SITES, Intervention, Plan
from lowbit.modeling.rules import Rule
from lowbit.modeling.trace import LayerTrace, Trace

__all__ = ["SITES", "Instrument", "Intervention", "LayerTrace", "Plan", "Rule", "Trace", "prepare"]

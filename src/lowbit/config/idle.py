"""Overrides that the rest of a config makes idle: a run would count as another one and compute the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lowbit.config.kinds import facts_of
from lowbit.config.quantization import rule_lists
from lowbit.settings.data import TEXT
from lowbit.settings.fields import settings_of
from lowbit.settings.model import TeacherSource
from lowbit.settings.quantizer import CorrectionKind, EstimatorsConfig
from lowbit.settings.recipe import StudentInit
from lowbit.settings.run import Config

# The groups that only a quantized stage reads, and whether they ask for anything.
_QUANTIZATION: dict[str, Callable[[Config], bool]] = {
    "quantizer": lambda config: config.quantizer.name != "none",
    "estimator": lambda config: config.estimator != EstimatorsConfig(),
    "correction": lambda config: config.correction.kind is not CorrectionKind.none,
    "oscillation": lambda config: config.oscillation.track or config.oscillation.freeze,
}
_DRAWN = tuple(f"data.image.{name}" for name in ("scale", "flip", "color_jitter", "randaugment", "random_erasing"))
_TRAINING = ("teacher.seed", "teacher.budget", "teacher.optimizer", "teacher.scheduler")


def idle_problems(config: Config, overrides: list[str]) -> Iterator[str]:
    """Yield what an override sets although nothing reads it."""
    given = _given(overrides)
    yield from _idle(config, given, harmless=False)
    for key, text in given.items():
        for reason in _reasons(config, key):
            yield f"{text}: has no effect, since {reason}"


def idle_notes(config: Config, overrides: list[str]) -> Iterator[str]:
    """Yield overrides that this method leaves idle; crossed with other methods in a sweep they make sense."""
    stages = config.method.stages.values()
    untrained = all(stage.steps == 0 for stage in stages)
    method = f"method={config.method.name}"
    given = _given(overrides)
    yield from _idle(config, given, harmless=True)
    for key, text in given.items():
        group = key.partition(".")[0]
        if group == "teacher" and not config.method.needs_teacher:
            yield f"{text}: has no effect, since {method} needs no teacher"
        elif key.startswith(_TRAINING) and config.teacher.source is not TeacherSource.finetune:
            yield f"{text}: has no effect, since teacher.source={config.teacher.source.name} trains no teacher"
        elif group in ("optimizer", "scheduler") and untrained:
            yield f"{text}: has no effect, since {method} trains nothing"
        elif group == "budget" and all(stage.steps is not None or stage.epochs is not None for stage in stages):
            yield f"{text}: has no effect, since every stage of {method} has a number of steps of its own"


def _idle(config: Config, given: dict[str, str], *, harmless: bool) -> Iterator[str]:
    for found in settings_of(config):
        changed = found.key in given and found.value not in (None, found.default)
        # What is given for certain, `validate` has refused.
        if changed and not found.given and found.harmless == harmless and found.idle is not None:
            yield found.idle


def _given(overrides: list[str]) -> dict[str, str]:
    """Return the overrides by their keys: `+` adds one, `~` deletes it, `@` says where a group's choice goes."""
    pairs = [(text.lstrip("+").partition("=")[0], text) for text in overrides if not text.startswith("~")]
    return {key.rpartition("@")[2]: text for key, text in pairs}


def _reasons(config: Config, key: str) -> Iterator[str]:
    method, quantizer = config.method, config.quantizer
    stages = method.stages.values()
    group, _, rest = key.partition(".")
    if group in _QUANTIZATION and _QUANTIZATION[group](config) and not any(stage.quantize for stage in stages):
        yield f"no stage of method={method.name} quantizes; leave it out, or choose another method (`lowbit ls method`)"
    elif group == "quantizer" and (name := rest.partition(".")[0]) in ("weight", "embedding", "activation", "operand"):
        spec = getattr(quantizer, name)
        used = any(spec in (rule.weight, rule.input, rule.bmm) for _, rule in rule_lists(quantizer))
        if facts_of(spec.kind) and not used:
            yield (
                f"no rule of quantizer={quantizer.name} uses it; choose another scheme (`lowbit ls quantizer`), or add "
                "a rule in a conf/quantizer/*.yaml of your own"
            )
    elif group == "oscillation" and rest and not (config.oscillation.track or config.oscillation.freeze):
        yield "codes are not watched; choose oscillation=track or freeze"
    if key.startswith("method.losses") and all(stage.losses for stage in stages):
        yield f"every stage of method={method.name} has losses of its own; set method.stages.STAGE.losses"
    if key == "method.width" and not any(stage.student is StudentInit.narrow for stage in stages):
        yield f"no stage of method={method.name} has a narrow student"
    if key == "data.length_grouped" and config.data.kind not in TEXT:
        yield f"data={config.data.name} holds images"
    if key in _DRAWN and not config.data.augment:
        yield "data.augment=false: training images are cut as those of the evaluation"
    if key == "data.num_crops" and config.data.soft_labels is None:
        yield "data.soft_labels=null: whole images are trained on"

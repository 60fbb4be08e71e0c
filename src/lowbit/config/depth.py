"""How many layers a model has, as far as its config says, and what stages of layers rule out (imports no torch)."""

from __future__ import annotations

from collections.abc import Iterator

from lowbit.settings.model import ModelConfig, ModelKind
from lowbit.settings.recipe import StudentInit
from lowbit.settings.run import Config

LOADED = (ModelKind.hf, ModelKind.timm)


def depth_of(model: ModelConfig) -> int | None:
    """Return the number of layers; None where it is known only once the model is loaded."""
    if model.kind in LOADED:
        return None if model.depths is None else sum(model.depths)
    return model.num_layers


def depth_problems(config: Config) -> Iterator[str]:
    """Yield what does not fit the layers of the model."""
    model = config.model
    if model.depths is None:
        return
    if model.kind not in LOADED:
        yield f"model.depths={model.depths}: model={model.name} is built to size; set model.num_layers instead"
    elif not model.depths:
        yield f"model.depths={model.depths}: give the number of layers, for example [12], or that of each stage"
    elif len(model.depths) > 1:
        yield from _stages(config, model.depths)


def _stages(config: Config, depths: list[int]) -> Iterator[str]:
    method = config.method
    why = f"model={config.model.name} has stages of {depths} layers, each of its own width"
    if method.layer_map is not None:
        yield f"method.layer_map={method.layer_map}: {why}, so that layers cannot be chosen; set it to null"
    target = method.embedding_target
    if target is not None and depths[0] <= target < sum(depths):
        yield f"method.embedding_target={target}: {why}; allowed are layers of the first, 0 to {depths[0] - 1}"
    for name, stage in method.stages.items():
        if stage.student is StudentInit.narrow:
            yield f"method.stages.{name}.student=narrow: {why}; there is no rule for halving it: choose another method"

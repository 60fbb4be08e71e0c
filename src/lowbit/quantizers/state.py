"""What a training loop does with the quantizers of a model: calibrate, begin and end steps, visit weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowbit.quantizers.fake_quantizer import FakeQuantizer, StatefulQuantizer
from lowbit.quantizers.learned import LearnedQuantizer
from lowbit.quantizers.stateful import LossAwareQuantizer, StaticQuantizer


@dataclass(frozen=True)
class WeightSite:
    """A quantized weight: all rows of a Parameter, or the rows of one role of a fused one.

    Attributes:
        name: module name, with the role for a block of rows.
        parameter: the latent weight's Parameter.
        quantizer: its quantizer.
        rows: the block.
    """

    name: str
    parameter: nn.Parameter
    quantizer: FakeQuantizer
    rows: slice = field(default_factory=lambda: slice(None))

    def of(self, tensor: Tensor) -> Tensor:
        """Return the site's part of a tensor of the Parameter's shape, as a view."""
        return tensor[self.rows]

    @property
    def latent(self) -> Tensor:
        """The latent weight with its gradient, as a view."""
        return self.of(self.parameter)

    @property
    def weight(self) -> Tensor:
        """The latent weight, detached, as a view."""
        return self.of(self.parameter.detach())

    @torch.no_grad()
    def quantized(self) -> Tensor:
        """Return Q(w) of the latent weight as evaluation sees it: without noise."""
        training = self.quantizer.training
        self.quantizer.train(False)
        try:
            quantized: Tensor = self.quantizer(self.weight)
            return quantized
        finally:
            self.quantizer.train(training)


def weight_sites(model: nn.Module) -> Iterator[WeightSite]:
    """Yield every quantized weight of a model."""
    for name, module in model.named_modules():
        sites = getattr(module, "weight_sites", None)
        if sites is not None:
            yield from sites(name)


def quantizers_of(model: nn.Module) -> dict[str, FakeQuantizer]:
    """Return the quantizers of a model by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantizer)}


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any]) -> list[str]:
    """Set the scales that depend on data, from training batches; return the names of the quantizers set.

    Runs the model in eval mode (dropout would blur the statistics); quantizers set theirs in forward order, each seeing
    quantized inputs. Call it before wrapping in DistributedDataParallel; under torch.distributed, rank 0's scales go
    to all. Quantizers that have scales keep them.

    Args:
        model: prepared model.
        batches: training batches; several average.
        run: one forward pass of a batch.

    Raises:
        ValueError: a quantizer saw no input, or there are no batches.
    """
    waiting = {name: q for name, q in quantizers_of(model).items() if _needs_data(q)}
    if not waiting:
        return []
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for quantizer in waiting.values():
        quantizer.observing = True
    try:
        for batch in batches:
            run(batch)
    finally:
        for quantizer in waiting.values():
            quantizer.observing = False
        for module, mode in modes.items():
            module.training = mode
    unseen = [name for name, quantizer in waiting.items() if not quantizer.has_observed]
    if unseen:
        raise ValueError(f"calibration: {len(unseen)} quantizers saw no input, the first is {unseen[0]}")
    for quantizer in waiting.values():
        quantizer.finish_observing()
    if dist.is_available() and dist.is_initialized():
        for quantizer in waiting.values():
            for tensor in (*quantizer.parameters(), *quantizer.buffers()):
                dist.broadcast(tensor.data, src=0)
    return list(waiting)


def _needs_data(quantizer: FakeQuantizer) -> TypeGuard[StatefulQuantizer]:
    stateful = isinstance(quantizer, StatefulQuantizer) and not isinstance(quantizer, LossAwareQuantizer)
    return stateful and not quantizer.is_ready


def begin_step(model: nn.Module, step: int, optimizer: torch.optim.Optimizer | None = None, whole: float = 1.0) -> None:
    """Tell the quantizers which step comes; give LAT the second moments that the optimizer has by now.

    `whole`: rows of the whole batch for each that this process sees of it, where several processes share batches.
    """
    moments = {} if optimizer is None else optimizer.state
    for quantizer in quantizers_of(model).values():
        if isinstance(quantizer, StaticQuantizer):
            quantizer.looks = step % quantizer.spec.get("refresh_every") == 0
        elif isinstance(quantizer, LearnedQuantizer):
            quantizer.whole = whole
    for site in weight_sites(model):
        if isinstance(site.quantizer, LossAwareQuantizer):
            second = moments.get(site.parameter, {}).get("exp_avg_sq")
            if second is not None:
                site.quantizer.set_curvature(site.of(second))


def end_step(model: nn.Module) -> None:
    """Make the ranges of this step the kept ones, and bring step sizes that fell below their floor back to it.

    Under torch.distributed, kept ranges of inputs are the mean over the processes; every process must call it, as each
    has seen its own batch.
    """
    quantizers = quantizers_of(model).values()
    looked = [q for q in quantizers if isinstance(q, StaticQuantizer) and q.has_observed]
    for quantizer in quantizers:
        if isinstance(quantizer, LearnedQuantizer):
            quantizer.raise_to_floor()
    if dist.is_available() and dist.is_initialized():
        _average([end for q in looked if not q.target.weight for end in (q.pending_low, q.pending_high)])
    for quantizer in looked:
        quantizer.end_step()


def _average(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over the processes, in one message."""
    if tensors:
        together = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(together)
        together /= dist.get_world_size()
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, mean in zip(tensors, torch.split(together, sizes), strict=True):
            tensor.copy_(mean)

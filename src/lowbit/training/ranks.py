"""The processes (ranks) of one run on several devices: who leads, what all agree on, what is averaged over them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy as FabricDDP
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from lowbit.settings.run import TrainerConfig

T = TypeVar("T")
_PATIENCE = timedelta(days=1)  # all ranks wait while another run trains the teacher that they need

logging.getLogger("lightning.fabric").setLevel(logging.WARNING)


def is_several(config: TrainerConfig) -> bool:
    """Whether the run has more than one process."""
    return config.devices * config.num_nodes > 1


def _connection(config: TrainerConfig) -> dict[str, Any]:
    on_cuda = config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    # What ranks tell each other beside gradients lies on the host, which NCCL does not serve.
    return {"process_group_backend": "cpu:gloo,cuda:nccl" if on_cuda else "gloo", "timeout": _PATIENCE}


def strategy_of(config: TrainerConfig) -> DDPStrategy | str:
    """Return what runs the trainer's steps: DistributedDataParallel where there are several processes.

    Buffers are not broadcast before every step: the kept ranges of quantizers are averaged after it, and a rank may
    have more batches to evaluate than another. Parameters may be unused: interventions cut layers off.
    """
    if not is_several(config):
        return "auto"
    return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False, **_connection(config))


class Ranks:
    """The processes of a run, which all execute the same command; one that has no others leads itself.

    The first one leads: it holds the locks, prints and writes files. It starts the others of its node, as Lightning
    does, by running its command line again with LOCAL_RANK set; `torchrun` and `srun` start all of them at once, and on
    several nodes each node's first process starts its own.
    """

    def __init__(self, config: TrainerConfig) -> None:
        self._fabric: Fabric | None = None
        self._connected = False
        if is_several(config):
            self._fabric = Fabric(
                accelerator=config.accelerator,
                devices=config.devices,
                num_nodes=config.num_nodes,
                strategy=FabricDDP(**_connection(config)),
            )
            outside = self._fabric.strategy.cluster_environment.creates_processes_externally  # type: ignore[attr-defined]
            if outside or config.num_nodes > 1:
                self._connect()

    @property
    def leads(self) -> bool:
        """Whether this process leads."""
        return self._fabric is None or bool(self._fabric.global_rank == 0)

    def start(self) -> None:
        """Let the others run the job with this process; they are started unless another launcher has."""
        if self._fabric is not None:
            self._connect()
            call_on_leader(lambda: True)

    def dismiss(self) -> None:
        """Let processes end that others have started and that wait for a job."""
        if self._connected:
            call_on_leader(lambda: False)

    def wait(self) -> bool:
        """Wait for the leader; return whether there is something to do."""
        self._connect()
        return bool(call_on_leader(lambda: False))

    def leave(self) -> None:
        """Take leave of the others, at the end of the run."""
        if self._connected:
            dist.destroy_process_group()
            self._connected = False

    def _connect(self) -> None:
        if not self._connected:
            assert self._fabric is not None
            self._fabric.launch()
            self._connected = True


def call_on_leader(call: Callable[[], T]) -> T:
    """Return on every rank what the call returns on the first one, which alone makes it; the others wait.

    For decisions that depend on files, which change while the ranks look, and for writing them.
    """
    if not dist.is_available() or not dist.is_initialized():
        return call()
    box: list[Any] = [call() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[no-any-return]


def is_leader() -> bool:
    """Whether this process is the first of its run, or the only one."""
    return not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean of a tensor over the ranks; the tensor itself where there is one."""
    if not dist.is_available() or not dist.is_initialized():
        return values
    together = values.clone()
    dist.all_reduce(together)
    return together / dist.get_world_size()

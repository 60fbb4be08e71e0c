"""Optimizers: fused AdamW, and BertAdam exactly as the published TernaryBERT and TI code has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lowbit.quantizers import quantizers_of
from lowbit.settings.fields import import_class
from lowbit.settings.recipe import OptimizerConfig, OptimizerKind, SchedulerConfig
from lowbit.training.schedules import Schedule

SCALES = ("step_size", "low", "high")  # parameters of quantizers that are scales
PLAIN = "plain"  # key of groups that follow their gradient, without moments
_EPS_OF_CLIP = 1e-6  # added to the norm by torch.nn.utils.clip_grad_norm_


class BertAdam(Optimizer):
    """Adam without bias correction, with decoupled decay, per-tensor clipping and a schedule per parameter.

    p <- p - lr * schedule(t) * (m / (sqrt(v) + eps) + weight_decay * p), each gradient first clipped to
    `max_grad_norm` on its own. t is 0-based. A parameter without a gradient is skipped: no decay, no moment, no step.
    In a group marked `plain` the clipped gradient itself is the update.

    Args:
        params: parameters or groups.
        lr: peak learning rate.
        schedule: factor on `lr` by step.
        step_counter: `parameter` (published): t counts the updates of that parameter, so one that was frozen warms up
            late; `shared`: t counts calls of `step`.

    Source: `transformer/optimization.py` of TernaryBERT; Devlin et al. 2019, released optimizer.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        schedule: Schedule,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float | None = 1.0,
        step_counter: str = "parameter",
    ) -> None:
        self._schedule = schedule
        self._per_parameter = step_counter == "parameter"
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "calls": 0,
            PLAIN: False,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters)
            group["calls"] += 1
        return loss

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        states = [self._state(p) for p in parameters]
        grads = [cast("Tensor", p.grad) for p in parameters]
        if group["max_grad_norm"] is not None:
            norms = torch._foreach_norm(grads)
            factors = [(group["max_grad_norm"] / (norm + _EPS_OF_CLIP)).clamp(max=1.0) for norm in norms]
            grads = list(torch._foreach_mul(grads, factors))
        steps = [s["step"] if self._per_parameter else group["calls"] for s in states]
        rates = [-group["lr"] * self._schedule(step) for step in steps]
        updates = [grad.clone() for grad in grads] if group[PLAIN] else self._adam(group, states, grads, parameters)
        torch._foreach_mul_(updates, rates)
        torch._foreach_add_(parameters, updates)
        for state in states:
            state["step"] += 1

    @staticmethod
    def _adam(
        group: dict[str, Any], states: list[dict[str, Any]], grads: list[Tensor], parameters: list[Tensor]
    ) -> list[Tensor]:
        beta1, beta2 = group["betas"]
        first, second = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, grads, alpha=1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, value=1 - beta2)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_add_(denominators, group["eps"])
        updates = list(torch._foreach_div(first, denominators))
        if group["weight_decay"] > 0:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        return updates

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        return state


class PlainGroupsAdamW(AdamW):
    """AdamW whose groups marked `plain` are updated by p <- p - lr * gradient, without moments or decay."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:  # here and not below: Lightning's zeroes the gradients of all groups that it finds
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group[PLAIN]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            for parameter in group["params"] if group[PLAIN] else ():
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * parameter.grad)
        return loss


def parameter_groups(
    model: nn.Module, weight_decay: float, scale_lr: float | None = None, scale_update: str = "same"
) -> list[dict[str, Any]]:
    """Split trainable parameters into decayed ones, undecayed ones and learned scales.

    Undecayed are those of fewer than two dimensions, for BERT the published exceptions (biases and LayerNorm), and
    whatever quantizers learn. Step sizes and clip values have the learning rate `scale_lr`, if one is given, and no
    moments under `scale_update="sgd"`.
    """
    learned = {id(p): name for q in quantizers_of(model).values() for name, p in q.named_parameters(recurse=False)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed, undecayed, scales = [], [], []
    for parameter in trainable:
        if scale_lr is not None and learned.get(id(parameter)) in SCALES:
            scales.append(parameter)
        elif parameter.ndim < 2 or id(parameter) in learned:
            undecayed.append(parameter)
        else:
            decayed.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay, PLAIN: False},
        {"params": undecayed, "weight_decay": 0.0, PLAIN: False},
        {"params": scales, "weight_decay": 0.0, "lr": scale_lr, PLAIN: scale_update == "sgd"},
    ]
    return [group for group in groups if group["params"]]


def has_scales(model: nn.Module) -> bool:
    """Whether the quantizers of a model learn scales: the parameters that `scale_lr` is for."""
    return any(n in SCALES for q in quantizers_of(model).values() for n, _ in q.named_parameters(recurse=False))


def build_optimizer(
    model: nn.Module,
    settings: OptimizerConfig,
    schedule: Schedule,
    *,
    scheduler: SchedulerConfig | None = None,
    fused: bool = True,
) -> tuple[Optimizer, LRScheduler | None]:
    """Return a stage's optimizer and its scheduler; BertAdam has the schedule built in.

    Args:
        model: its trainable parameters are optimized.
        settings: of the optimizer.
        schedule: factor on the learning rate by step.
        scheduler: settings of the scheduler; one that names a class takes the place of `schedule`.
        fused: for AdamW.
    """
    groups = parameter_groups(model, settings.weight_decay, settings.scale_lr, settings.scale_update)
    optimizer: Optimizer
    if settings._target_ is not None:
        optimizer = import_class(settings._target_)(groups, lr=settings.lr, **settings.options)
    elif settings.kind == OptimizerKind.bert_adam:
        optimizer = BertAdam(
            groups,
            lr=settings.lr,
            schedule=schedule,
            betas=settings.betas,
            eps=settings.eps,
            max_grad_norm=settings.max_grad_norm,
            step_counter=settings.step_counter,
        )
        return optimizer, None
    else:
        optimizer = PlainGroupsAdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)
    if scheduler is not None and scheduler._target_ is not None:
        return optimizer, import_class(scheduler._target_)(optimizer, **scheduler.options)
    return optimizer, LambdaLR(optimizer, schedule)

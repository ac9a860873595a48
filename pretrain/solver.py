"""Solvers: Caffe's SGD in torch's words, its multipliers and its momentum at rate drops (protocols 1.1, 9 rule 7)."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pretrain import Solver


def optimizer(model: nn.Module, *, rate: float, solver: Solver) -> torch.optim.Optimizer:
    """What `solver` names, for all parameters of `model`."""
    if solver.name == "adam":
        return torch.optim.Adam(model.parameters(), lr=rate)
    return torch.optim.SGD(parameter_groups(model, rate=rate, decay=solver.decay), lr=rate, momentum=solver.momentum)


def schedule(optimizer: torch.optim.Optimizer, *, iteration: int, solver: Solver) -> None:
    """Drop the rates where `iteration` (from 1) begins a new step."""
    if not solver.step or iteration == 1 or (iteration - 1) % solver.step:
        return
    rates = [group["lr"] * solver.drop for group in optimizer.param_groups]
    if isinstance(optimizer, torch.optim.SGD):
        set_rates(optimizer, rates)
    else:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def parameter_groups(
    model: nn.Module, *, rate: float, decay: float, bias_rate: float = 2.0, bias_decay: float = 0.0,
    own: Mapping[str, float] | None = None,
) -> list[dict[str, object]]:  # fmt: skip
    """SGD groups as in Caffe's prototxts: biases at `bias_rate` × the rate and `bias_decay` × the decay.

    Frozen parameters (requires_grad False) are left out. `own`: parameters with a multiplier of the rate of their
    own, by name; a group each, without decay, which would depend on their scale.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    alike = {name: p for name, p in trained.items() if name not in (own or {})}
    groups: list[dict[str, object]] = []
    for bias, its_rate, its_decay in ((False, 1.0, 1.0), (True, bias_rate, bias_decay)):
        chosen = [p for name, p in alike.items() if name.endswith("bias") == bias]
        groups.append({"params": chosen, "lr": rate * its_rate, "weight_decay": decay * its_decay})
    for name, factor in (own or {}).items():
        if name in trained:
            groups.append({"params": [trained[name]], "lr": rate * factor, "weight_decay": 0.0})
    return groups


def set_rates(optimizer: torch.optim.SGD, rates: Sequence[float]) -> None:
    """Give each group its rate for the next step, and keep the velocity that Caffe would have.

    Caffe's velocity is v = m·v + rate·g, torch's buffer b = m·b + g with a step of rate·b: v = rate·b,
    so where the rate changes, b must change the other way for v to stay.
    """
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if group["lr"] != rate:
            for parameter in group["params"]:
                buffer = optimizer.state[parameter].get("momentum_buffer")
                if buffer is not None:
                    buffer *= group["lr"] / rate
            group["lr"] = rate

"""Solvers: Caffe's SGD in torch's words, its multipliers and its momentum at rate drops (protocols 1.1, 9 rule 7)."""

from collections.abc import Sequence

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
    trunk_rate: float = 1.0,
) -> list[dict[str, object]]:  # fmt: skip
    """SGD groups as in Caffe's prototxts: biases at `bias_rate` × the rate and `bias_decay` × the decay.

    Frozen parameters (requires_grad False) are left out. Those of a `trunk` have `trunk_rate` × these rates.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, object]] = []
    for factor in (1.0,) if trunk_rate == 1.0 else (1.0, trunk_rate):
        for kind, own_rate, own_decay in (("weight", 1.0, 1.0), ("bias", bias_rate, bias_decay)):
            chosen = [p for name, p in trained if name.endswith("bias") == (kind == "bias")
                      and (trunk_rate == 1.0 or ("trunk." in name) == (factor != 1.0))]  # fmt: skip
            groups.append({"params": chosen, "lr": rate * own_rate * factor, "weight_decay": decay * own_decay})
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

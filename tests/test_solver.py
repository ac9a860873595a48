"""torch's SGD with our rates is Caffe's, step by step, also where the rate drops."""

import pytest
import torch
from torch import nn

from pretrain.solver import parameter_groups, set_rates


def test_velocity_survives_a_drop_of_the_rate():
    """Caffe, in float64: v = m·v + rate·(g + decay·w), w = w - v (biases: twice the rate, no decay)."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    w, b = model.weight.detach().clone(), model.bias.detach().clone()
    vw, vb = torch.zeros_like(w), torch.zeros_like(b)
    rate, momentum, decay = 0.1, 0.9, 0.05
    optimizer = torch.optim.SGD(parameter_groups(model, rate=rate, decay=decay), lr=rate, momentum=momentum)
    rates = [group["lr"] for group in optimizer.param_groups]
    x, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    for iteration in range(12):
        factor = 0.1 ** (iteration // 4)
        set_rates(optimizer, [r * factor for r in rates])
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        gw, gb = model.weight.grad.clone(), model.bias.grad.clone()
        optimizer.step()
        vw = momentum * vw + rate * factor * (gw + decay * w)
        vb = momentum * vb + 2 * rate * factor * gb
        w, b = w - vw, b - vb
        torch.testing.assert_close(model.weight.detach(), w, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(model.bias.detach(), b, rtol=1e-12, atol=1e-14)


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    weights, biases = parameter_groups(model, rate=1.0, decay=0.5)
    assert [p is model[1].weight for p in weights["params"]] == [True]
    assert [p is model[1].bias for p in biases["params"]] == [True]
    assert (weights["lr"], weights["weight_decay"]) == (1.0, 0.5)
    assert (biases["lr"], biases["weight_decay"]) == (2.0, 0.0)


@pytest.mark.parametrize("rate", [0.3, 0.1])
def test_an_unchanged_rate_changes_nothing(rate):
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.3, momentum=0.9)
    parameter.grad = torch.ones(2)
    optimizer.step()
    set_rates(optimizer, [rate])
    assert optimizer.param_groups[0]["lr"] == rate
    torch.testing.assert_close(optimizer.state[parameter]["momentum_buffer"], torch.full((2,), 0.3 / rate))

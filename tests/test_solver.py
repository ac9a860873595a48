"""torch's SGD with our rates is Caffe's, step by step, also where the rate drops."""

import pytest
import torch
from torch import nn

from pretrain import ADAM, Solver
from pretrain.solver import optimizer, parameter_groups, schedule, set_rates


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


# ---- the solvers of pre-training ----


def regression():
    """A network, its inputs and its targets, in float64."""
    torch.manual_seed(0)
    return nn.Linear(3, 2).double(), torch.randn(7, 3).double(), torch.randn(7, 2).double()


def steps(model, x, y, solver, *, rate, iterations):
    """Train as the loop does; yield the gradients of each iteration, and behind its step."""
    made = optimizer(model, rate=rate, solver=solver)
    for iteration in range(1, iterations + 1):
        schedule(made, iteration=iteration, solver=solver)
        made.zero_grad()
        (model(x) - y).square().mean().backward()
        grads = [p.grad.clone() for p in (model.weight, model.bias)]
        made.step()
        yield made, grads


def test_sgd_drops_its_rate_as_caffe_does():
    """Caffe's `step` policy: rate·drop^⌊iteration / step⌋, iterations from 0; the velocity is kept."""
    model, x, y = regression()
    w, b = model.weight.detach().clone(), model.bias.detach().clone()
    vw, vb = torch.zeros_like(w), torch.zeros_like(b)
    solver = Solver("sgd", momentum=0.9, decay=0.05, step=4, drop=0.1)
    for iteration, (made, (gw, gb)) in enumerate(steps(model, x, y, solver, rate=0.1, iterations=12)):
        rate = 0.1 * 0.1 ** (iteration // 4)
        assert [group["lr"] for group in made.param_groups] == pytest.approx([rate, 2 * rate], rel=1e-12)
        vw, vb = 0.9 * vw + rate * (gw + 0.05 * w), 0.9 * vb + 2 * rate * gb
        w, b = w - vw, b - vb
        torch.testing.assert_close(model.weight.detach(), w, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(model.bias.detach(), b, rtol=1e-12, atol=1e-14)


def test_plain_sgd_drops_its_rate():
    model, x, y = regression()
    w = model.weight.detach().clone()
    solver = Solver("sgd", step=2, drop=0.5)
    for iteration, (_, (gw, _)) in enumerate(steps(model, x, y, solver, rate=0.1, iterations=5)):
        w = w - 0.1 * 0.5 ** (iteration // 2) * gw
        torch.testing.assert_close(model.weight.detach(), w, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("solver", [ADAM, Solver("adam", step=3, drop=0.1)], ids=["constant", "dropping"])
def test_adam_is_caffes_with_one_rate_for_all(solver):
    model, x, y = regression()
    theirs = [p.detach().clone() for p in (model.weight, model.bias)]
    means, squares = ([torch.zeros_like(p) for p in theirs] for _ in range(2))
    for iteration, (made, grads) in enumerate(steps(model, x, y, solver, rate=0.01, iterations=8), start=1):
        rate = 0.01 * (0.1 ** ((iteration - 1) // 3) if solver.step else 1)
        assert [group["lr"] for group in made.param_groups] == pytest.approx([rate])
        for p, m, v, g in zip(theirs, means, squares, grads, strict=True):
            m.lerp_(g, 1 - 0.9)
            v.lerp_(g * g, 1 - 0.999)
            p -= rate * (m / (1 - 0.9**iteration)) / ((v / (1 - 0.999**iteration)).sqrt() + 1e-8)
        for ours, p in zip((model.weight, model.bias), theirs, strict=True):
            torch.testing.assert_close(ours.detach(), p, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_resumed_solver_has_the_rate_it_had(name):
    """The dropped rate and the velocity are in its state: nothing is dropped twice."""
    solver = Solver(name, momentum=0.9 if name == "sgd" else 0.0, step=2, drop=0.1)
    whole, x, y = regression()
    *_, (made, _) = steps(whole, x, y, solver, rate=0.1, iterations=7)
    parts, x, y = regression()
    *_, (before, _) = steps(parts, x, y, solver, rate=0.1, iterations=3)
    again = optimizer(parts, rate=0.1, solver=solver)
    again.load_state_dict(before.state_dict())
    for iteration in range(4, 8):
        schedule(again, iteration=iteration, solver=solver)
        again.zero_grad()
        (parts(x) - y).square().mean().backward()
        again.step()
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in made.param_groups]
    assert torch.equal(parts.weight, whole.weight)
    assert torch.equal(parts.bias, whole.bias)


def test_without_a_step_no_rate_drops():
    model, x, y = regression()
    for made, _ in steps(model, x, y, Solver("sgd", momentum=0.9, drop=0.1), rate=0.1, iterations=5):
        assert [group["lr"] for group in made.param_groups] == [0.1, 0.2]

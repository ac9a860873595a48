"""What stands between conv1 and conv5 under any framework's names is folded or refused by name, never dropped."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.alexnet import AlexNet, load_encoder, read_encoder
from pretrain.files import Failed
from pretrain.foreign import Reading, import_weights
from pretrain.foreign.compare import Source, compare

WIDTHS, SIDES = (8, 12, 12, 12, 16), (11, 5, 3, 3, 3)
State = dict[str, Tensor]


def parts(eps: float = 1e-5) -> tuple[State, State, Callable[[Tensor], Tensor]]:
    """Convolutions c<k>.w/.b, norms n<k>.{mean,var,scale,shift}, and relu5 as torch computes it, ungrouped, no LRN."""
    draws = torch.Generator().manual_seed(0)
    convs, norms = {}, {}
    for k, (inputs, outputs, side) in enumerate(zip((3, *WIDTHS), WIDTHS, SIDES, strict=False), start=1):
        fan = inputs * side * side
        convs[f"c{k}.w"] = torch.randn(outputs, inputs, side, side, generator=draws) / fan**0.5
        convs[f"c{k}.b"] = torch.randn(outputs, generator=draws)
        for kind in ("mean", "scale", "shift"):
            norms[f"n{k}.{kind}"] = torch.randn(outputs, generator=draws)
        norms[f"n{k}.var"] = torch.rand(outputs, generator=draws) * 0.02 + 0.001  # so small that eps matters

    def relu5(x: Tensor) -> Tensor:
        for k in range(1, 6):
            x = F.conv2d(x, convs[f"c{k}.w"], convs[f"c{k}.b"], 4 if k == 1 else 1, (0, 2, 1, 1, 1)[k - 1])
            mean, var, scale, shift = (norms[f"n{k}.{kind}"] for kind in ("mean", "var", "scale", "shift"))
            x = F.relu((x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + eps).sqrt() * scale.view(-1, 1, 1)
                       + shift.view(-1, 1, 1))  # fmt: skip
            x = F.max_pool2d(x, 3, 2, ceil_mode=True) if k <= 2 else x
        return x

    return convs, norms, relu5


def renamed(conv: str, norm: str, kinds: tuple[str, ...], *, wb: tuple[str, str] = ("weight", "bias"), first: int = 1) -> State:  # fmt: skip # noqa: E501
    """`conv` and `norm` are patterns of a number and a kind; kinds: names of mean, var, scale, shift."""
    convs, norms, _ = parts()
    state = {}
    for k in range(1, 6):
        for own, theirs in zip("wb", wb, strict=True):
            state[conv.format(k - 1 + first, theirs)] = convs[f"c{k}.{own}"]
        for own, theirs in zip(("mean", "var", "scale", "shift"), kinds, strict=True):
            state[norm.format(k - 1 + first, theirs)] = norms[f"n{k}.{own}"]
    return state


TORCH = ("running_mean", "running_var", "weight", "bias")
KERAS = ("moving_mean", "moving_variance", "gamma", "beta")
FOLDED: dict[str, tuple[Callable[[], State], float]] = {
    "torch": (lambda: renamed("conv{}.{}", "bn{}.{}", TORCH), 1e-5),
    "torch, lists": (lambda: renamed("convs.{}.{}", "bns.{}.{}", TORCH, first=0), 1e-5),
    "torch, bn_conv1": (lambda: renamed("conv{}.{}", "bn_conv{}.{}", TORCH), 1e-5),
    "torch, batchnorm1": (lambda: renamed("net.conv{}.{}", "net.batchnorm{}.{}", TORCH), 1e-5),
    "Caffe2": (lambda: renamed("conv{}_{}", "conv{}_bn_{}", ("rm", "riv", "s", "b"), wb=("w", "b")), 1e-5),
    "Keras": (lambda: renamed("conv{}/{}:0", "bn{}/{}:0", KERAS, wb=("kernel", "bias")), 1e-3),
    "Keras, nested": (lambda: renamed("conv{}/{}", "conv{}/BatchNorm/{}", KERAS, wb=("weights", "biases")), 1e-3),
    "Keras, counted": (
        lambda: renamed("conv2d_{}/{}", "batch_normalization_{}/{}", KERAS, wb=("kernel", "bias")), 1e-3,
    ),
    "Flax": (lambda: flax(), 1e-5),
    "Gluon": (lambda: renamed("conv{}_{}", "bn{}_{}", ("running_mean", "running_var", "gamma", "beta")), 1e-5),
    "Chainer": (lambda: renamed("conv{}/{}", "bn{}/{}", ("avg_mean", "avg_var", "gamma", "beta"), wb=("W", "b")), 2e-5),
    "Paddle": (lambda: renamed("conv{}.{}", "bn{}.{}", ("_mean", "_variance", "weight", "bias")), 1e-5),
    "caffe-tensorflow": (lambda: renamed("conv{}/{}", "bn{}/{}", ("mean", "variance", "scale", "offset")), 1e-5),
    "tensorpack": (
        lambda: renamed("conv{}/{}", "conv{}/bn/{}", ("mean/EMA", "variance/EMA", "gamma", "beta"), wb=("W", "b")),
        1e-5,
    ),
}  # fmt: skip


def flax() -> State:
    state = renamed(
        "params/Conv_{}/{}", "BatchNorm_{}/{}", ("mean", "var", "scale", "bias"), wb=("kernel", "bias"), first=0
    )
    for name in [name for name in state if name.startswith("BatchNorm")]:
        tree = "batch_stats" if name.endswith(("mean", "var")) else "params"
        state[f"{tree}/{name}"] = state.pop(name)
    return state


def imported(folder: Path, state: State) -> AlexNet:
    np.savez(folder / "a.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    out = import_weights(folder / "a.npz", out=folder / "e.safetensors", method="mine", reading=Reading(norm="none"))
    encoder = read_encoder(out)
    trunk = AlexNet(encoder.architecture)
    assert load_encoder(trunk, encoder).loaded == 10
    return trunk


@pytest.mark.parametrize("framework", FOLDED)
def test_batch_norms_of_every_framework_are_folded(framework: str, tmp_path: Path, capsys) -> None:
    make, eps = FOLDED[framework]
    head = {"fc6.weight": torch.ones(4, 9), "fc6.bias": torch.ones(4), "bn6.running_mean": torch.ones(4),
            "bn6.running_var": torch.ones(4), "optimizer.exp_avg.3": torch.ones(12)}  # fmt: skip
    trunk = imported(tmp_path, make() | head)
    image = 50 * torch.randn(2, 3, 99, 99, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = trunk.features(image), parts(eps)[2](image)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.max()))
    said = capsys.readouterr().err
    assert f"{framework.split(',')[0]}'s BatchNorm by its names" in said
    assert f"with eps {eps:g}" in said
    assert "nothing folded: at most" in said
    said = read_encoder(tmp_path / "e.safetensors").provenance
    assert said["compared"] == "relu5 of 2 random images: within 0.0001 of the source's own arithmetic"


def plain() -> State:
    """The convolutions alone, as conv1.weight …"""
    return {f"conv{n[1]}.{'weight' if n[3] == 'w' else 'bias'}": t for n, t in parts()[0].items()}


def sequential() -> State:
    places = ("0", "3", "6", "8", "10")
    return {f"features.{places[int(n[4]) - 1]}.{n[6:]}": tensor for n, tensor in plain().items()}


C, ONE = torch.ones(12), torch.ones(1)
DROPPED: dict[str, tuple[Callable[[], State], State]] = {
    "a norm without statistics": (plain, {"norm3.weight": C, "norm3.bias": C}),
    "Keras's without": (plain, {"bn2/gamma:0": C, "bn2/beta:0": C}),
    "Detectron's AffineChannel": (plain, {"conv2_bn_s": C, "conv2_bn_b": C}),
    "a group norm": (plain, {"gn4.weight": C, "gn4.bias": C}),
    "PReLU": (plain, {"prelu1.weight": torch.ones(8)}),
    "PReLU with one slope": (plain, {"prelu.weight": ONE}),
    "PReLU in a list": (plain, {"acts.0.weight": torch.ones(8)}),
    "PReLU in a Sequential": (sequential, {"features.1.weight": torch.ones(8)}),
    "PReLU beside a Sequential": (sequential, {"relu1.weight": torch.ones(8)}),
    "a gain": (plain, {"conv3.gain": C}),
    "gains in one tensor": (plain, {"gains": torch.ones(5)}),
    "a gain for all": (plain, {"gain": ONE}),
    "a gain of four axes": (plain, {"scales.2": torch.ones(1, 12, 1, 1)}),
    "layer scale": (plain, {"gamma_2": C}),
    "a mask of pruning": (plain, {"conv3.weight_mask": torch.ones(12, 12, 3, 3)}),
    "weight norm": (plain, {"conv2.weight_g": torch.ones(12, 1, 1, 1), "conv2.weight_v": torch.ones(12, 8, 5, 5)}),
    "spectral norm": (plain, {"conv2.weight_u": C}),
    "an attention": (plain, {"conv2.se.fc1.weight": torch.ones(3, 12), "conv2.se.fc1.bias": torch.ones(3)}),
    "a 1×1 convolution between": (plain, {"cccp2.weight": torch.ones(12, 12, 1, 1), "cccp2.bias": C}),
    "a second one": (plain, {"conv2_1x1.weight": torch.ones(12, 12, 1, 1)}),
    "one without a number": (plain, {"mix.weight": torch.ones(12, 12, 1, 1), "mix.bias": C}),
    "one for each channel": (plain, {"blur.0.weight": torch.ones(8, 1, 3, 3)}),
    "a norm of the pixels": (plain, {"bn0.running_mean": torch.ones(3), "bn0.running_var": torch.ones(3)}),
    "a mean and a std": (plain, {"normalize.mean": torch.ones(1, 3, 1, 1), "normalize.std": torch.ones(1, 3, 1, 1)}),
    "a mean alone": (plain, {"mean": torch.ones(3)}),
    "a norm with half its statistics": (plain, {"bn1.running_mean": torch.ones(8)}),
    "a norm of unknown names": (plain, {"bn1.moving_mean": torch.ones(8), "bn1.running_var": torch.ones(8)}),
    "a norm with more than a norm": (plain, {f"bn1.{kind}": torch.ones(8) for kind in (*TORCH, "gamma")}),
    "statistics of a convolution": (plain, {"conv1.running_mean": torch.ones(8), "conv1.running_var": torch.ones(8)}),
    "a norm of another size": (plain, {f"bn1.{kind}": torch.ones(9) for kind in TORCH}),
    "a norm numbered from zero": (plain, {f"bn{k}.{kind}": C for k in (0, 1, 2) for kind in TORCH}),
    "a norm in the same module as a head": (
        lambda: {f"net.{n}": t for n, t in plain().items()} | {"net.final.weight": torch.ones(2, 9)},
        {f"net.other.{kind}": C for kind in TORCH},
    ),
    "a second trunk of other names": (lambda: plain() | sequential(), {"features.0": ONE}),
    "Caffe's in lists": (plain, {"bn2.0": C, "bn2.1": C, "bn2.2": ONE}),
}  # fmt: skip


@pytest.mark.parametrize("case", DROPPED)
def test_what_is_not_understood_is_refused_by_name(case: str, tmp_path: Path) -> None:
    make, extra = DROPPED[case]
    with pytest.raises(Failed) as caught:
        imported(tmp_path, make() | extra)
    said = str(caught.value)
    assert "\n" not in said
    assert any(name in said or name.rpartition(".")[0] in said.split("'") for name in extra), said
    assert not (tmp_path / "e.safetensors").exists()


BESIDE: dict[str, State] = {
    "fc layers": {f"fc{k}.{kind}": torch.ones(12) for k in (1, 2) for kind in ("weight", "bias")},
    "a head's norm": {"head.1.weight": torch.ones(12, 12), **{f"head.2.{kind}": C for kind in TORCH}},
    "a decoder": {"dec1.weight": torch.ones(12, 12, 3, 3), "decoder.bn1.weight": C, "decoder.bn1.bias": C},
    "another module": {"mine.0.weight": torch.ones(9, 4, 3, 3), **{f"mine.1.{kind}": C for kind in TORCH}},
    "counters": {
        "epoch": torch.tensor(3.0),
        "best_acc1": torch.tensor(57.1),
        "queue_ptr": torch.zeros(1, dtype=torch.int64),
    },
    "an optimizer": {"optimizer.state.0.exp_avg": torch.ones(8), "optimizer.state.0.step": ONE},
    "momentum": {"conv1.weight_momentum": torch.ones(8, 3, 11, 11), "conv2/kernel/Adam_1": torch.ones(12)},
    "a queue": {"queue": torch.ones(128, 70), "logit_scale": ONE},
    "a bias of another size": {"whatever": torch.ones(1000)},
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_evidently_stands_beside_the_trunk_is_left_out(case: str, tmp_path: Path) -> None:
    state = imported(tmp_path, plain() | BESIDE[case]).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain().items())


@pytest.mark.parametrize(
    ("axes", "back", "said"),
    [((2, 3, 1, 0), (3, 2, 0, 1), "TensorFlow's order"), ((0, 2, 3, 1), (0, 3, 1, 2), "channels last")],
)
def test_another_order_of_axes_is_named_with_the_way_back(axes, back, said, tmp_path: Path) -> None:
    turned = {
        name: tensor.permute(axes).contiguous() if tensor.ndim == 4 else tensor for name, tensor in plain().items()
    }
    with pytest.raises(Failed, match=said) as caught:
        imported(tmp_path, turned)
    assert f"numpy.transpose(weight, {back})" in str(caught.value)
    assert "conv1.weight is (" in str(caught.value)
    righted = {
        name: torch.from_numpy(np.transpose(t.numpy(), back).copy()) if t.ndim == 4 else t for name, t in turned.items()
    }
    state = imported(tmp_path, righted).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain().items())


def test_an_encoder_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    trunk = imported(tmp_path, plain())
    source = Source(plain(), {}, "rgb", (123.0, 117.0, 104.0), (1.0, 1.0, 1.0))
    assert compare(tmp_path / "a.npz", source, trunk) < 1e-5
    with torch.no_grad():
        trunk.conv4.bias[3] += 5
    with pytest.raises(Failed, match="differ from the source's by"):
        compare(tmp_path / "a.npz", source, trunk)

"""A file's keys may come in any order, as those of a sorted .safetensors do: the encoder is the same, or a refusal."""

import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pretrain.alexnet import Encoder, read_encoder
from pretrain.files import Failed
from pretrain.foreign import import_weights

WIDTHS = (8, 12, 12, 12, 12)  # alike, so that a convolution in another's place would fit
SIDES = (11, 5, 3, 3, 3)
SEQUENTIAL = (0, 3, 6, 8, 10)  # torchvision's; as text 10 comes before 3
WITH_NORMS = (0, 4, 8, 11, 14)  # convolution, BatchNorm, ReLU, pooling

STATISTICS = ("running_mean", "running_var", "weight", "bias")

State = dict[str, Tensor]


def conv(name: str, k: int) -> State:
    shape = (WIDTHS[k], (3, *WIDTHS)[k], SIDES[k], SIDES[k])
    return {
        f"{name}.weight": torch.randn(shape) / math.sqrt(math.prod(shape[1:])),
        f"{name}.bias": torch.randn(shape[0]),
    }


def norm(name: str, k: int) -> State:
    made = {key: torch.randn(WIDTHS[k]) for key in ("weight", "bias", "running_mean")}
    made |= {"running_var": torch.rand(WIDTHS[k]) + 1, "num_batches_tracked": torch.tensor(7)}
    return {f"{name}.{key}": tensor for key, tensor in made.items()}


def of(conv_name: str, norm_name: str = "", numbers: tuple[int, ...] = (1, 2, 3, 4, 5)) -> State:
    """Five convolutions, each with its BatchNorm if it has a name; {} is the number, {next} the one after."""
    state: State = {}
    for k, number in enumerate(numbers):
        state |= conv(conv_name.format(number), k)
        state |= norm(norm_name.format(number, next=number + 1), k) if norm_name else {}
    return state


def head(norm_name: str = "") -> State:
    """A classifier behind the trunk, with a BatchNorm of its own."""
    state: State = {}
    for name in ("classifier.1", "classifier.4", "fc6", "fc10"):
        state |= {f"{name}.weight": torch.randn(9, 9), f"{name}.bias": torch.randn(9)}
    statistics = ("running_mean", "running_var") if norm_name else ()
    return state | {f"{norm_name}.{key}": torch.ones(9) for key in statistics}


LAYOUTS = {
    "torchvision": lambda: of("features.{}", numbers=SEQUENTIAL) | head(),
    "sequential": lambda: of("{}", numbers=SEQUENTIAL),
    "parallel": lambda: of("module.net2.features.{}", numbers=(2, 9, 10, 11, 100)),
    "sequential with norms": lambda: of("features.{}", "features.{next}", WITH_NORMS) | head("classifier.2"),
    "one sequential": lambda: of("{}", "{next}", WITH_NORMS) | {"21.weight": torch.randn(9, 9)} | head("22"),
    "nested": lambda: of("blocks.{}.0", "blocks.{}.1", SEQUENTIAL),
    "blocks": lambda: of("block{}.conv", "block{}.bn", (8, 9, 10, 11, 12)),
    "layers with fc": lambda: of("layer{}.0", "layer{}.1") | {"layer6.0.weight": torch.randn(9, 9)} | head("layer6.1"),
    "named": lambda: of("conv{}") | head("bn6"),
    "named with norms": lambda: of("encoder.conv{}", "encoder.bn{}") | head("fc6.bn"),
    "norms inside": lambda: of("conv{}.conv", "conv{}.norm") | head("head.bn1") | conv("head.1", 0),
    "norms beside": lambda: of("conv_{}", "conv_{}_bn") | head("bn_fc6"),
    "from zero": lambda: of("conv{}", "batch_norm{}", (0, 1, 2, 3, 4)),
}


def imported(folder: Path, state: State, *, suffix: str = "pth") -> Encoder:
    path = folder / f"a.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return read_encoder(import_weights(path, out=folder / "e.safetensors", method="mine"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_keys_changes_no_bit(layout, tmp_path):
    torch.manual_seed(0)
    state = LAYOUTS[layout]()
    ordered = imported(tmp_path, state)
    shuffles = [dict(random.Random(seed).sample(list(state.items()), len(state))) for seed in range(6)]
    found = [imported(tmp_path, s) for s in [dict(sorted(state.items())), *shuffles]]
    found.append(imported(tmp_path, state, suffix="safetensors"))
    for encoder in found:
        assert encoder.architecture == ordered.architecture
        assert all(torch.equal(tensor, ordered.tensors[name]) for name, tensor in encoder.tensors.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_convolution_is_the_one_of_its_number(layout, tmp_path):
    torch.manual_seed(0)
    state = LAYOUTS[layout]()
    encoder = imported(tmp_path, dict(sorted(state.items())))
    convs = [name.removesuffix(".weight") for name, tensor in state.items() if tensor.ndim == 4 and "head" not in name]
    means = [name for name in state if name.endswith("running_mean") and state[name].shape != (9,)]
    for k, module in list(enumerate(convs))[1:]:  # in the order in which they were made; conv1 takes the pixels in
        weight, bias = state[f"{module}.weight"].double(), state[f"{module}.bias"].double()
        if means:
            shift, var, gain, offset = (state[means[k].replace("running_mean", key)].double() for key in STATISTICS)
            scale = gain / (var + 1e-5).sqrt()
            weight, bias = weight * scale.view(-1, 1, 1, 1), (bias - shift) * scale + offset
        torch.testing.assert_close(encoder.tensors[f"conv{k + 1}.weight"].double(), weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(encoder.tensors[f"conv{k + 1}.bias"].double(), bias, rtol=1e-5, atol=1e-5)


SEQUENCE = "features.{}"
REFUSED = {
    "no number says the order": (lambda: layers_by_text(), "no number says which of"),
    "two of one name": (lambda: of("conv{}") | conv("Conv1", 0), "'conv1' and 'Conv1' are both conv1"),
    "weight norm": (lambda: of("conv{}") | {"conv3.weight_g": torch.ones(12)}, "conv3.weight_g"),
    "twice a weight": (lambda: of("conv{}") | {"conv2_w": torch.ones(2, 2)}, "conv2_w"),
    "another scale": (lambda: of("conv{}") | {"scale2.weight": torch.ones(12)}, "scale2.weight"),
    "a norm without statistics": (
        lambda: of(SEQUENCE, numbers=SEQUENTIAL) | {"features.1.weight": torch.ones(8)},
        "features.1.weight",
    ),
    "a norm behind the ReLU": (lambda: of(SEQUENCE, numbers=SEQUENTIAL) | norm("features.2", 0), "'features.2'"),
    "a norm of the input": (lambda: of(SEQUENCE, numbers=(1, 4, 7, 9, 11)) | norm("features.0", 0), "'features.0'"),
    "two norms": (lambda: of("conv{}", "bn{}") | norm("norm3", 2), "'norm3'"),
    "a norm of no one": (lambda: of("conv{}") | norm("b2", 1), "'b2'"),
    "a norm of either": (lambda: of("conv{}") | norm("bn1", 0) | {"fc1.weight": torch.ones(8, 2)}, "'bn1'"),
    "a layer in between": (
        lambda: of(SEQUENCE, numbers=SEQUENTIAL) | {"features.4.weight": torch.ones(12, 12)},
        "features.4.weight",
    ),
}


def layers_by_text() -> State:
    return {name: t for k, text in enumerate(("first", "second", "third", "fourth", "fifth"))
            for name, t in conv(f"net1.{k if k < 3 else 3}{text}", k).items()}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_is_refused_by_name(case, tmp_path):
    make, said = REFUSED[case]
    state = make()
    for seed in range(3):
        with pytest.raises(Failed) as caught:
            imported(tmp_path, dict(random.Random(seed).sample(list(state.items()), len(state))))
        assert said in str(caught.value)
        assert not (tmp_path / "e.safetensors").exists()

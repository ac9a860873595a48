"""CaffeNet against protocols 1.1, 5.1 and 6.1, and every way in which an encoder file can be bad."""

import json
import os
import pickle
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretrain.alexnet import (
    CAFFENET,
    AlexNet,
    Architecture,
    load_encoder,
    local_response_norm,
    read_encoder,
    save_encoder,
)
from pretrain.files import Failed, Missing

NAMES = [f"conv{k}.{kind}" for k in range(1, 6) for kind in ("weight", "bias")]
PROVENANCE = {"method": "context", "variant": "central", "supervision": "context", "seed": 3}

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def trunk() -> AlexNet:
    torch.manual_seed(0)
    return AlexNet()


# ---- the network ----


def test_shapes_and_parameters(trunk: AlexNet) -> None:
    assert trunk(torch.zeros(2, 3, 227, 227)).shape == (2, 256, 6, 6)
    assert trunk.features(torch.zeros(1, 3, 227, 227)).shape == (1, 256, 13, 13)
    assert sum(p.numel() for p in trunk.parameters()) == 2_334_080
    assert [p.weight.numel() + p.bias.numel() for p in trunk.convs()] == [34_944, 307_456, 885_120, 663_936, 442_624]  # type: ignore[union-attr]


def test_the_state_dict_is_ten_tensors_whatever_the_paddings(trunk: AlexNet) -> None:
    assert list(trunk.state_dict()) == NAMES
    assert list(AlexNet(conv1_pad=5, pool1_pad=1, pool2_pad=1).state_dict()) == NAMES
    shapes = {name: tuple(tensor.shape) for name, tensor in trunk.state_dict().items()}
    assert CAFFENET.shapes() == shapes
    assert shapes["conv2.weight"] == (256, 48, 5, 5)  # two groups
    assert not list(trunk.buffers())


def test_norms_stand_between_the_last_three_convolutions_and_their_relus(trunk: AlexNet) -> None:
    seen: list[Tensor] = []

    def shifted(x: Tensor) -> Tensor:
        seen.append(x)
        return x - 0.1

    images = 50 * torch.randn(1, 3, 99, 99, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = trunk(images)
        normed = trunk(images, norms=(shifted,) * 3)
        moved = AlexNet()
        moved.load_state_dict(trunk.state_dict())
        for conv in moved.convs()[2:]:
            assert conv.bias is not None
            conv.bias -= 0.1
        expected = moved(images)
    assert [x.shape[1] for x in seen] == [384, 384, 256]
    assert all((x < 0).any() for x in seen)  # not rectified yet
    assert not torch.equal(normed, plain)
    torch.testing.assert_close(normed, expected, rtol=1e-4, atol=1e-4)
    assert list(trunk.state_dict()) == NAMES


def test_caffes_fillers(trunk: AlexNet) -> None:
    for conv, bias in zip(trunk.convs(), (0.0, 1.0, 0.0, 1.0, 1.0), strict=True):
        assert conv.bias is not None
        assert conv.bias.eq(bias).all()
        count = conv.weight.numel()
        assert abs(conv.weight.std().item() / 0.01 - 1) < 5 / (2 * count) ** 0.5
        assert abs(conv.weight.mean().item()) < 5 * 0.01 / count**0.5
        assert conv.weight.abs().max() > 0.035  # a Gaussian, neither uniform nor truncated


def test_initialisation_follows_the_global_seed(trunk: AlexNet) -> None:
    torch.manual_seed(0)
    again = AlexNet().state_dict()
    torch.manual_seed(1)
    other = AlexNet().state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in trunk.state_dict().items())
    assert not torch.equal(other["conv1.weight"], again["conv1.weight"])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 96])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_lrn_is_torchs(channels: int, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, channels, 5, 7, dtype=torch.float64) * 300).to(memory_format=memory_format)
    grad = torch.randn(2, channels, 5, 7, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = local_response_norm(ours), nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)(theirs)
    assert (x / expected).max() > 1.5  # the divisor matters at this scale
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=0)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_lrn_gradient() -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 7, 2, 3, dtype=torch.float64) * 100).requires_grad_()
    assert torch.autograd.gradcheck(local_response_norm, x)


def test_lrn_by_hand() -> None:
    """Channel 0 sees channels 0, 1, 2: d = 1 + 1e-4 / 5 · (100² + 200² + 300²)."""
    x = torch.tensor([100.0, 200.0, 300.0, 400.0, 500.0, 600.0]).view(1, 6, 1, 1)
    d = 1 + 1e-4 / 5 * (100**2 + 200**2 + 300**2)
    assert local_response_norm(x)[0, 0].item() == pytest.approx(100 * d**-0.75, rel=1e-6)
    assert torch.equal(x.flatten(), torch.arange(100.0, 700.0, 100.0))  # the input is left alone


OTHERS = {
    "torchvision's": Architecture((64, 192, 384, 256, 256), (1, 1, 1, 1, 1), "none"),
    "ungrouped": Architecture(groups=(1, 1, 1, 1, 1)),
    "the original AlexNet": Architecture(norm="lrn-before-pool"),
    "BiGAN's": Architecture(norm="none", slope=0.2),
    "of another mean": Architecture(pad_value=(-15.0, 0.5, 0.0)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture_is_kept_in_the_file(name: str, tmp_path: Path) -> None:
    trunk = AlexNet(OTHERS[name])
    assert {n: tuple(t.shape) for n, t in trunk.state_dict().items()} == OTHERS[name].shapes()
    save_encoder(tmp_path / "e", trunk, PROVENANCE)
    encoder = read_encoder(tmp_path / "e")
    assert encoder.architecture == OTHERS[name] != CAFFENET
    assert load_encoder(AlexNet(encoder.architecture, conv1_pad=5), encoder).loaded == 10
    with pytest.raises(Failed, match=r"e: weights of a AlexNet with .* for a trunk that is a CaffeNet"):
        load_encoder(AlexNet(), encoder)


@pytest.mark.parametrize("said", [
    "5", "[]", "{}", '{"widths": [96, 256, 384, 384, 256], "groups": [1, 2, 1, 2, 2], "norm": "batch", "slope": 0}',
    '{"widths": [96, 256, 384, 384], "groups": [1, 2, 1, 2, 2], "norm": "lrn", "slope": 0}',
    '{"widths": [96, 256, 384, 384, 256], "groups": [1, 0, 1, 2, 2], "norm": "lrn", "slope": 0}',
    '{"widths": [96, 256, 384, 384, 256], "groups": [1, 2, 1, 2, 2], "norm": "lrn", "slope": NaN}',
])  # fmt: skip
def test_an_odd_architecture_is_refused(said: str, tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, metadata={"provenance": json.dumps(PROVENANCE | {"architecture": json.loads(said)})})
    assert "no architecture of ours" in refusal(path)


def test_a_caffenet_s_file_knows_nothing_of_padding(trunk: AlexNet, tmp_path: Path) -> None:
    """Byte for byte what it was before there was a pad_value; and padded with zeros, to the bit."""
    save_encoder(tmp_path / "e", trunk, PROVENANCE)
    assert b"pad_value" not in (tmp_path / "e").read_bytes()
    x = torch.randn(1, 3, 64, 64)
    for pad in (0, 5):
        plain = nn.Conv2d(3, 96, 11, stride=4, padding=pad).to(memory_format=torch.channels_last)
        filled = AlexNet(conv1_pad=pad).conv1
        plain.load_state_dict(filled.state_dict())
        assert torch.equal(plain(x), filled(x))


def test_sizes_of_the_segmentation_trunk() -> None:
    """Protocols 6.1: side 500 → 173, 86, 43, 43, 21."""
    trunk, seen = AlexNet(conv1_pad=100), []
    for conv in trunk.convs():
        conv.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].shape[-1], output.shape[-1])))
    with torch.no_grad():
        out = trunk(torch.zeros(1, 3, 500, 500))
    assert seen == [(500, 173), (86, 86), (43, 43), (43, 43), (43, 43)]
    assert out.shape[-2:] == (21, 21)


def test_detection_features_have_stride_16() -> None:
    trunk = AlexNet(conv1_pad=5, pool1_pad=1, pool2_pad=1)
    with torch.no_grad():
        sides = [trunk.features(torch.zeros(1, 3, 16 * k, 64)).shape[2] for k in range(5, 12)]
    assert sides == list(range(sides[0], sides[0] + 7))


# ---- its file ----


@pytest.fixture
def tensors(trunk: AlexNet) -> Tensors:
    return {name: tensor.clone().contiguous() for name, tensor in trunk.state_dict().items()}


def test_roundtrip_is_bit_equal(trunk: AlexNet, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "encoder.safetensors"
    save_encoder(path, trunk, PROVENANCE)
    encoder = read_encoder(path)
    assert encoder.provenance == PROVENANCE
    assert encoder.path == path
    assert list(load_file(path)) == sorted(NAMES)
    torch.manual_seed(99)
    model = nn.Sequential(nn.Identity(), AlexNet(conv1_pad=100))  # wherever it sits
    receipt = load_encoder(model[1], encoder)  # type: ignore[arg-type]
    assert (receipt.loaded, receipt.expected) == (10, 10)
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(model.state_dict()[f"1.{name}"], tensor)
    assert [p.name for p in path.parent.iterdir()] == ["encoder.safetensors"]


def test_the_same_encoder_is_the_same_bytes(trunk: AlexNet, tmp_path: Path) -> None:
    save_encoder(tmp_path / "a", trunk, {**PROVENANCE, "versions": {"b": "2", "a": "1"}})
    save_encoder(tmp_path / "b", trunk, {"versions": {"a": "1", "b": "2"}, **dict(reversed(PROVENANCE.items()))})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_encoder(tmp_path / "a").sha256 == read_encoder(tmp_path / "b").sha256
    save_encoder(tmp_path / "b", trunk, {**PROVENANCE, "seed": 4})
    assert read_encoder(tmp_path / "a").sha256 != read_encoder(tmp_path / "b").sha256


def test_half_a_loading_is_an_error(trunk: AlexNet, tmp_path: Path) -> None:
    save_encoder(tmp_path / "e", trunk, PROVENANCE)

    class Forgetful(AlexNet):
        def load_state_dict(self, state: Tensors, **_: object) -> None:  # type: ignore[override]
            nn.Module.load_state_dict(self, {k: v for k, v in state.items() if k != "conv4.weight"}, strict=False)

    with pytest.raises(Failed, match=r"e: only 9 of 10 tensors were loaded"):
        load_encoder(Forgetful(), read_encoder(tmp_path / "e"))


def rename(tensors: Tensors) -> Tensors:
    return {name.replace("conv", "features."): tensor for name, tensor in tensors.items()}


BAD: dict[str, tuple[Callable[[Tensors], Tensors], list[str]]] = {
    "missing": (lambda t: {k: v for k, v in t.items() if k not in ("conv2.bias", "conv5.weight")},
                ["missing conv2.bias", "missing conv5.weight"]),
    "extra": (lambda t: t | {"fc6.weight": torch.zeros(2)}, ["unexpected 'fc6.weight'"]),
    "extra with an odd name": (lambda t: t | {"a\nb": torch.zeros(2)}, [r"unexpected 'a\nb'"]),
    "another's names": (rename, [f"missing {name}" for name in NAMES] + ["unexpected 'features.1.weight'"]),
    "mis-shaped": (lambda t: t | {"conv2.weight": torch.zeros(256, 96, 5, 5)},
                   ["conv2.weight is (256, 96, 5, 5), not (256, 48, 5, 5)"]),
    "a scalar": (lambda t: t | {"conv1.bias": torch.tensor(1.0)}, ["conv1.bias is (), not (96,)"]),
    "float64": (lambda t: t | {"conv1.bias": t["conv1.bias"].double()}, ["conv1.bias is torch.float64, not float32"]),
    "float16": (lambda t: {k: v.half() for k, v in t.items()}, [f"{n} is torch.float16, not float32" for n in NAMES]),
    "NaN": (lambda t: t | {"conv3.bias": torch.full((384,), float("nan"))}, ["conv3.bias holds NaN"]),
    "infinite": (lambda t: t | {"conv3.bias": torch.full((384,), float("-inf"))}, ["conv3.bias holds NaN or inf"]),
    "two things": (lambda t: {k: v for k, v in t.items() if k != "conv1.bias"} | {"mean": torch.zeros(3)},
                   ["missing conv1.bias", "unexpected 'mean'"]),
    "empty": (lambda _: {}, [f"missing {name}" for name in NAMES]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_tensors_are_named(kind: str, tensors: Tensors, tmp_path: Path) -> None:
    change, expected = BAD[kind]
    path = tmp_path / "bad.safetensors"
    save_file(change(tensors), path, metadata={"provenance": json.dumps(PROVENANCE)})
    message = refusal(path)
    assert [part for part in expected if part not in message] == []
    sound = [n for n in NAMES if n not in " ".join(expected)]
    assert [name for name in sound if name in message] == []


def refusal(path: Path) -> str:
    """The one line with which an encoder file is refused."""
    with pytest.raises(Failed) as caught:
        read_encoder(path)
    message = str(caught.value)
    assert type(caught.value) is Failed
    assert caught.value.exit_code == 1
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("provenance", [
    None, "", "{", "[]", "5", "{}", '{"method": "x"}', '{"method": 1, "variant": "", "supervision": "-"}',
    '{"method": "x", "variant": null, "supervision": "-"}', "[" * 100_000,
])  # fmt: skip
def test_no_provenance(provenance: str | None, tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, metadata=None if provenance is None else {"provenance": provenance})
    assert "no provenance" in refusal(path)


DAMAGED: dict[str, Any] = {
    "provenance is damaged (method is no Unicode text)": {"method": "a\0b"},
    "more than 200 characters": {"variant": "v" * 300},
    "iterations is 'many', not a whole number": {"iterations": "many"},
    "iterations is 1.5, not": {"iterations": 1.5},
    "iterations is True, not": {"iterations": True},
    "batch is -1, not": {"batch": -1},
    "seed is [3], not a whole number": {"seed": [3]},
    "rate is '1e-3', not a number": {"rate": "1e-3"},
    "seconds is out of range": {"seconds": float("inf")},
    "rate is out of range": {"rate": float("nan")},
    "images_seen is out of range": {"images_seen": 10**400},
    "mask is 5, not a text": {"mask": 5},
    "calibrate is 'yes', not true or false": {"calibrate": "yes"},
    "held_out is {'top1': 'good'}, not a table of numbers": {"held_out": {"top1": "good"}},
    "dataset is ['a'], not a table": {"dataset": ["a"]},
    "dataset is {'name': 'a', 'images': '5'}, not a table": {"dataset": {"name": "a", "images": "5"}},
    "rescaled is {'dataset': 3}": {"rescaled": {"dataset": 3}},
    "solver is 'sgd', not a table": {"solver": "sgd"},
    "layers is {'conv1': 5}": {"layers": {"conv1": 5}},
    "hardware is no Unicode text": {"hardware": "\ud800"},
    "label is no Unicode text": {"label": "a\x1b[2Jb"},
    "versions.torch is no Unicode text": {"versions": {"torch": "\0"}},
}


@pytest.mark.parametrize("said", DAMAGED)
def test_a_damaged_provenance_names_the_field(said: str, tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, metadata={"provenance": json.dumps(PROVENANCE | DAMAGED[said])})
    message = refusal(path)
    assert said in message
    assert len(message) < 500


NEST = '{"method": "x", "variant": "", "supervision": "-", "dataset": '


@pytest.mark.parametrize(("text", "said"), [
    (NEST + '{"a":' * 900 + "1" + "}" * 900 + "}", "nested deeper than 12"),
    (NEST + "[" * 20 + "]" * 20 + "}", "nested deeper than 12"),
    (NEST + '"' + "a" * 2**21 + '"}', "a provenance of 2,097,"),
    (NEST + "1" * 5000 + "}", "no provenance"),
    (NEST + "1e999}", "dataset is out of range"),
])  # fmt: skip
def test_a_provenance_that_is_too_deep_or_too_long(text: str, said: str, tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, metadata={"provenance": text})
    assert said in refusal(path)


ARCHITECTURES: dict[str, Any] = {
    "not an architecture's fields": "CaffeNet",
    "not an architecture's fields,": {"widths": [1] * 5},
    "widths no list of 5": {"widths": [96, 256]},
    "widths no list": {"widths": 7},
    "widths no whole numbers from 1 to 4096": {"widths": [10**12, 256, 384, 384, 256]},
    "widths no whole numbers": {"widths": ["96", 256, 384, 384, 256]},
    "groups no whole numbers": {"groups": [1, 0, 1, 1, 1]},
    "in groups": {"groups": [1, 7, 1, 2, 2]},
    "slope or pad_value": {"slope": "0"},
    "slope or pad_value no number": {"pad_value": [0, 0, [0]]},
    "slope 1.0 not from 0 to 1": {"slope": 1},
    "norm no kind of ours": {"norm": ["lrn"]},
}


@pytest.mark.parametrize("said", ARCHITECTURES)
def test_a_damaged_architecture_is_told(said: str, tensors: Tensors, tmp_path: Path) -> None:
    path, changed = tmp_path / "bad.safetensors", ARCHITECTURES[said]
    own = Architecture().record() | changed if isinstance(changed, dict) and len(changed) == 1 else changed
    own = changed if said.endswith("fields,") else own
    save_file(tensors, path, metadata={"provenance": json.dumps(PROVENANCE | {"architecture": own})})
    assert said in refusal(path)


@pytest.mark.parametrize("keep", [0, 5, 8, 300, 5_000, 9_000_000, -1])
def test_a_truncated_file(keep: int, trunk: AlexNet, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, trunk, PROVENANCE)
    path.write_bytes(path.read_bytes()[:keep])
    assert "not a readable safetensors file" in refusal(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.safetensors", tmp_path):  # a folder is no encoder either
        with pytest.raises(Missing, match="no such encoder file") as caught:
            read_encoder(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 3


class Payload:
    """A pickle that makes a folder when it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "torch before 1.6"])
def test_a_pickle_is_not_executed(kind: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "encoder.safetensors", tmp_path / "executed"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(trace)))
    else:
        torch.save(Payload(trace), path, _use_new_zipfile_serialization=kind == "torch")
    assert "pickles are never opened" in refusal(path)
    assert not trace.exists()
    path = path.rename(tmp_path / "pickle")
    pickle.loads(path.read_bytes()) if kind == "pickle" else torch.load(path, weights_only=False)
    assert trace.exists()  # the payload does work


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_not_written(value: float, tmp_path: Path) -> None:
    trunk = AlexNet()
    with torch.no_grad():
        trunk.conv4.weight[0, 0, 0, 0] = value
    with pytest.raises(Failed, match=r"encoder.safetensors: not written: conv4.weight holds NaN or infinite"):
        save_encoder(tmp_path / "encoder.safetensors", trunk, PROVENANCE)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path, trunk: AlexNet) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, trunk, PROVENANCE)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(Failed) as caught:
            save_encoder(path, AlexNet(), PROVENANCE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert str(caught.value).startswith(f"{path}: disk full: ")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

"""`.caffemodel` files, written here byte by byte, against the network they came from, in BGR and plain torch."""

import math
import random
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pretrain.alexnet import MEAN_RGB, AlexNet, Architecture, load_encoder, read_encoder
from pretrain.files import Failed, Missing
from pretrain.foreign import Reading, import_weights
from pretrain.foreign.caffe import read_layers

WIDTHS = (8, 16, 12, 12, 8)


# The wire format, by hand (protobuf.dev/programming-guides/encoding), so that the reader has an independent writer.
def varint(number: int) -> bytes:
    number &= 2**64 - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def whole(tag: int, number: int) -> bytes:
    return varint(tag << 3) + varint(number)


def single(tag: int, number: float) -> bytes:
    return varint(tag << 3 | 5) + struct.pack("<f", number)


def chunk(tag: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return varint(tag << 3 | 2) + varint(len(content)) + content


def blob(
    tensor: torch.Tensor, *, old: bool = False, double: bool = False, shape: tuple[int, ...] | None = None
) -> bytes:
    shape = tuple(tensor.shape) if shape is None else shape
    if old:
        four = (1,) * (4 - len(shape)) + shape
        said = b"".join(whole(tag, size) for tag, size in enumerate(four, start=1))
    else:
        said = chunk(7, chunk(1, b"".join(map(varint, shape))))
    kind, tag = ("<d", 8) if double else ("<f", 5)
    half = tensor.numel() // 2  # a packed field may come in pieces
    numbers = [struct.pack(kind, x) for x in tensor.flatten().tolist()]
    return chunk(tag, b"".join(numbers[:half])) + said + chunk(tag, b"".join(numbers[half:]))


@dataclass(frozen=True)
class Writer:
    """Field numbers of one generation of layers."""

    layer: int = 100
    name: int = 1
    kind: int = 2
    bottom: int = 3
    top: int = 4
    blobs: int = 7
    convolution: int = 106
    relu: int = 123
    lrn: int = 118
    transform: int = 100
    types: dict[str, int] = field(default_factory=dict)

    def __call__(self, name: str, kind: str, bottom: str | None, top: str, *blobs: bytes, extra: bytes = b"") -> bytes:
        said = chunk(self.name, name)
        said += whole(self.kind, self.types[kind]) if self.types else chunk(self.kind, kind)
        said += chunk(self.bottom, bottom) if bottom else b""
        return chunk(self.layer, said + chunk(self.top, top) + b"".join(chunk(self.blobs, b) for b in blobs) + extra)


V2 = Writer()
V1 = Writer(layer=2, name=4, kind=5, bottom=2, top=3, blobs=6, convolution=10, relu=30, lrn=18, transform=36,
            types={"Convolution": 4, "Data": 5, "InnerProduct": 14, "LRN": 15, "Pooling": 17, "ReLU": 18})  # fmt: skip


@dataclass
class Net:
    """A Caffe network of our choice, its file and its forward pass."""

    architecture: Architecture
    tensors: dict[str, torch.Tensor]
    norms: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)  # BatchNorm and Scale of some convs
    mean_bgr: tuple[float, ...] = MEAN_RGB[::-1]
    scale: float = 1.0

    def file(self, write: Writer = V2, *, old: bool = False, double: bool = False, declare: bool = False) -> bytes:
        out = chunk(1, "CaffeNet") + whole(5, 1)  # a name, and a field the reader does not declare
        transform = single(1, self.scale) + b"".join(single(5, m) for m in self.mean_bgr) if declare else b""
        out += write("data", "Data", None, "data", extra=chunk(write.transform, transform) if declare else b"")
        bottom = "data"
        for k, groups in enumerate(self.architecture.groups, start=1):
            pair = [blob(self.tensors[f"conv{k}.{p}"], old=old, double=double) for p in ("weight", "bias")]
            said = chunk(write.convolution, whole(5, groups)) if groups > 1 else b""
            out += write(f"conv{k}", "Convolution", bottom, f"conv{k}", *pair, extra=said)
            bottom = f"conv{k}"
            if k in self.norms:
                n = self.norms[k]
                out += write(f"bn{k}", "BatchNorm", bottom, bottom, *(blob(n[p]) for p in ("mean", "var", "factor")),
                             extra=chunk(139, single(3, 1e-3)))  # fmt: skip
                out += write(f"scale{k}", "Scale", bottom, bottom, *(blob(n[p]) for p in ("gamma", "beta")))
            slope = self.architecture.slope
            out += write(
                f"relu{k}", "ReLU", bottom, bottom, extra=chunk(write.relu, single(1, slope)) if slope else b""
            )
            rest = {"lrn": ("pool", "norm"), "lrn-before-pool": ("norm", "pool"), "none": ("pool",)}
            for part in rest[self.architecture.norm] if k <= 2 else ():
                kind = {"pool": "Pooling", "norm": "LRN"}[part]
                lrn = chunk(write.lrn, whole(1, 5) + single(2, 1e-4) + single(3, 0.75)) if part == "norm" else b""
                out += write(f"{part}{k}", kind, bottom, f"{part}{k}", extra=lrn)
                bottom = f"{part}{k}"
        out += write("pool5", "Pooling", bottom, "pool5")
        return out + write("fc6", "InnerProduct", "pool5", "fc6", blob(torch.ones(3, 4)), blob(torch.ones(3)))

    def relu5(self, rgb: torch.Tensor) -> torch.Tensor:
        """relu5 of 0–255 RGB images, as Caffe computes it: BGR, minus the mean, times the scale."""
        x = (rgb.flip(1) - torch.tensor(self.mean_bgr).view(1, 3, 1, 1)) * self.scale
        for k, groups in enumerate(self.architecture.groups, start=1):
            weight, bias = self.tensors[f"conv{k}.weight"], self.tensors[f"conv{k}.bias"]
            x = F.conv2d(x, weight, bias, stride=4 if k == 1 else 1, padding=(0, 2, 1, 1, 1)[k - 1], groups=groups)
            if k in self.norms:
                n = self.norms[k]
                mean, var = n["mean"] / n["factor"], n["var"] / n["factor"]
                x = F.batch_norm(x, mean, var, n["gamma"], n["beta"], eps=1e-3)
            x = F.leaky_relu(x, self.architecture.slope)
            if k <= 2:
                before, behind = (self.architecture.norm == place for place in ("lrn-before-pool", "lrn"))
                x = F.local_response_norm(x, 5, 1e-4, 0.75, 1.0) if before else x
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
                x = F.local_response_norm(x, 5, 1e-4, 0.75, 1.0) if behind else x
        return x


def net(architecture: Architecture | None = None, **rest: Any) -> Net:
    architecture = architecture or Architecture(widths=WIDTHS)
    torch.manual_seed(1)
    shapes = architecture.shapes()
    tensors = {
        n: torch.randn(s) / math.sqrt(math.prod(s[1:]) or 1) * (0.3 if "bias" in n else 1) for n, s in shapes.items()
    }
    return Net(architecture, tensors, **rest)


def batch_norms() -> dict[int, dict[str, torch.Tensor]]:
    torch.manual_seed(2)
    return {
        k: {"mean": 50 * torch.randn(w), "var": 90 * torch.rand(w) + 9, "factor": torch.tensor([30.0]),
            "gamma": 1 + torch.rand(w), "beta": torch.randn(w)}
        for k, w in ((1, 8), (3, 12), (5, 8))
    }  # fmt: skip


def images() -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, 227, 227), generator=torch.Generator().manual_seed(3)).float()


def imported(path: Path, content: bytes, **reading: Any) -> AlexNet:
    path.write_bytes(content)
    out = path.with_suffix(".safetensors")
    encoder = read_encoder(import_weights(path, out=out, method="context", reading=Reading(**reading)))
    trunk = AlexNet(encoder.architecture)
    assert load_encoder(trunk, encoder).loaded == 10
    return trunk


def check(trunk: AlexNet, source: Net) -> None:
    """The imported trunk does in our pixels what the source did in its own."""
    blue, green, red = (mean - ours for mean, ours in zip(source.mean_bgr, MEAN_RGB[::-1], strict=True))
    assert trunk.architecture == replace(source.architecture, pad_value=(red, green, blue))
    with torch.no_grad():
        ours, theirs = trunk.features(images() - torch.tensor(MEAN_RGB).view(1, 3, 1, 1)), source.relu5(images())
    assert theirs.abs().max() > 1e-2
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("write", [V1, V2], ids=["V1", "V2"])
@pytest.mark.parametrize("old", [False, True], ids=["shape", "num-channels"])
def test_both_generations_and_both_ways_to_shape_a_blob(tmp_path, write, old):
    check(imported(tmp_path / "a.caffemodel", net().file(write, old=old)), net())


def test_only_the_channels_are_turned_round(tmp_path):
    """With Caffe's mean nothing else is touched: bit for bit."""
    trunk, source = imported(tmp_path / "a.caffemodel", net().file()), net()
    state = trunk.state_dict()
    assert torch.equal(state["conv1.weight"], source.tensors["conv1.weight"].flip(1))
    assert all(torch.equal(state[name], tensor) for name, tensor in source.tensors.items() if name != "conv1.weight")


@pytest.mark.parametrize(
    "changed",
    [
        {"groups": (1, 1, 1, 1, 1)},
        {"norm": "lrn-before-pool"},
        {"norm": "none", "slope": 0.2},
        {"groups": (1, 4, 1, 2, 1)},
    ],
    ids=str,
)
def test_groups_norm_and_slope_are_the_file_s(tmp_path, changed):
    source = net(replace(Architecture(widths=WIDTHS), **changed))
    check(imported(tmp_path / "a.caffemodel", source.file()), source)


def test_an_ungrouped_trunk_says_how_it_is_used(tmp_path, capsys):
    imported(tmp_path / "a.caffemodel", net(Architecture(widths=WIDTHS, groups=(1,) * 5)).file())
    assert "conv2, conv4, conv5 ungrouped: the trunk is stored so" in capsys.readouterr().err


def test_double_data(tmp_path):
    check(imported(tmp_path / "a.caffemodel", net().file(double=True)), net())


def test_batch_norm_and_scale_are_folded(tmp_path, capsys):
    source = net(norms=batch_norms())
    check(imported(tmp_path / "a.caffemodel", source.file()), source)
    said = capsys.readouterr().err
    assert "folded into conv3" in said
    assert "folded into conv2" not in said


def test_the_declared_pixels_are_taken_in(tmp_path):
    source = net(mean_bgr=(127.5, 120.0, 90.0), scale=1 / 127.5)
    source.tensors["conv1.weight"] *= 127.5
    check(imported(tmp_path / "a.caffemodel", source.file(declare=True)), source)
    check(imported(tmp_path / "b.caffemodel", source.file(V1, declare=True)), source)
    # the same, said by hand
    given = {"mean": (90.0, 120.0, 127.5), "std": (127.5,) * 3}
    check(imported(tmp_path / "c.caffemodel", source.file(), **given), source)


def test_an_order_given_overrules(tmp_path):
    trunk = imported(tmp_path / "a.caffemodel", net().file(), order="rgb")
    assert torch.equal(trunk.state_dict()["conv1.weight"], net().tensors["conv1.weight"])


def test_a_norm_given_overrules(tmp_path):
    trunk = imported(tmp_path / "a.caffemodel", net().file(), norm="none")
    assert trunk.architecture.norm == "none"
    said = read_encoder(tmp_path / "a.safetensors").provenance["compared"]
    assert said == "not compared: LRN stands as lrn in the file, and none here, as given"


def test_a_split_and_a_second_branch_do_not_confuse(tmp_path):
    """Caffe stores its Split layers; a branch (a probe, say) hangs beside conv1 with its own ReLU and pooling."""
    source = net()
    content = source.file()
    layers = V2("split", "Split", "norm1", "norm1_split_0") + V2("probe", "Pooling", "norm1_split_0", "probe")
    layers += V2("probe_relu", "ReLU", "probe", "probe", extra=chunk(123, single(1, 0.5)))
    cut = content.index(chunk(1, "conv2")) - 3  # behind norm1, before conv2's tag and length
    while not content[cut:].startswith(varint(100 << 3 | 2)):
        cut -= 1
    check(imported(tmp_path / "a.caffemodel", content[:cut] + layers + content[cut:]), source)


def test_another_stride_is_said(tmp_path, capsys):
    """Jigsaw's conv1. The file's conv2 has a setting, its groups; here it is given a stride instead."""
    grouped, strided = chunk(106, whole(5, 2)), chunk(106, whole(6, 2))
    source = net(Architecture(widths=WIDTHS, groups=(1, 2, 1, 1, 1)))
    ungrouped = net(Architecture(widths=WIDTHS, groups=(1,) * 5))
    source.tensors = ungrouped.tensors
    content = source.file()
    assert content.count(grouped) == 1
    imported(tmp_path / "a.caffemodel", content.replace(grouped, strided))
    assert "conv2 has stride 2 in the file, and 1 here" in capsys.readouterr().err


def test_the_table_names_every_blob(tmp_path, capsys):
    imported(tmp_path / "a.caffemodel", net().file())
    said = capsys.readouterr().err.splitlines()
    lines = {line.split()[0]: line for line in said if line.strip()}
    assert lines["conv1/0"].split()[1:] == ["8×3×11×11", "→", "conv1.weight"]
    assert lines["conv5/1"].split()[1:] == ["8", "→", "conv5.bias"]
    assert lines["fc6/0"].split()[1:] == ["3×4", "ignored"]


def fails(path: Path, content: bytes, **reading: Any) -> str:
    """The one line that the import of `content` fails with."""
    path.write_bytes(content)
    with pytest.raises(Failed) as caught:
        import_weights(path, out=path.with_suffix(".safetensors"), method="context", reading=Reading(**reading))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert not path.with_suffix(".safetensors").exists()
    return message


def outcome(path: Path) -> str:
    """What an import ends in: "imported", or its one line. Anything but Failed goes through."""
    try:
        import_weights(path, out=path.with_suffix(".safetensors"), method="context")
    except Failed as error:
        return str(error)
    return "imported"


def test_a_file_cut_anywhere_fails_or_holds_the_whole_trunk(tmp_path):
    small, path = Architecture(widths=(2, 2, 2, 2, 2)), tmp_path / "a.caffemodel"
    content = net(small).file()
    end = content.index(b"relu5") - 10  # from here on all of conv1–conv5 is there
    for size in [*range(0, len(content), 211), *range(end - 2, end + 10)]:
        path.write_bytes(content[:size])
        said = outcome(path)
        assert (said == "imported" and size >= end) or (said.startswith(str(path)) and "\n" not in said)
    assert read_encoder(path.with_suffix(".safetensors")).architecture == small


def test_random_bytes_fail(tmp_path):
    chance = random.Random(0)
    for length in (1, 2, 3, 10, 100, 10_000):
        for _ in range(20):
            fails(tmp_path / "a.caffemodel", chance.randbytes(length))


def test_changed_bytes_never_end_in_a_traceback(tmp_path):
    content = net(Architecture(widths=(2, 2, 2, 2, 2))).file()
    path, chance = tmp_path / "a.caffemodel", random.Random(1)
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        said = outcome(path)
        assert said == "imported" or (said.startswith(str(path)) and "\n" not in said)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04cos\nsystem\n(S'true'\ntR.", b"\x89HDF\r\n\x1a\n" + b"\0" * 64], ids=repr
)
def test_foreign_files_fail(tmp_path, content):
    assert "bench fetch" in fails(tmp_path / "a.caffemodel", content)


def test_no_file(tmp_path):
    with pytest.raises(Missing, match="no such file"):
        read_layers(tmp_path / "none.caffemodel")


@pytest.mark.parametrize(
    "shape", [(2**40, 3, 11, 11), (2**62, 2**62, 4, 4), (-1, 3, 11, 11), (1,) * 60, (8, 3, 11, 12)], ids=str
)
def test_a_shape_that_the_numbers_do_not_fill_fails(tmp_path, shape):
    conv1 = V2("conv1", "Convolution", None, "conv1", blob(torch.zeros(8 * 3 * 121), shape=shape))
    assert "conv1/0: 2904 numbers" in fails(tmp_path / "a.caffemodel", conv1)


def test_nan_fails_and_names_the_tensor(tmp_path):
    source = net()
    source.tensors["conv3.bias"][5] = math.nan
    assert "conv3.bias holds NaN" in fails(tmp_path / "a.caffemodel", source.file())


def without(content: bytes, name: str) -> bytes:
    """The file with a layer renamed, so that it is not found."""
    return content.replace(chunk(1, name), chunk(1, name[::-1]))


def test_a_missing_layer_is_named(tmp_path):
    assert "missing conv4.weight" in fails(tmp_path / "a.caffemodel", without(net().file(), "conv4"))


def test_sobel_input_is_named(tmp_path, capsys):
    source = net()
    source.tensors["conv1.weight"] = torch.zeros(8, 2, 11, 11)
    said = fails(tmp_path / "a.caffemodel", source.file())
    assert "Sobel input is not supported" in said
    assert "mis-shaped: conv1.weight is to be (N, 3, 11, 11)" in capsys.readouterr().err


def test_a_wrong_kernel_and_a_wrong_bias_are_named(tmp_path):
    source = net()
    source.tensors["conv2.weight"], source.tensors["conv5.bias"] = torch.zeros(16, 4, 3, 3), torch.zeros(9)
    said = fails(tmp_path / "a.caffemodel", source.file())
    assert "conv2/0 is (16, 4, 3, 3), not (N, 4, 5, 5)" in said
    assert "conv5/1 is (9,), not (8,)" in said


@pytest.mark.parametrize("kind", ["Convolution", "Scale"])
def test_weights_before_conv1_fail(tmp_path, kind):
    """DeepCluster's grey and Sobel layers, or a colour conversion."""
    content = net().file().replace(chunk(3, "data"), chunk(3, "sobl"))
    content = V2("sobel", kind, "data", "sobl", blob(torch.ones(3, 3, 1, 1)), blob(torch.ones(3))) + content
    assert "behind 'sobel'" in fails(tmp_path / "a.caffemodel", content)


def test_batch_norm_behind_the_relu_fails(tmp_path):
    content, n = net().file(), batch_norms()[1]
    late = V2("late", "BatchNorm", "conv1", "conv1", *(blob(n[p]) for p in ("mean", "var", "factor")))
    cut = content.index(varint(100 << 3 | 2), content.index(b"relu1"))
    assert "'late' (BatchNorm) stands behind the ReLU" in fails(
        tmp_path / "a.caffemodel", content[:cut] + late + content[cut:]
    )


def test_another_lrn_and_another_layer_fail(tmp_path):
    lrn = chunk(118, whole(1, 5) + single(2, 1e-4) + single(3, 0.75))
    content = net().file()
    assert lrn in content
    other = content.replace(lrn, chunk(118, whole(1, 5) + single(2, 2e-4) + single(3, 0.75)))
    assert "--norm" in fails(tmp_path / "a.caffemodel", other)
    path = tmp_path / "b.caffemodel"
    assert imported(path, other, norm="lrn").architecture.norm == "lrn"
    assert "'relu3' (TanH)" in fails(tmp_path / "c.caffemodel", _retyped(content, "relu3", "TanH"))


def _retyped(content: bytes, name: str, kind: str) -> bytes:
    return content.replace(chunk(1, name) + chunk(2, "ReLU"), chunk(1, name) + chunk(2, kind))


def test_kernels_by_order_when_the_names_are_others(tmp_path):
    source, content = net(), net().file()
    for k in range(1, 6):
        content = content.replace(f"conv{k}".encode(), f"abcd{k}".encode())
    check(imported(tmp_path / "a.caffemodel", content), source)


@dataclass(frozen=True)
class Changed(Writer):
    """Writes some layers otherwise: name → another name and kind."""

    change: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __call__(self, name: str, kind: str, *rest: Any, **extra: Any) -> bytes:
        name, kind = self.change.get(name, (name, kind))
        return super().__call__(name, kind, *rest, **extra)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"relu3": ("relu3", "Dropout")}, "no ReLU behind conv3"),
        ({"relu5": ("relu5", "Dropout")}, "no ReLU behind conv5"),
        ({"relu2": ("prelu2", "PReLU")}, "'prelu2' (PReLU) stands behind conv2"),
        ({"relu4": ("bias4", "Bias")}, "'bias4' (Bias) stands behind conv4"),
        ({"relu1": ("elu1", "ELU")}, "'elu1' (ELU) stands behind conv1"),
        ({"conv3": ("conv3", "Deconvolution")}, "'conv3' is a layer of type Deconvolution"),
        ({"fc6": ("conv4", "Convolution")}, "two layers with weights are called 'conv4'"),
        ({"bn3": ("bn3", "BN")}, "'bn3' (BN) stands behind conv3"),
        ({"bn3": ("in3", "InstanceNorm")}, "'in3' (InstanceNorm) stands behind conv3"),
    ],
    ids=str,
)
def test_what_a_trunk_does_not_have_is_refused_by_name(tmp_path, change, said):
    assert said in fails(tmp_path / "a.caffemodel", net(norms=batch_norms()).file(Changed(change=change)))


def test_features_are_compared_with_the_source_s_where_the_file_allows_it(tmp_path, capsys):
    path = tmp_path / "a.caffemodel"
    imported(path, net(norms=batch_norms()).file(declare=True))
    assert "that of the source's own arithmetic, nothing folded: at most" in capsys.readouterr().err
    said = read_encoder(path.with_suffix(".safetensors")).provenance["compared"]
    assert said == "relu5 of 2 random images: within 0.0001 of the source's own arithmetic"
    strided = net(Architecture(widths=WIDTHS, groups=(1, 2, 1, 1, 1)))
    strided.tensors = net(Architecture(widths=WIDTHS, groups=(1,) * 5)).tensors
    imported(path, strided.file().replace(chunk(106, whole(5, 2)), chunk(106, whole(6, 2))))
    assert "features not compared with the source's own arithmetic: conv2 has stride 2" in capsys.readouterr().err
    said = read_encoder(path.with_suffix(".safetensors")).provenance["compared"]
    assert said == "not compared: conv2 has stride 2 in the file, and 1 here"

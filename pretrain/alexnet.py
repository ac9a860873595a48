"""CaffeNet conv1…pool5, the encoder that every method learns and every task starts from.

Paper 5.2 and B; protocols 1.1. Input: RGB, 0–255, minus MEAN_RGB. The state dict is exactly ten
tensors, conv1.weight … conv5.bias, in this package, in every task and in every encoder file. An
imported encoder may be another member of the family (Architecture); its file says which.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from pretrain.contents import head_of, mistaken
from pretrain.encoder_metadata import read_provenance
from pretrain.files import Failed, Missing, atomic, sha256
from pretrain.padding import FilledConv2d
from pretrain.precision import widened

# protocols 2.2; Caffe's B,G,R = 104,117,123 turned round. Released code: Fast R-CNN and FCN subtract
# the same mean with decimals (102.98, 115.95, 122.77 and 104.007, 116.669, 122.679); we: one mean everywhere.
MEAN_RGB = (123.0, 117.0, 104.0)
CROP = 227
KERNELS = (11, 5, 3, 3, 3)


@dataclass(frozen=True)
class Architecture:
    """What differs between the AlexNets of the literature (protocols 1.3); the default is CaffeNet (1.1).

    `norm` says where LRN stands after conv1 and conv2: behind the pooling (CaffeNet), before it (the
    original AlexNet), or nowhere. `slope` is that of a leaky ReLU. `pad_value` is what a task's padding
    holds around the image, R, G, B minus MEAN_RGB: the encoder's own mean, for that was its zero. Kernels,
    strides and the task's paddings are the same for all.
    """

    widths: tuple[int, ...] = (96, 256, 384, 384, 256)
    groups: tuple[int, ...] = (1, 2, 1, 2, 2)
    norm: Literal["lrn", "lrn-before-pool", "none"] = "lrn"
    slope: float = 0.0
    pad_value: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def record(self) -> dict[str, Any]:
        """What files hold of it: its fields; a pad_value of zeros, which older files do not know, is left out."""
        return {key: value for key, value in asdict(self).items() if key != "pad_value" or any(self.pad_value)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The ten names and shapes of an encoder's state dict."""
        shapes: dict[str, tuple[int, ...]] = {}
        layers = zip(pairwise((3, *self.widths)), self.groups, KERNELS, strict=True)
        for k, ((inputs, outputs), groups, side) in enumerate(layers, start=1):
            shapes[f"conv{k}.weight"] = (outputs, inputs // groups, side, side)
            shapes[f"conv{k}.bias"] = (outputs,)
        return shapes

    def __str__(self) -> str:
        """What differs from CaffeNet, or "CaffeNet"."""
        own, theirs = asdict(self), asdict(CAFFENET)
        differing = [f"{key} {own[key]}" for key in own if own[key] != theirs[key]]
        return f"AlexNet with {', '.join(differing)}" if differing else "CaffeNet"


CAFFENET = Architecture()


class LocalResponseNorm(torch.autograd.Function):
    """Caffe's across-channel LRN, size 5, alpha 1e-4, beta 0.75, k 1 (protocols 1.1).

    y = x · d^-3/4 with d = 1 + (alpha/5) · Σ x² over 5 channels. The windowed sums are slices added
    up, which makes a training step of the trunk about twice as fast as torch's LocalResponseNorm.
    """

    SIZE, ALPHA, BETA = 5, 1e-4, 0.75

    @staticmethod
    def window_sum(x: Tensor) -> Tensor:
        """N×C×H×W → the same shape: the sum over the 5 channels around each channel."""
        size, channels = LocalResponseNorm.SIZE, x.shape[1]
        padded = F.pad(x, (0, 0, 0, 0, size // 2, size // 2))
        total = padded[:, :channels] + padded[:, 1 : 1 + channels]
        for offset in range(2, size):
            total += padded[:, offset : offset + channels]
        return total

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        given, x = x.dtype, widened(x)  # of bfloat16's eight bits, 1 + a small sum would keep nothing
        scale = LocalResponseNorm.ALPHA / LocalResponseNorm.SIZE
        divisor = LocalResponseNorm.window_sum(x * x).mul_(scale).add_(1.0)
        root = divisor.rsqrt()
        y = x * root * root.sqrt()
        ctx.save_for_backward(x, divisor, y)
        return y.to(given)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, divisor, y = ctx.saved_tensors
        given, grad = grad.dtype, widened(grad)
        root = divisor.rsqrt()
        scale = 2 * LocalResponseNorm.BETA * LocalResponseNorm.ALPHA / LocalResponseNorm.SIZE
        through_sum: Tensor = LocalResponseNorm.window_sum(grad * y / divisor)
        grad_x: Tensor = grad * root * root.sqrt() - scale * x * through_sum
        return grad_x.to(given)


def local_response_norm(x: Tensor) -> Tensor:
    """N×C×H×W → the same shape; see LocalResponseNorm."""
    return LocalResponseNorm.apply(x)  # type: ignore[no-any-return]


Norms = Sequence[Callable[[Tensor], Tensor]]
NO_NORMS: Norms = (nn.Identity(),) * 3


class AlexNet(nn.Module):
    """N×3×227×227 → N×256×6×6 (pool5), with Caffe's order, groups and ceil pooling.

    The paddings differ by task (protocols 5.1: 5/1/1 for detection; 6.1: conv1_pad 100 for
    segmentation); the ten weight tensors do not. Initialised by Caffe's fillers from torch's global
    generator: N(0, 0.01), biases 0/1/0/1/1.
    """

    def __init__(
        self, architecture: Architecture = CAFFENET, *, conv1_pad: int = 0, pool1_pad: int = 0, pool2_pad: int = 0
    ) -> None:
        super().__init__()
        (w1, w2, w3, w4, w5), (g1, g2, g3, g4, g5) = architecture.widths, architecture.groups
        self.conv1 = FilledConv2d(3, w1, 11, stride=4, padding=conv1_pad, groups=g1, fill=architecture.pad_value)
        self.conv2 = nn.Conv2d(w1, w2, 5, padding=2, groups=g2)
        self.conv3 = nn.Conv2d(w2, w3, 3, padding=1, groups=g3)
        self.conv4 = nn.Conv2d(w3, w4, 3, padding=1, groups=g4)
        self.conv5 = nn.Conv2d(w4, w5, 3, padding=1, groups=g5)
        self.architecture, self.pool1_pad, self.pool2_pad = architecture, pool1_pad, pool2_pad
        for conv, bias in zip(self.convs(), (0.0, 1.0, 0.0, 1.0, 1.0), strict=True):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)

    def convs(self) -> tuple[nn.Conv2d, ...]:
        """The five convolutions, in order."""
        return self.conv1, self.conv2, self.conv3, self.conv4, self.conv5

    def features(self, x: Tensor, *, norms: Norms = NO_NORMS) -> Tensor:
        """N×3×H×W → N×256×h×w: everything up to relu5, before pool5 (stride 16).

        `norms` stand between conv3–conv5 and their ReLUs while a method trains with batch norm.
        """
        x = self._pooled(self._relu(self.conv1(x)), self.pool1_pad)
        x = self._pooled(self._relu(self.conv2(x)), self.pool2_pad)
        for conv, norm in zip((self.conv3, self.conv4, self.conv5), norms, strict=True):
            x = self._relu(norm(conv(x)))
        return x

    def forward(self, x: Tensor, *, norms: Norms = NO_NORMS) -> Tensor:
        """N×3×H×W → N×256×h×w: pool5 (stride 32)."""
        return F.max_pool2d(self.features(x, norms=norms), 3, 2, ceil_mode=True)

    def _relu(self, x: Tensor) -> Tensor:
        slope = self.architecture.slope
        return F.leaky_relu(x, slope) if slope else F.relu(x)

    def _pooled(self, x: Tensor, pad: int) -> Tensor:
        if self.architecture.norm == "lrn-before-pool":
            x = local_response_norm(x)
        x = F.max_pool2d(x, 3, 2, pad, ceil_mode=True)
        return local_response_norm(x) if self.architecture.norm == "lrn" else x


def mean_rgb(device: torch.device | str = "cpu") -> Tensor:
    """1×3×1×1, what is subtracted from every 0–255 RGB image."""
    return torch.tensor(MEAN_RGB, device=device).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Encoder:
    """An encoder file, read and checked: its ten tensors, their architecture, its digest and its provenance."""

    path: Path
    sha256: str
    architecture: Architecture
    provenance: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Receipt:
    """How many tensors of a built model are bit-equal to the encoder file's."""

    loaded: int
    expected: int


def save_encoder(path: Path, trunk: AlexNet, provenance: dict[str, Any]) -> None:
    """Write the ten tensors of `trunk` and its provenance (JSON-able) to `path`, atomically.

    Raises Failed, and writes nothing, when a weight is not finite.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trunk.state_dict().items()}
    if problems := _problems(tensors, trunk.architecture):
        raise Failed(f"{path}: not written: {'; '.join(problems)}: lower --lr")
    if trunk.architecture != CAFFENET:
        provenance = provenance | {"architecture": trunk.architecture.record()}
    # One key: safetensors writes several in any order, and the same encoder must be the same bytes.
    metadata = {"provenance": json.dumps(provenance, sort_keys=True)}
    with atomic(path) as temporary:  # save_file would hide what the system said of a full disk
        temporary.write_bytes(save(tensors, metadata=metadata))


def read_encoder(path: Path) -> Encoder:
    """Read and check an encoder file. Nothing in it is executed.

    Raises Missing when there is no file, and Failed when it is not a safetensors file, or when a
    tensor is missing, extra, of another shape or type, or not finite, or when its provenance is damaged
    (pretrain.encoder_metadata); the message names each.
    """
    if not path.is_file():
        raise Missing(f"{path}: no such encoder file: run `bench pretrain`, or check --encoder")
    tensors, metadata = _read_safetensors(path)
    provenance = read_provenance(path, metadata.get("provenance"))
    architecture = _architecture(path, provenance.pop("architecture", None))
    if problems := _problems(tensors, architecture):
        raise Failed(f"{path}: not the conv1–conv5 of a {architecture}: {'; '.join(problems)}")
    return Encoder(path=path, sha256=sha256(path), architecture=architecture, provenance=provenance, tensors=tensors)


WIDEST = 4096  # channels: a shape in a file costs nothing, the memory for it does


def described(said: dict[str, Any]) -> Architecture:
    """The architecture that `record` (and JSON) wrote. Raises KeyError, TypeError or ValueError for anything else."""
    if not isinstance(said, dict) or {*said, "pad_value"} != set(asdict(CAFFENET)):
        raise ValueError(f"not an architecture's fields, {', '.join(asdict(CAFFENET))}")
    widths, groups = (_whole(key, said[key]) for key in ("widths", "groups"))
    numbers = [said["slope"], *said.get("pad_value", (0.0, 0.0, 0.0))]  # older files lack it
    if any(type(n) not in (int, float) or not abs(n) < 1000 for n in numbers):  # NaN too
        raise ValueError("slope or pad_value no number, or out of range")
    slope, red, green, blue = (float(number) for number in numbers)
    if said["norm"] not in ("lrn", "lrn-before-pool", "none") or not 0 <= slope < 1:
        raise ValueError(f"norm no kind of ours, or slope {slope} not from 0 to 1")
    inputs = (3, *widths[:-1])
    if any(ins % g or outs % g for ins, outs, g in zip(inputs, widths, groups, strict=True)):
        raise ValueError(f"widths {widths} in groups {groups}")
    return Architecture(widths, groups, said["norm"], slope, (red, green, blue))


def _whole(key: str, said: Any) -> tuple[int, ...]:
    """Five whole numbers from 1 to WIDEST. Raises ValueError."""
    if not isinstance(said, list | tuple) or len(said) != len(KERNELS):
        raise ValueError(f"{key} no list of {len(KERNELS)}")
    if any(type(n) is not int or not 1 <= n <= WIDEST for n in said):
        raise ValueError(f"{key} no whole numbers from 1 to {WIDEST}")
    return tuple(said)


def _architecture(path: Path, said: Any) -> Architecture:
    """What the file says of its trunk; CaffeNet when it says nothing."""
    try:
        return CAFFENET if said is None else described(said)
    except (KeyError, TypeError, ValueError) as error:
        raise Failed(
            f"{path}: its metadata names no architecture of ours ({error}): import the weights again"
        ) from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        if why := mistaken(head_of(path), ".safetensors"):
            raise ValueError(why)
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:
        raise Failed(
            f"{path}: not a readable safetensors file ({error}); pickles are never opened: "
            "give the encoder.safetensors of `bench pretrain`, or make one of these weights by `bench import`"
        ) from error


def _problems(tensors: dict[str, Tensor], architecture: Architecture) -> list[str]:
    expected = architecture.shapes()
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name!r}" for name in sorted(tensors) if name not in expected]
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            problems.append(f"{name} is {tuple(tensor.shape)}, not {shape}")
        elif tensor.dtype != torch.float32:
            problems.append(f"{name} is {tensor.dtype}, not float32")
        elif not tensor.isfinite().all():
            problems.append(f"{name} holds NaN or infinite values")
    return problems


def load_encoder(trunk: AlexNet, encoder: Encoder) -> Receipt:
    """Copy the file's tensors into `trunk`, wherever it sits in a larger model, and count them.

    Raises Failed unless all ten are bit-equal to the file afterwards.
    """
    if trunk.architecture != encoder.architecture:
        raise Failed(f"{encoder.path}: weights of a {encoder.architecture} for a trunk that is a {trunk.architecture}")
    trunk.load_state_dict(encoder.tensors, strict=True)
    state = trunk.state_dict()
    equal = sum(torch.equal(state[name].cpu(), tensor) for name, tensor in encoder.tensors.items())
    receipt = Receipt(loaded=equal, expected=len(encoder.tensors))
    if receipt.loaded != receipt.expected:
        raise Failed(f"{encoder.path}: only {receipt.loaded} of {receipt.expected} tensors were loaded")
    return receipt

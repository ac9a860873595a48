"""The trunk that a foreign weights file holds: what became of each blob, BatchNorm folded, shapes checked."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.alexnet import CAFFENET, KERNELS, WIDEST, Architecture
from pretrain.files import Failed

Norm = Literal["lrn", "lrn-before-pool", "none"]
Order = Literal["rgb", "bgr"]
Colour = tuple[float, float, float]


@dataclass
class Row:
    """One line of the table: a blob of the file, its shape, and what became of it."""

    blob: str
    shape: tuple[int, ...]
    fate: str = "ignored"


@dataclass(frozen=True)
class Affine:
    """y = scale · x + shift per channel: a BatchNorm (with or without its own scale) or a Scale layer.

    `source` does the same as the source's framework does it, on N×C×H×W in float64.
    """

    name: str
    scale: Tensor
    shift: Tensor
    source: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Declared:
    """What a file says of the pixels it was trained on, R, G, B; None is unsaid."""

    mean: Colour | None = None
    std: Colour | None = None


@dataclass
class Trunk:
    """conv1–conv5 as found: tensors under our names, in the file's own pixels. `norm` None: the file cannot say."""

    tensors: dict[str, Tensor]
    rows: list[Row]
    affines: dict[int, list[Affine]] = field(default_factory=dict)
    groups: dict[int, int] = field(default_factory=dict)
    norm: Norm | None = None
    slope: float = 0.0
    declared: Declared = Declared()
    remarks: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)  # what the file's network does and ours does not, said in remarks
    source: dict[str, Row] = field(default_factory=dict)  # our name → the row of the blob it came from

    def take(self, name: str, tensor: Tensor, row: Row) -> None:
        """`tensor` of the file becomes our `name`."""
        self.tensors[name], self.source[name], row.fate = tensor, row, f"→ {name}"

    def differ(self, remark: str) -> None:
        """The file's network does something that ours does not."""
        self.remarks.append(remark)
        self.differs.append(remark)


def batch_norm(
    name: str, mean: Tensor, var: Tensor, eps: float, *, scale: Tensor | None = None, shift: Tensor | None = None
) -> Affine:  # fmt: skip
    """scale · (x - mean) / √(var + eps) + shift, channels each; without `scale` and `shift` 1 and 0."""
    mean, var = mean.double(), var.double()
    scale = torch.ones_like(mean) if scale is None else scale.double()
    shift = torch.zeros_like(mean) if shift is None else shift.double()
    whole = scale * (var + eps).rsqrt()
    return Affine(name, whole, shift - mean * whole, lambda x: F.batch_norm(x, mean, var, scale, shift, eps=eps))


def scaled(name: str, scale: Tensor, shift: Tensor) -> Affine:
    """scale · x + shift, channels each."""
    scale, shift = scale.double(), shift.double()
    return Affine(name, scale, shift, lambda x: x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1))


def folded(weight: Tensor, bias: Tensor, affines: Iterable[Affine]) -> tuple[Tensor, Tensor]:
    """out×in×k×k, out → the same, doing what the convolution and the affine maps behind it did together."""
    weight, bias = weight.double(), bias.double()
    for affine in affines:
        weight = weight * affine.scale[:, None, None, None]
        bias = bias * affine.scale + affine.shift
    return weight, bias


def checked(path: Path, trunk: Trunk) -> Architecture:
    """Fold what is to be folded, mark the rows of what does not fit, and say what kind of trunk it is.

    Widths and groups follow from the shapes. Raises Failed, naming every tensor that is missing,
    mis-shaped (with the shape that was expected), not real-valued, or not finite. `norm` is the file's or CaffeNet's.
    """
    problems: list[str] = []
    widths, groups, inputs = [], [], 3
    for k, side in enumerate(KERNELS, start=1):
        wrong = _check(trunk, k, inputs, side)
        problems += wrong
        weight = trunk.tensors.get(f"conv{k}.weight")
        if wrong or weight is None:
            inputs = weight.shape[0] if weight is not None and weight.ndim else 0
            continue
        groups.append(inputs // weight.shape[1])
        widths.append(inputs := weight.shape[0])
        _fold(trunk, k)
    if not problems:
        problems = [f"{name} holds NaN or infinite values" for name, tensor in trunk.tensors.items()
                    if not tensor.float().isfinite().all()]  # fmt: skip
    if problems:
        raise Failed(f"{path}: {'; '.join(problems)}: only the AlexNet family (conv1–conv5, RGB or BGR) can be "
                     "imported: give another file")  # fmt: skip
    return Architecture(tuple(widths), tuple(groups), trunk.norm or CAFFENET.norm, trunk.slope)


def _check(trunk: Trunk, k: int, inputs: int, side: int) -> list[str]:
    """What is wrong with conv k, which takes `inputs` channels (0: unknown, as the one before is wrong)."""
    weight, bias, problems = trunk.tensors.get(f"conv{k}.weight"), trunk.tensors.get(f"conv{k}.bias"), []
    if weight is None:
        return [f"missing conv{k}.weight"]
    declared = trunk.groups.get(k)
    channels = str(inputs // declared) if declared and inputs else f"{inputs or 'inputs'}/groups" if k > 1 else "3"
    shape, expected = tuple(weight.shape), f"(N, {channels}, {side}, {side})"
    fits = weight.ndim == 4 and shape[2:] == (side, side) and 0 < shape[0] <= WIDEST and shape[1] > 0
    if fits and inputs:
        fits = inputs % shape[1] == 0 and shape[0] % (inputs // shape[1]) == 0 and (k > 1 or shape[1] == 3)
        fits = fits and declared in (None, inputs // shape[1])
    if not fits:
        problems.append(_misshaped(trunk, f"conv{k}.weight", expected, shape[1:2] if k == 1 else ()))
    if bias is None and not trunk.affines.get(k):
        problems.append(f"missing conv{k}.bias")
    elif bias is not None and tuple(bias.shape) != shape[:1]:
        problems.append(_misshaped(trunk, f"conv{k}.bias", str(shape[:1])))
    problems += [
        f"{affine.name} is {tuple(affine.scale.shape)}, not {shape[:1]}"
        for affine in trunk.affines.get(k, [])
        if tuple(affine.scale.shape) != shape[:1] or affine.shift.shape != affine.scale.shape
    ]
    named = ((f"conv{k}.weight", weight), (f"conv{k}.bias", bias))
    return problems + [f"{n} is {t.dtype}" for n, t in named if t is not None and not t.is_floating_point()]


def _misshaped(trunk: Trunk, name: str, expected: str, channels: Sequence[int] = ()) -> str:
    row = trunk.source[name]
    row.fate = f"mis-shaped: {name} is to be {expected}"
    known: dict[tuple[int, ...], str] = {(2,): "Sobel", (1,): "grey"}
    why = f": {known[tuple(channels)]} input is not supported" if tuple(channels) in known else ""
    return f"{row.blob} is {tuple(trunk.tensors[name].shape)}, not {expected}{why}"


def _fold(trunk: Trunk, k: int) -> None:
    """Fold the affine maps of conv k; give it a bias of zero when only they had one."""
    weight = trunk.tensors[f"conv{k}.weight"]
    bias = trunk.tensors.get(f"conv{k}.bias", torch.zeros(len(weight), dtype=weight.dtype))
    pair = folded(weight, bias, trunk.affines.get(k, []))
    trunk.tensors[f"conv{k}.weight"], trunk.tensors[f"conv{k}.bias"] = pair

"""Published weights → an encoder file: RGB, 0–255, minus MEAN_RGB, whatever the source took (protocols 9).

A foreign first layer sees (x - mean) / std in its own channel order. conv1 takes that in: its input
channels are turned round (bgr), divided by std, and its bias takes the difference of the means. Where a task
pads conv1, the padding takes it too (Architecture.pad_value), so that it is the source's own zero.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain import provenance
from pretrain.alexnet import CAFFENET, MEAN_RGB, AlexNet, Architecture, save_encoder
from pretrain.contents import head_of, mistaken
from pretrain.files import Failed, sha256
from pretrain.foreign.caffe import read_layers
from pretrain.foreign.caffenet import caffe_trunk
from pretrain.foreign.compare import IMAGES, TOLERANCE, Source, compare
from pretrain.foreign.named import named_trunk
from pretrain.foreign.tensors import read_tensors
from pretrain.foreign.trunks import Colour, Norm, Order, Row, Trunk, checked
from pretrain.progress import log

REFUSED = {
    ".t7": "a Torch 7 file (the inpainting networks of protocols 3, which have no AlexNet trunk)",
    ".h5": "an HDF5 file: load it in Caffe and save it as .caffemodel",
    ".zip": "an archive: unpack it and import the file in it",
    ".tgz": "an archive: unpack it and import the file in it",
    ".gz": "an archive: unpack it and import the file in it",
}


@dataclass(frozen=True)
class Reading:
    """How to read a file's pixels and what it cannot say itself; None: as the file declares, else by default.

    `mean` and `std` are R, G, B, of pixels 0–255, whatever the `order` of the file's own channels.
    """

    order: Order | None = None
    mean: Colour | None = None
    std: Colour | None = None
    norm: Norm | None = None


def import_weights(
    path: Path,
    *,
    out: Path,
    method: str,
    variant: str = "",
    supervision: str = "imported",
    reading: Reading | None = None,
) -> Path:
    """Write `out`, an encoder file, from the conv1–conv5 in the weights file `path`; return `out`.

    Reads .caffemodel, .pth, .pt, .pth.tar, .npy, .npz, .pkl and .safetensors, and executes nothing of
    them. Says on stderr what became of each blob, and every assumption. Raises Missing without the
    file, Failed when it is damaged, not of the AlexNet family, holds NaN, or when the encoder's features would not be
    the source's.
    """
    reading = reading or Reading()
    trunk = _read(path, reading.norm)
    original = dict(trunk.tensors)
    try:
        found = checked(path, trunk)
    finally:
        log(table(trunk.rows))
    found = replace(found, norm=reading.norm or trunk.norm or _assumed_norm(found, trunk))
    order, mean, std = _pixels(path, reading, trunk)
    encoder = _encoder(trunk, found, order=order, mean=mean, std=std)
    for remark in [*trunk.remarks, *_ungrouped(encoder.architecture)]:
        log(f"{path.name}: {remark}")
    compared = _compared(path, trunk, Source(original, trunk.affines, order, mean, std), encoder)
    source = {"file": path.name, "sha256": sha256(path), "format": _format(path), "order": order, "mean": list(mean),
              "std": list(std), "architecture": encoder.architecture.record()}  # fmt: skip
    save_encoder(out, encoder, _provenance(source, method, variant, supervision) | {"compared": compared})
    log(f"{out}: {encoder.architecture}, imported from {path.name}")
    return out


def _encoder(trunk: Trunk, found: Architecture, *, order: Order, mean: Colour, std: Colour) -> AlexNet:
    """The trunk in our pixels, conv1 padded with the source's mean."""
    red, green, blue = (round(own - ours, 9) for own, ours in zip(mean, MEAN_RGB, strict=True))
    first = our_pixels(*(trunk.tensors[f"conv1.{p}"] for p in ("weight", "bias")), order=order, mean=mean, std=std)
    tensors = trunk.tensors | dict(zip(("conv1.weight", "conv1.bias"), first, strict=True))
    encoder = AlexNet(replace(found, pad_value=(red, green, blue)))
    encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    return encoder


def _compared(path: Path, trunk: Trunk, source: Source, encoder: AlexNet) -> str:
    """What is said of the comparison with the source's own arithmetic; the measured difference is only logged."""
    if trunk.differs:
        log(f"{path.name}: features not compared with the source's own arithmetic: {'; '.join(trunk.differs)}")
        return f"not compared: {'; '.join(trunk.differs)}"
    found = compare(path, source, encoder)
    log(f"{path.name}: relu5 of {IMAGES} random images is that of the source's own arithmetic, nothing folded: "
        f"at most {found:.1g} of the largest value apart (pixels, LRN and slope as taken above)")  # fmt: skip
    return f"relu5 of {IMAGES} random images: within {TOLERANCE:g} of the source's own arithmetic"


def our_pixels(
    weight: Tensor, bias: Tensor, *, order: Order, mean: Colour, std: Colour
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """N×3×11×11, N: conv1 for (x - mean) / std in `order` → conv1 for RGB minus MEAN_RGB, in double precision.

    Exact, also where a task pads conv1, with Architecture.pad_value: the source's mean, which was its zero.
    Only what detectron2 fills images of a batch up with, to one size, stays MEAN_RGB (transfer.fast_rcnn).
    """
    weight = (weight.flip(1) if order == "bgr" else weight).double()
    weight = weight / torch.tensor(std, dtype=torch.float64).view(1, 3, 1, 1)
    shift = torch.tensor(MEAN_RGB, dtype=torch.float64) - torch.tensor(mean, dtype=torch.float64)
    return weight, bias.double() + (weight.sum((2, 3)) * shift).sum(1)


def table(rows: list[Row]) -> str:
    """blob, shape, what became of it: aligned lines."""
    cells = [("blob", "shape", "became")] + [(r.blob, "×".join(map(str, r.shape)) or "scalar", r.fate) for r in rows]
    wide = [max(len(line[column]) for line in cells) for column in (0, 1)]
    return "\n".join(f"{blob:{wide[0]}}  {shape:{wide[1]}}  {fate}" for blob, shape, fate in cells)


def _read(path: Path, norm: Norm | None) -> Trunk:
    if path.is_file() and (why := REFUSED.get(path.suffix.lower())):
        why = mistaken(head_of(path), path.suffix) or why
        raise Failed(f"{path}: {why}; `bench import --list` says what can be imported")
    if _format(path) == "caffemodel":
        return caffe_trunk(path, read_layers(path), norm=norm)
    return named_trunk(path, read_tensors(path))


def _format(path: Path) -> str:
    suffix = path.suffix.lower().removeprefix(".")
    return "pth" if suffix == "tar" else suffix


def _assumed_norm(architecture: Architecture, trunk: Trunk) -> Norm:
    """LRN for CaffeNet's widths (unless BatchNorm stood in for it), else none."""
    like = architecture.widths == CAFFENET.widths and not trunk.affines
    norm: Norm = "lrn" if like else "none"
    trunk.remarks.append(f"the file cannot say where LRN stands: taken as {norm!r} (--norm lrn, lrn-before-pool, none)")
    return norm


def _pixels(path: Path, reading: Reading, trunk: Trunk) -> tuple[Order, Colour, Colour]:
    caffe, declared = _format(path) == "caffemodel", trunk.declared
    order = reading.order or ("bgr" if caffe else "rgb")
    mean, std = reading.mean or declared.mean or MEAN_RGB, reading.std or declared.std or (1.0, 1.0, 1.0)
    if min(std) <= 0:
        raise Failed(f"{path}: a std of {std}: give positive numbers with --std")
    given, told = reading.mean or reading.std, declared.mean or declared.std
    said = "as given" if given else "as the file declares" if told else "by default; --order, --mean, --std overrule"
    numbers = ", ".join(f"{m:g}" for m in mean), ", ".join(f"{s:g}" for s in std)
    trunk.remarks.append(f"pixels taken as {order}, 0–255, minus RGB ({numbers[0]}), over ({numbers[1]}), {said}")
    return order, mean, std


def _ungrouped(architecture: Architecture) -> list[str]:
    pairs = zip(architecture.groups, CAFFENET.groups, strict=True)
    names = [f"conv{k}" for k, (own, theirs) in enumerate(pairs, start=1) if own == 1 < theirs]
    return [f"{', '.join(names)} ungrouped: the trunk is stored so"] if names else []


def _provenance(source: dict[str, Any], method: str, variant: str, supervision: str) -> dict[str, Any]:
    head, dirty = provenance.commit()
    return {
        "method": method,
        "variant": variant,
        "supervision": supervision,
        "source": source,
        "versions": provenance.versions(),
        "commit": head,
        "dirty": dirty,
    }

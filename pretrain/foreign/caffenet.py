"""conv1–conv5 in a `.caffemodel`'s layers: groups, LRN's place, slope, BatchNorm, declared pixels (protocols 9)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.alexnet import KERNELS
from pretrain.files import Failed
from pretrain.foreign.caffe import Blob, Layer
from pretrain.foreign.trunks import Affine, Colour, Declared, Norm, Row, Trunk, batch_norm, scaled

PASSING = {"ReLU", "BatchNorm", "Scale", "Split", "Dropout"}
STRIDES = (4, 1, 1, 1, 1)
Rows = dict[tuple[str, int], Row]  # (layer, which of its blobs) → its line of the table
OTHER = "only AlexNet trunks (conv, ReLU, max pooling, LRN, BatchNorm) can be imported"


def caffe_trunk(path: Path, layers: Sequence[Layer], *, norm: Norm | None = None) -> Trunk:
    """The trunk of a file's layers; `norm` overrules what the file says of LRN.

    Raises Failed when conv1 does not see pixels, or what stands between the convolutions is not an
    AlexNet's. Shapes are not checked here.
    """
    rows = {(layer.name, i): Row(f"{layer.name}/{i}", blob.shape) for layer in layers for i, blob in
            enumerate(layer.blobs)}  # fmt: skip
    trunk = Trunk(tensors={}, rows=list(rows.values()), norm=norm)
    convs = _convolutions(path, layers)
    for k, index in convs.items():
        layer = layers[index]
        if layer.type != "Convolution" or len(layer.blobs) > 2:
            what = f"a layer of type {layer.type} with {len(layer.blobs)} blobs"
            raise Failed(f"{path}: {layer.name!r} is {what}, no Convolution with a weight and a bias: {OTHER}")
        for i, kind in enumerate(("weight", "bias")[: len(layer.blobs)]):
            trunk.take(f"conv{k}.{kind}", _tensor(layer.blobs[i], flat=kind == "bias"), rows[layer.name, i])
        if layer.settings.HasField("convolution"):
            trunk.groups[k] = _setting(layer.settings.convolution, "group", 1)
            _mention_stride(layer, STRIDES[k - 1], trunk)
    if len(convs) == len(KERNELS):  # else the missing one is named when the shapes are checked
        _see_pixels(path, layers, convs[1], trunk)
        _between(path, layers, convs, trunk, rows)
    trunk.declared = _declared(layers, trunk)
    return trunk


def _mention_stride(layer: Layer, ours: int, trunk: Trunk) -> None:
    """Say what of a convolution's steps is otherwise in the file (Jigsaw trained conv1 with stride 2)."""
    said = layer.settings.convolution
    strides = {*said.stride, _setting(said, "stride_h", 0), _setting(said, "stride_w", 0)} - {0}
    for name, theirs, own in (("stride", strides, ours), ("dilation", {*said.dilation} - {0}, 1)):
        if theirs - {own}:
            values = " and ".join(map(str, sorted(theirs)))
            trunk.differ(f"{layer.name} has {name} {values} in the file, and {own} here")


def _tensor(blob: Blob, *, flat: bool) -> Tensor:
    """A blob as declared; `flat`: a vector, which old files store as 1×1×1×N."""
    size = max(blob.shape, default=1)
    vector = flat and size == blob.data.size
    return torch.from_numpy(blob.data.copy()).reshape((size,) if vector else blob.shape)


def _convolutions(path: Path, layers: Sequence[Layer]) -> dict[int, int]:
    """k → the index of conv k: by name, or five convolutions in a row with the kernels 11, 5, 3, 3, 3."""
    named: dict[str, int] = {}
    for i, layer in enumerate(layers):
        if (
            layer.blobs
            and named.setdefault(layer.name.lower(), i) != i
            and re.fullmatch("conv[1-5]", layer.name.lower())
        ):
            raise Failed(f"{path}: two layers with weights are called {layer.name!r}: save one of the trunks alone")
    if "conv1" in named:
        return {k: named[f"conv{k}"] for k in range(1, 6) if f"conv{k}" in named}
    square = [i for i, layer in enumerate(layers) if layer.blobs and layer.type == "Convolution"]
    sides = [layers[i].blobs[0].shape[-1:] for i in square]
    for first in range(len(square) - 4):
        if sides[first : first + 5] == [(side,) for side in KERNELS]:
            return dict(enumerate(square[first : first + 5], start=1))
    return {}


def _setting(message: Any, name: str, default: Any) -> Any:
    return getattr(message, name) if message.HasField(name) else default


def _producer(layers: Sequence[Layer], index: int) -> int | None:
    """The layer whose output layer `index` takes (the last one before it, as in-place layers reuse a name)."""
    wanted = layers[index].bottoms[:1]
    return next((i for i in range(index - 1, -1, -1) if wanted and wanted[0] in layers[i].tops), None)


def _see_pixels(path: Path, layers: Sequence[Layer], first: int, trunk: Trunk) -> None:
    """Raise Failed when a layer with weights stands before conv1; mention any other."""
    index = _producer(layers, first)
    while index is not None:
        layer = layers[index]
        if layer.blobs:
            raise Failed(
                f"{path}: conv1 stands behind {layer.name!r} ({layer.type}), so its input is no image: {OTHER}"
            )
        if layer.bottoms and layer.type not in {"Split", "Slice", "Concat", "Dropout"}:
            trunk.remarks.append(f"conv1 stands behind {layer.name!r} ({layer.type}), which is not imported")
        index = _producer(layers, index)


def _chain(layers: Sequence[Layer], start: int, stop: int | None) -> list[Layer]:
    """What stands between the convolutions `start` and `stop`; after conv5 (None), what is no pooling or fc."""
    if stop is None:
        tops, found = set(layers[start].tops), []
        for layer in layers[start + 1 :]:
            if not tops or not layer.bottoms or layer.bottoms[0] in tops:
                if layer.type not in PASSING:
                    break
                found.append(layer)
                tops |= set(layer.tops)
        return found
    found, index = [], _producer(layers, stop)
    while index is not None and index > start:
        found.append(layers[index])
        index = _producer(layers, index)
    return found[::-1] if index == start else list(layers[start + 1 : stop])


def _between(path: Path, layers: Sequence[Layer], convs: dict[int, int], trunk: Trunk, rows: Rows) -> None:
    """Norm, slope and BatchNorm from the layers that follow each convolution."""
    slopes, norms, linear, given = set(), [], [], trunk.norm
    for k, index in convs.items():
        chain = _chain(layers, index, convs.get(k + 1))
        kinds = [layer.type for layer in chain]
        for place, layer in enumerate(chain):
            _follow(path, layer, k, kinds[:place], trunk, rows)
        linear += [f"conv{k}"] if "ReLU" not in kinds and (kinds or k < len(KERNELS)) else []
        slopes |= {round(_setting(layer.settings.relu, "slope", 0.0), 6) for layer in chain if layer.type == "ReLU"}
        norms += [_norm(path, k, kinds)] if k <= 2 and kinds else []
    if given and (others := sorted({norm for norm in norms if norm != given})):
        trunk.differ(f"LRN stands as {' and '.join(others)} in the file, and {given} here, as given")
    if linear and slopes:
        raise Failed(f"{path}: no ReLU behind {', '.join(linear)}: {OTHER}")
    if len(slopes) > 1:
        raise Failed(f"{path}: ReLUs of different slopes {sorted(slopes)}: {OTHER}")
    if len(set(norms)) > 1 and trunk.norm is None:
        raise Failed(f"{path}: LRN differs behind conv1 ({norms[0]}) and conv2 ({norms[1]}): say which with --norm")
    trunk.slope = slopes.pop() if slopes else 0.0
    trunk.norm = trunk.norm or (norms[0] if norms else None)


def _follow(path: Path, layer: Layer, k: int, before: list[str], trunk: Trunk, rows: Rows) -> None:
    """Take in `layer`, which stands behind conv k and the kinds `before`. Raises Failed when no AlexNet has it."""
    kind = layer.type
    if kind not in PASSING and not (kind in ("LRN", "Pooling") and k <= 2 and kind not in before):
        raise Failed(f"{path}: {layer.name!r} ({kind}) stands behind conv{k}: {OTHER}")
    if kind in ("BatchNorm", "Scale"):
        if {"ReLU", "Pooling", "LRN"} & set(before):
            raise Failed(
                f"{path}: {layer.name!r} ({kind}) stands behind the {before[-1]} of conv{k}, where it cannot be "
                "folded into it: give a file without it"
            )
        trunk.affines.setdefault(k, []).append(_affine(path, layer))
        for i in range(len(layer.blobs)):
            rows[layer.name, i].fate = f"folded into conv{k}"
    elif kind == "LRN":
        _check_lrn(path, layer, trunk)
    elif kind == "Pooling":
        _mention_pooling(layer, trunk)


def _norm(path: Path, k: int, seen: list[str]) -> Norm:
    if "Pooling" not in seen:
        raise Failed(f"{path}: no pooling behind conv{k}: {OTHER}")
    if "LRN" not in seen:
        return "none"
    return "lrn" if seen.index("LRN") > seen.index("Pooling") else "lrn-before-pool"


def _check_lrn(path: Path, layer: Layer, trunk: Trunk) -> None:
    lrn = layer.settings.lrn
    found = (_setting(lrn, "size", 5), round(_setting(lrn, "alpha", 1.0), 8), round(_setting(lrn, "beta", 0.75), 6),
             _setting(lrn, "k", 1.0), _setting(lrn, "region", 0))  # fmt: skip
    if found != (5, 1e-4, 0.75, 1.0, 0):
        if trunk.norm is not None:
            return trunk.differ(f"{layer.name} has size, alpha, beta, k, region {found}, and CaffeNet's here, as given")
        raise Failed(f"{path}: {layer.name!r} is an LRN with size, alpha, beta, k, region {found}, not CaffeNet's "
                     "(5, 0.0001, 0.75, 1, 0): to take CaffeNet's, or none, give --norm")  # fmt: skip
    return None


def _mention_pooling(layer: Layer, trunk: Trunk) -> None:
    pooling = layer.settings.pooling
    found = _setting(pooling, "pool", 0), _setting(pooling, "side", 3), _setting(pooling, "stride", 1)
    if layer.settings.HasField("pooling") and found != (0, 3, 2):
        trunk.differ(f"{layer.name} has kind, side and stride {found} in the file, and max, 3 and 2 here")


def _affine(path: Path, layer: Layer) -> Affine:
    """A BatchNorm's blobs are mean, variance and the factor both were scaled with; a Scale's, scale and shift."""
    vectors = [_tensor(blob, flat=True).double() for blob in layer.blobs]
    if layer.type == "BatchNorm" and len(vectors) == 3 and vectors[2].numel() == 1 and vectors[2].item() > 0:
        eps = _setting(layer.settings.batch_norm, "eps", 1e-5) if layer.settings.HasField("batch_norm") else 1e-5
        return batch_norm(layer.name, vectors[0] / vectors[2], vectors[1] / vectors[2], eps)
    if layer.type == "Scale" and len(vectors) in (1, 2):
        return scaled(layer.name, vectors[0], vectors[1] if len(vectors) == 2 else torch.zeros_like(vectors[0]))
    raise Failed(f"{path}: {layer.name!r} is a {layer.type} with blobs {[blob.shape for blob in layer.blobs]} and no "
                 "statistics that could be folded: give a file of a finished training")  # fmt: skip


def _declared(layers: Sequence[Layer], trunk: Trunk) -> Declared:
    """What the first transform_param with a mean or a scale says: (x - mean) · scale, mean in the file's B, G, R."""
    for layer in layers:
        if not (hasattr(layer.settings, "transform") and layer.settings.HasField("transform")):
            continue
        said = layer.settings.transform
        scale, means = _setting(said, "scale", 1.0), tuple(said.mean_value)
        if said.mean_file:
            trunk.remarks.append(f"{layer.name} subtracts a mean image, {said.mean_file!r}, which is not in the file")
        if scale <= 0 or len(means) not in (0, 1, 3):
            trunk.remarks.append(f"{layer.name} declares scale {scale} and means {means}: not used")
            continue
        if means or scale != 1:
            mean: Colour | None = (means[-1], means[len(means) // 2], means[0]) if means else None
            if mean is None and not said.mean_file:
                mean = (0.0, 0.0, 0.0)
            return Declared(mean, (1 / scale,) * 3)
    return Declared()

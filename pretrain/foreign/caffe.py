"""A `.caffemodel` without Caffe: the bytes of a NetParameter → its layers, in order (protocols 9).

Both generations are read: V2 (`layer`, types by name) and V1 (`layers`, types by number), and both
ways to give a blob its shape. Field numbers are those of BVLC/caffe:src/caffe/proto/caffe.proto; only
the fields named in FIELDS are declared, the rest of a file passes by as unknown.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from pretrain.contents import head_of, mistaken, printable
from pretrain.files import Failed, Missing

# message → field → (number, type); a message's name as the type, "[]" for repeated. Blob data is declared
# as bytes: packed numbers look the same on the wire, and 60 million Python floats are never made.
FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "Shape": {"dim": (1, "int64[]")},
    "Blob": {
        "shape": (7, "Shape"), "data": (5, "bytes[]"), "double_data": (8, "bytes[]"),
        "num": (1, "int64"), "channels": (2, "int64"), "height": (3, "int64"), "width": (4, "int64"),
    },
    "Transform": {"scale": (1, "float"), "mean_file": (4, "string"), "mean_value": (5, "float[]")},
    "BatchNorm": {"eps": (3, "float")},
    "Convolution": {"group": (5, "uint32"), "stride": (6, "uint32[]"), "stride_h": (13, "uint32"),
                    "stride_w": (14, "uint32"), "dilation": (18, "uint32[]")},
    "LRN": {"size": (1, "uint32"), "alpha": (2, "float"), "beta": (3, "float"), "region": (4, "int32"),
            "k": (5, "float")},
    "Pooling": {"pool": (1, "int32"), "side": (2, "uint32"), "stride": (3, "uint32")},
    "ReLU": {"slope": (1, "float")},
    "Layer": {
        "name": (1, "string"), "type": (2, "string"), "bottom": (3, "string[]"), "top": (4, "string[]"),
        "blobs": (7, "Blob[]"), "transform": (100, "Transform"), "convolution": (106, "Convolution"),
        "lrn": (118, "LRN"), "pooling": (121, "Pooling"), "relu": (123, "ReLU"), "batch_norm": (139, "BatchNorm"),
    },
    "LayerV1": {
        "name": (4, "string"), "type": (5, "int32"), "bottom": (2, "string[]"), "top": (3, "string[]"),
        "blobs": (6, "Blob[]"), "transform": (36, "Transform"), "convolution": (10, "Convolution"),
        "lrn": (18, "LRN"), "pooling": (19, "Pooling"), "relu": (30, "ReLU"),
    },
    "Net": {"layer": (100, "Layer[]"), "layers": (2, "LayerV1[]")},
}  # fmt: skip
# The numbers of V1's layer types that stand in or beside a trunk; any other keeps its number as its name.
TYPES_V1 = {4: "Convolution", 5: "Data", 6: "Dropout", 12: "ImageData", 14: "InnerProduct", 15: "LRN", 17: "Pooling",
            18: "ReLU", 22: "Split", 24: "WindowData", 25: "Eltwise", 3: "Concat", 34: "MVN", 26: "Power"}  # fmt: skip
LARGEST = 2**31 - 1  # bytes: protobuf's own limit
LONGEST = 200  # characters of a name
AXES = 8  # of a blob, at most; Caffe's own limit is 32, and no layer of ours has more than 4
REMEDY = "obtain the .caffemodel again (`bench fetch`, `bench import --list`)"


@dataclass(frozen=True)
class Blob:
    """A blob's declared shape, and its numbers, flat: as many as the shape says."""

    shape: tuple[int, ...]
    data: NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """One layer: what it is called, what it takes and gives, its blobs, and `settings`, its own message."""

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    blobs: tuple[Blob, ...]
    settings: Any


@cache
def _net_parameter() -> Any:
    """The message class of a whole file, built from FIELDS."""
    file = descriptor_pb2.FileDescriptorProto(name="pretrain/caffe.proto", package="caffemodel", syntax="proto2")
    for message, fields in FIELDS.items():
        declared = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            repeated, kind = kind.endswith("[]"), kind.removesuffix("[]")
            field = declared.field.add(name=name, number=number)
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind in FIELDS:
                field.type, field.type_name = field.TYPE_MESSAGE, f".caffemodel.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffemodel.Net"))


def read_layers(path: Path) -> list[Layer]:
    """The layers of a `.caffemodel`, in order. Nothing in it is executed.

    Raises Missing when there is no file, and Failed when it is no NetParameter, is cut off, or when a
    blob holds another number of values than its shape says.
    """
    if not path.is_file():
        raise Missing(f"{path}: no such file: {REMEDY}")
    if path.stat().st_size > LARGEST:
        raise Failed(f"{path}: more than 2 GiB, which no .caffemodel can be: {REMEDY}")
    if why := mistaken(head_of(path), ".caffemodel"):
        raise Failed(f"{path}: {why}; {REMEDY}")
    net = _net_parameter()()
    try:
        net.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise Failed(f"{path}: not a whole .caffemodel (cut off, or of another format): {REMEDY}") from error
    layers = [_layer(path, one, one.type) for one in net.layer]
    layers += [_layer(path, one, TYPES_V1.get(one.type, str(one.type))) for one in net.layers]
    if not any(layer.blobs for layer in layers):
        raise Failed(f"{path}: no Caffe layers with weights in it: {REMEDY}")
    return layers


def _layer(path: Path, message: Any, kind: str | bytes) -> Layer:
    name, kind = _text(message.name), _text(kind)
    blobs = tuple(_blob(f"{path}: {name}/{index}", blob) for index, blob in enumerate(message.blobs))
    return Layer(name, kind, tuple(message.bottom), tuple(message.top), blobs, message)


def _text(said: str | bytes) -> str:
    """A name in one line; protobuf gives bytes for what is no UTF-8."""
    return printable((said.decode("utf-8", "replace") if isinstance(said, bytes) else said)[:LONGEST])


def _blob(place: str, blob: Any) -> Blob:
    """A blob's numbers: float or double, whichever it holds."""
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else (blob.num, blob.channels, blob.height, blob.width)
    raw, kind = (b"".join(blob.double_data), "<f8") if blob.double_data else (b"".join(blob.data), "<f4")
    count, rest = divmod(len(raw), np.dtype(kind).itemsize)
    if rest or len(shape) > AXES or min(shape, default=0) < 0 or count != math.prod(shape):
        raise Failed(f"{place}: {count} numbers for the shape {shape[:AXES]}: the file is damaged: {REMEDY}")
    return Blob(shape, np.frombuffer(raw, kind))

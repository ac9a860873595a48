"""conv1–conv5 among named tensors: by name, or as five convolutions in a row with kernels 11, 5, 3, 3, 3."""

import re
from pathlib import Path

import torch
from torch import Tensor

from pretrain.alexnet import KERNELS
from pretrain.files import Failed
from pretrain.foreign.trunks import Affine, Row, Trunk, batch_norm

# <module>.weight, <module>_w, <module>/0 …: Caffe2's and Caffe's ways beside torch's
KINDS = {"weight": "weight", "weights": "weight", "w": "weight", "0": "weight",
         "bias": "bias", "biases": "bias", "b": "bias", "1": "bias"}  # fmt: skip
PARAMETER = re.compile(r"(?P<module>.*?)[./_](?P<kind>weights?|bias(?:es)?|[wWbB]|[01]|running_mean|running_var)")
EPS = 1e-5  # torch's default, which no state dict holds

Modules = dict[str, dict[str, str]]  # module → kind of parameter → the tensor's name


def named_trunk(path: Path, tensors: dict[str, Tensor]) -> Trunk:
    """The trunk among `tensors`, in their order. Raises Failed when there is none, or more than one."""
    rows = {name: Row(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
    trunk = Trunk(tensors={}, rows=list(rows.values()))
    modules = _modules(tensors)
    named = _by_name(path, modules)
    convs = named if len(named) == len(KERNELS) else _by_kernels(path, modules, tensors) or named
    if not convs:
        seen = ", ".join(f"{name} {row.shape}" for name, row in rows.items() if len(row.shape) == 4)
        raise Failed(f"{path}: no conv1–conv5 by name, and no five convolutions with kernels 11, 5, 3, 3, 3 in a row "
                     f"(found: {seen[:300] or 'no convolution'}): give another file")  # fmt: skip
    for k, module in convs.items():
        for kind in ("weight", "bias"):
            if name := modules[module].get(kind):
                trunk.take(f"conv{k}.{kind}", tensors[name], rows[name])
    for k, module in _norms(path, modules, convs, tensors).items():
        trunk.affines[k] = _affines(path, module, modules[module], tensors)
        for name in modules[module].values():
            rows[name].fate = f"folded into conv{k}"
        trunk.remarks.append(f"{module}: taken to stand between conv{k} and its ReLU, with eps {EPS:g}")
    return trunk


def _modules(tensors: dict[str, Tensor]) -> Modules:
    found: Modules = {}
    for name in tensors:
        if match := PARAMETER.fullmatch(name):
            kind = match["kind"]
            found.setdefault(match["module"], {})[KINDS.get(kind.lower(), kind)] = name
    return found


def _by_name(path: Path, modules: Modules) -> dict[int, str]:
    """k → module, for modules called <prefix>conv<k> with one prefix."""
    found: dict[str, dict[int, str]] = {}
    for module in modules:
        if match := re.fullmatch(r"(.*?)conv_?([1-5])", module, re.IGNORECASE):
            found.setdefault(match[1], {})[int(match[2])] = module
    _one(path, [prefix for prefix, convs in found.items() if len(convs) == len(KERNELS)])
    return dict(sorted(max(found.values(), key=len, default={}).items()))


def _by_kernels(path: Path, modules: Modules, tensors: dict[str, Tensor]) -> dict[int, str]:
    square = [module for module, names in modules.items() if "weight" in names and tensors[names["weight"]].ndim == 4]
    sides = [tuple(tensors[modules[module]["weight"]].shape[2:]) for module in square]
    wanted = [(side, side) for side in KERNELS]
    starts = [first for first in range(len(square)) if sides[first : first + 5] == wanted]
    _one(path, [square[first] for first in starts])
    return dict(enumerate(square[starts[0] : starts[0] + 5], start=1)) if starts else {}


def _one(path: Path, trunks: list[str]) -> None:
    if len(trunks) > 1:
        raise Failed(f"{path}: {len(trunks)} trunks in it ({', '.join(map(repr, trunks))}): save one of them alone")


def _norms(path: Path, modules: Modules, convs: dict[int, str], tensors: dict[str, Tensor]) -> dict[int, str]:
    """k → the BatchNorm module of conv k: the one that follows it in the file, or that is numbered like it."""
    order, last = list(modules), list(convs.values())[-1]
    dense = (i for i, m in enumerate(order) if "weight" in modules[m] and tensors[modules[m]["weight"]].ndim == 2)
    end = next((i for i in dense if i > order.index(last)), len(order))
    own = [m for m in order[order.index(convs[min(convs)]) : end] if "running_mean" in modules[m]]
    found: dict[int, str] = {}
    for module in own:
        before = [k for k, conv in convs.items() if order.index(conv) < order.index(module)]
        number = re.search(r"(?:bn|norm)_?([1-5])$|conv_?([1-5])\D*$", module, re.IGNORECASE)
        k = int(number[1] or number[2]) if number else max(before)
        if k in found or k not in convs:
            raise Failed(f"{path}: cannot tell which convolution {module!r} belongs to: fold the BatchNorms first")
        found[k] = module
    return found


def _affines(path: Path, module: str, names: dict[str, str], tensors: dict[str, Tensor]) -> list[Affine]:
    if "running_var" not in names:
        raise Failed(f"{path}: {module}.running_var is missing: obtain the file again")
    mean, var = tensors[names["running_mean"]], tensors[names["running_var"]]
    found = [batch_norm(module, mean, var, EPS)]
    if "weight" in names:
        scale = tensors[names["weight"]].double()
        shift = tensors[names["bias"]].double() if "bias" in names else torch.zeros_like(scale)
        found.append(Affine(module, scale, shift))
    return found

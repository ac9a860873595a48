"""conv1–conv5 among named tensors: by name, or as five numbered convolutions with kernels 11, 5, 3, 3, 3.

Names and shapes decide, never the order of the tensors: a `.safetensors` file sorts its keys.
"""

import re
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from pretrain.alexnet import KERNELS
from pretrain.files import Failed
from pretrain.foreign.names import TRAINING, modules_of
from pretrain.foreign.norms import Found, affine, conv_of_each_norm, first_text, unknown
from pretrain.foreign.trunks import Row, Trunk

# The axes of height and width, whose order that is (tried in turn), and how it becomes ours.
ORDERS = (
    ((2, 3), "", ()),
    ((0, 1), "TensorFlow's order (height, width, in, out), Keras's and Flax's too", (3, 2, 0, 1)),
    ((1, 2), "the order of channels last (out, height, width, in)", (0, 3, 1, 2)),
)
ALONE = "save conv1–conv5 and their BatchNorms alone"


def named_trunk(path: Path, tensors: dict[str, Tensor]) -> Trunk:
    """The trunk among `tensors`, the same whatever their order.

    Raises Failed when there is none, or more than one, and, naming it, for what is in the trunk by its name
    and is neither a convolution's weight or bias nor a BatchNorm that is known to follow one.
    """
    _refuse_other_orders(path, tensors)
    rows = {name: Row(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
    trunk = Trunk(tensors={}, rows=list(rows.values()))
    found = _found(path, tensors)
    for k, module in found.convs.items():
        for kind in ("weight", "bias"):
            if name := found.modules[module].get(kind):
                trunk.take(f"conv{k}.{kind}", tensors[name], rows[name])
    if len(found.convs) == len(KERNELS):  # else what is missing is named when the shapes are checked
        for k, (module, scheme) in conv_of_each_norm(path, found).items():
            trunk.affines[k] = [affine(path, module, scheme, found)]
            for name in found.modules[module].values():
                rows[name].fate = f"folded into conv{k}"
            said = f"{module}: {scheme.framework}'s BatchNorm by its names, taken to stand between conv{k} and its ReLU"
            trunk.remarks.append(f"{said}, with eps {scheme.eps:g}")
    _check_rest(path, trunk, found)
    return trunk


def _check_rest(path: Path, trunk: Trunk, found: Found) -> None:
    """Raise Failed, naming it, when something that is or may be part of the trunk was not taken."""
    rest = sorted(row.blob for row in trunk.rows if row.fate == "ignored" and not TRAINING.search(row.blob))
    if names := [name for name in rest if unknown(found, name)]:
        also = f" and {len(names) - 5} more" if len(names) > 5 else ""
        colours = any(found.tensors[name].numel() == 3 for name in names)
        pixels = "; what belongs to the pixels is given with --mean and --std" if colours else ""
        raise Failed(
            f"{path}: {', '.join(names[:5])}{also}: in the trunk by name or shape, but not a weight or bias of its "
            f"convolutions, nor a BatchNorm with mean and variance behind one: fold it, or {ALONE}{pixels}"
        )


def _refuse_other_orders(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise Failed when the axes of the convolutions are not (out, in, height, width), torch's and Caffe's order."""
    weights = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.ndim == 4}
    for (rows, columns), order, axes in ORDERS:
        left = [axis for axis in range(4) if axis not in (rows, columns)]
        for name, shape in weights.items():
            if 1 < shape[rows] == shape[columns] <= max(KERNELS) and shape[left[0]] != shape[left[1]]:
                if not order:
                    return
                raise Failed(
                    f"{path}: {name} is {shape}: {order}, where (out, in, height, width) is expected: save each "
                    f"convolution's weight as numpy.transpose(weight, {axes})"
                )


def _found(path: Path, tensors: dict[str, Tensor]) -> Found:
    """The modules of the file, and which of them are the convolutions."""
    modules = modules_of(list(tensors))
    weights = {module: tensors[names["weight"]] for module, names in modules.items() if "weight" in names}
    layers = {module: weight for module, weight in weights.items() if weight.ndim > 1}
    prefix, named = _by_name(path, layers)
    if len(named) < len(KERNELS) and (convs := _by_kernels(path, layers)):
        return Found(modules, tensors, layers, convs, _common(path, list(convs.values())), numbered=True)
    if len(named) == len(KERNELS):  # the same network twice, under two kinds of names
        rest = {module: weight for module, weight in layers.items() if module not in named.values()}
        _one(path, [prefix or named[1], *list(_by_kernels(path, rest).values())[:1]])
    if not named:
        seen = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if tensor.ndim == 4)
        raise Failed(f"{path}: no conv1–conv5 by name, and no five convolutions with kernels 11, 5, 3, 3, 3 in a row "
                     f"by the numbers in their names (found: {seen[:300] or 'no convolution'}): give another file, or "
                     "name them conv1–conv5")  # fmt: skip
    return Found(modules, tensors, layers, named, prefix, numbered=False)


def _by_name(path: Path, layers: dict[str, Tensor]) -> tuple[str, dict[int, str]]:
    """The prefix, and k → module, for layers called <prefix>conv<k> with one prefix."""
    found: dict[str, dict[int, str]] = {}
    for module in sorted(layers, reverse=True):
        if match := re.fullmatch(r"(.*?)conv_?([1-5])", module, re.IGNORECASE):
            twin = found.setdefault(match[1], {}).setdefault(int(match[2]), module)
            if twin != module:
                raise Failed(f"{path}: {twin!r} and {module!r} are both conv{match[2]}: {ALONE}")
    _one(path, [prefix for prefix, convs in found.items() if len(convs) == len(KERNELS)])
    prefix = max(found, key=lambda name: len(found[name]), default="")
    return prefix, dict(sorted(found.get(prefix, {}).items()))


def _by_kernels(path: Path, layers: dict[str, Tensor]) -> dict[int, str]:
    """k → module: five in a row, by their numbers, of the convolutions whose names begin alike."""
    wanted, runs = [(side, side) for side in KERNELS], []
    groups: dict[str, list[str]] = {}
    for module in sorted((m for m, weight in layers.items() if weight.ndim == 4), key=_natural):
        groups.setdefault(first_text(module), []).append(module)
    for group in groups.values():
        sides = [tuple(layers[module].shape[2:]) for module in group]
        runs += [group[i : i + 5] for i in range(len(group)) if sides[i : i + 5] == wanted]
    _one(path, [run[0] for run in runs])
    return dict(enumerate(runs[0], start=1)) if runs else {}


def _natural(name: str) -> list[int | str]:
    """Text and numbers by turns, so that features.3 comes before features.10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def _common(path: Path, run: list[str]) -> str:
    """What the names of a run have in common before the numbers that order them. Raises Failed where text does."""
    shared = []
    for one, following in pairwise(run):
        pairs = enumerate(zip(_natural(one), _natural(following), strict=False))
        place = next((i for i, (a, b) in pairs if a != b), 0)
        if place % 2 == 0:
            raise Failed(f"{path}: no number says which of {one!r} and {following!r} is first: name them conv1–conv5")
        shared.append("".join(re.split(r"(\d+)", one)[:place]))
    return min(shared, key=len)


def _one(path: Path, trunks: list[str]) -> None:
    if len(trunks) > 1:
        raise Failed(f"{path}: {len(trunks)} trunks in it ({', '.join(map(repr, trunks))}): save one of them alone")

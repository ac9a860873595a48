"""conv1–conv5 among named tensors: by name, or as five numbered convolutions with kernels 11, 5, 3, 3, 3.

Names and shapes decide, never the order of the tensors: a `.safetensors` file sorts its keys.
"""

import re
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from pretrain.alexnet import KERNELS
from pretrain.files import Failed
from pretrain.foreign.norms import EPS, Found, Modules, affines, conv_of_each_norm, first_text
from pretrain.foreign.trunks import Row, Trunk

# <module>.weight, <module>_w, <module>/0 …: Caffe2's and Caffe's ways beside torch's
KINDS = {"weight": "weight", "weights": "weight", "w": "weight", "0": "weight",
         "bias": "bias", "biases": "bias", "b": "bias", "1": "bias"}  # fmt: skip
PARAMETER = re.compile(r"(?P<module>.*?)[./_](?P<kind>weights?|bias(?:es)?|[wWbB]|[01]|running_mean|running_var)")
TRAINING = re.compile(r"num_batches_tracked$|momentum", re.IGNORECASE)  # says nothing of what the trunk computes
ALONE = "save conv1–conv5 and their BatchNorms alone"


def named_trunk(path: Path, tensors: dict[str, Tensor]) -> Trunk:
    """The trunk among `tensors`, the same whatever their order.

    Raises Failed when there is none, or more than one, and, naming it, for what is in the trunk by its name
    and is neither a convolution's weight or bias nor a BatchNorm that is known to follow one.
    """
    rows = {name: Row(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
    trunk = Trunk(tensors={}, rows=list(rows.values()))
    found = _found(path, tensors)
    for k, module in found.convs.items():
        for kind in ("weight", "bias"):
            if name := found.modules[module].get(kind):
                trunk.take(f"conv{k}.{kind}", tensors[name], rows[name])
    if len(found.convs) < len(KERNELS):
        return trunk  # what is missing is named when the shapes are checked
    for k, module in conv_of_each_norm(path, found).items():
        trunk.affines[k] = affines(path, module, found.modules[module], tensors)
        for name in found.modules[module].values():
            rows[name].fate = f"folded into conv{k}"
        trunk.remarks.append(f"{module}: taken to stand between conv{k} and its ReLU, with eps {EPS:g}")
    _check_rest(path, trunk, found)
    return trunk


def _check_rest(path: Path, trunk: Trunk, found: Found) -> None:
    """Raise Failed when something in the trunk was not taken. BatchNorms of other layers were told from it before."""
    norms = {name for names in found.modules.values() if "running_mean" in names for name in names.values()}
    rest = [row.blob for row in trunk.rows if row.fate == "ignored" and row.blob not in norms]
    if unknown := sorted(name for name in rest if found.inside(name) and not TRAINING.search(name)):
        raise Failed(f"{path}: {', '.join(unknown[:5])}: part of the trunk by name, but not a weight or bias of its "
                     f"convolutions, nor a BatchNorm: fold it, or {ALONE}")  # fmt: skip


def _found(path: Path, tensors: dict[str, Tensor]) -> Found:
    """The modules of the file, and which of them are the convolutions."""
    modules = _modules(tensors)
    weights = {module: tensors[names["weight"]] for module, names in modules.items() if "weight" in names}
    layers = {module: weight for module, weight in weights.items() if weight.ndim > 1}
    prefix, named = _by_name(path, modules)
    if len(named) < len(KERNELS) and (convs := _by_kernels(path, layers)):
        return Found(modules, tensors, layers, convs, _common(path, list(convs.values())), numbered=True)
    if not named:
        seen = ", ".join(f"{module} {tuple(weight.shape)}" for module, weight in layers.items() if weight.ndim == 4)
        raise Failed(f"{path}: no conv1–conv5 by name, and no five convolutions with kernels 11, 5, 3, 3, 3 in a row "
                     f"by the numbers in their names (found: {seen[:300] or 'no convolution'}): give another file, or "
                     "name them conv1–conv5")  # fmt: skip
    return Found(modules, tensors, layers, named, prefix, numbered=False)


def _modules(tensors: dict[str, Tensor]) -> Modules:
    found: Modules = {}
    for name in tensors:
        if match := PARAMETER.fullmatch(name):
            kind, names = KINDS.get(match["kind"].lower(), match["kind"]), found.setdefault(match["module"], {})
            names[kind] = min(name, names.get(kind, name))  # of conv1.w and conv1.weight one is then left over
    return found


def _by_name(path: Path, modules: Modules) -> tuple[str, dict[int, str]]:
    """The prefix, and k → module, for modules called <prefix>conv<k> with one prefix."""
    found: dict[str, dict[int, str]] = {}
    for module in sorted(modules, reverse=True):
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

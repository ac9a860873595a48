"""Which BatchNorm among named tensors belongs to which convolution, and what else stands in the trunk."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pretrain.files import Failed
from pretrain.foreign.trunks import Affine, batch_norm

EPS = 1e-5  # torch's default, which no state dict holds
NORM = re.compile(r"b(?:atch)?_?norm(?:2d)?|bn|norm", re.IGNORECASE)
LAYER = re.compile(r"conv|fc|linear|dense", re.IGNORECASE)

Modules = dict[str, dict[str, str]]  # module → kind of parameter → the tensor's name


@dataclass(frozen=True)
class Found:
    """A file's tensors by module; `layers` are the weights with two axes or more, `convs` the trunk's by number.

    The names of the trunk's convolutions begin with `prefix`. `numbered`: what then comes are numbers in the order
    of the layers (as torch's Sequential has them), else conv1 to conv5.
    """

    modules: Modules
    tensors: dict[str, Tensor]
    layers: dict[str, Tensor]
    convs: dict[int, str]
    prefix: str
    numbered: bool

    def inside(self, name: str) -> bool:
        """Whether a tensor or module is part of the trunk by its name."""
        if self.numbered:
            return self.place(name) < self._end()
        if not name.startswith(self.prefix):
            return False
        rest = name.removeprefix(self.prefix)
        unit = re.match(r"conv_?[1-5](?=[._/])|[a-z_]+[1-5](?=[._/]|$)", rest, re.IGNORECASE)
        return unit is not None and not any(_within(layer, self.prefix + unit[0]) for layer in self.others())

    def others(self) -> list[str]:
        """The layers that are none of the five convolutions."""
        return [layer for layer in self.layers if layer not in self.convs.values()]

    def place(self, name: str) -> tuple[float, ...]:
        """The numbers that order `name` among the trunk's, infinity where it is elsewhere."""
        rest = name.removeprefix(self.prefix)
        return numbers(rest) if name.startswith(self.prefix) and rest[:1].isdigit() else (math.inf,)

    def _end(self) -> tuple[float, ...]:
        """The place of the first layer behind conv5."""
        last = self.place(self.convs[len(self.convs)])
        return min((place for place in map(self.place, self.others()) if place > last), default=(math.inf,))


def first_text(name: str) -> str:
    """ "block1.0.conv" → "block"."""
    return re.split(r"\d", name, maxsplit=1)[0]


def numbers(name: str) -> tuple[int, ...]:
    """ "block1.0.conv" → (1, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", name))


def conv_of_each_norm(path: Path, found: Found) -> dict[int, str]:
    """k → the BatchNorm module of conv k: the one called after it, or numbered as the next in a sequence.

    BatchNorms that evidently follow another layer are left out. Raises Failed, naming it, where it cannot be told.
    """
    of = {module: k for k, module in found.convs.items()}
    norms: dict[int, str] = {}
    for module in sorted(m for m, names in found.modules.items() if "running_mean" in names):
        called = [layer for layer in found.layers if _called_after(module, layer) and _as_wide(found, module, layer)]
        owner = called[0] if len(called) == 1 else found.convs.get(_before(found, module), "") if not called else ""
        if not owner and not called and not found.inside(module) and _beside_another(found, module):
            continue
        if not owner or (k := of.get(owner)) in norms:
            raise Failed(f"{path}: cannot tell which convolution {module!r} belongs to: fold the BatchNorms first")
        if k:
            norms[k] = module
    return norms


def _called_after(norm: str, layer: str) -> bool:
    """conv1.bn, conv1_norm, bn1, norm_1 and bn_conv1 are called after conv1, block1.bn after block1.conv."""
    if _within(norm, layer):
        return True
    bare = NORM.sub("", norm)
    own, of = (re.sub(r"[._/]", "", name).lower() for name in (bare, NORM.sub("", layer)))
    return bare != norm and own in {of} | {of[: word.start()] + of[word.end() :] for word in LAYER.finditer(of)}


def _within(name: str, module: str) -> bool:
    return name.startswith(module) and name[len(module) :][:1] in ("", ".", "_", "/")


def _as_wide(found: Found, norm: str, layer: str) -> bool:
    return found.tensors[found.modules[norm]["running_mean"]].numel() == len(found.layers[layer])


def _before(found: Found, norm: str) -> int:
    """The k of the convolution right before `norm` in a numbered sequence, 0 if none is.

    One that stands further behind has something else in between, at best a ReLU, and could not be folded.
    """
    if not (found.numbered and found.inside(norm)):
        return 0
    own = found.place(norm)
    for k, conv in found.convs.items():
        *outer, last = found.place(conv)
        following = (*outer, last + 1)
        if own in (found.place(conv), following + (0,) * (len(own) - len(following))):
            return k
    return 0


def _beside_another(found: Found, norm: str) -> bool:
    """Whether a layer outside of the trunk begins alike or lies in the same parent module."""
    text, parent = first_text(norm), norm.rpartition(".")[0]
    others = found.others()
    return any(text == first_text(o) or (parent and parent == o.rpartition(".")[0]) for o in others)


def affines(path: Path, module: str, names: dict[str, str], tensors: dict[str, Tensor]) -> list[Affine]:
    """What the BatchNorm `module` does, by its statistics, then by its own scale and shift."""
    if "running_var" not in names:
        raise Failed(f"{path}: {module}.running_var is missing: obtain the file again")
    mean, var = tensors[names["running_mean"]], tensors[names["running_var"]]
    found = [batch_norm(module, mean, var, EPS)]
    if "weight" in names:
        scale = tensors[names["weight"]].double()
        shift = tensors[names["bias"]].double() if "bias" in names else torch.zeros_like(scale)
        found.append(Affine(module, scale, shift))
    return found

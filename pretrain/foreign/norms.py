"""Which BatchNorm among named tensors belongs to which convolution, and what else stands in the trunk."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pretrain.alexnet import KERNELS
from pretrain.files import Failed
from pretrain.foreign.names import STATISTICS, Modules, Scheme, of_a_head, of_a_scale, plain, scheme_of
from pretrain.foreign.trunks import Affine, batch_norm

NORM = re.compile(r"b(?:atch)?_?norm(?:ali[sz]ation)?(?:_?2d)?|bn|norm", re.IGNORECASE)
LAYER = re.compile(r"conv(?:olution)?(?:_?2d)?|fc|linear|dense", re.IGNORECASE)


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
        if re.match(r"conv_?[1-5](?!\d)", rest, re.IGNORECASE):
            return True
        own = re.split(r"[./]", rest)[0]  # norm1, cccp2, scale_conv3, but neither fc1 nor layer6
        number = re.search(r"\d+", own)
        return number is not None and 1 <= int(number[0][:9]) <= len(KERNELS) and not of_a_head(own)

    def others(self) -> list[str]:
        """The layers that are none of the five convolutions."""
        return [layer for layer in self.layers if layer not in self.convs.values()]

    def place(self, name: str) -> tuple[float, ...]:
        """The numbers that order `name` among the trunk's, infinity where it is elsewhere."""
        rest = name.removeprefix(self.prefix)
        return numbers(rest) if name.startswith(self.prefix) and rest[:1].isdigit() else (math.inf,)

    def behind(self, name: str) -> bool:
        """Whether `name` is numbered as what stands behind conv5 and the next layer."""
        return self.numbered and self._end() <= self.place(name) < (math.inf,)

    def beside(self, name: str) -> bool:
        """Whether `name` lies in a module that holds another layer, and none of the trunk's."""
        parent = name.rpartition(".")[0] or name.rpartition("/")[0]
        while parent:
            if any(_within(conv, parent) for conv in self.convs.values()):
                return False
            if any(_within(other, parent) for other in self.others()):
                return True
            parent = parent.rpartition(".")[0] or parent.rpartition("/")[0]
        return False

    def elsewhere(self, name: str) -> bool:
        """Whether `name`, which is not inside, evidently belongs to a layer that is none of the trunk's."""
        if of_a_head(name.removeprefix(self.prefix)) or self.behind(name) or self.beside(name):
            return True
        return any(_within(name, other) for other in self.others())

    def _end(self) -> tuple[float, ...]:
        """The place of the first layer behind conv5."""
        last = self.place(self.convs[len(self.convs)])
        return min((place for place in map(self.place, self.others()) if place > last), default=(math.inf,))


def unknown(found: Found, name: str) -> bool:
    """Whether the tensor `name`, which was not taken, is or may be part of what the trunk computes.

    That is what is inside of it by name, and what could be a scale, shift or slope of its channels (or of its
    pixels) by its shape and is evidently of no other layer.
    """
    own, tensor = plain(name), found.tensors[name]
    if found.inside(own):
        return True
    widths = [len(found.layers[conv]) for conv in found.convs.values() if conv in found.layers]
    if tensor.ndim == 4 and len(tensor) in widths[:4] and tensor.shape[1] in (1, len(tensor)):
        # a layer that mixes the channels of one, or filters each
        return not (of_a_head(own.removeprefix(found.prefix)) or found.behind(own))
    if not tensor.is_floating_point() or found.elsewhere(own):
        return False
    if tensor.numel() == 1:
        return of_a_scale(own)
    return sum(size > 1 for size in tensor.shape) == 1 and tensor.numel() in {3, len(found.convs), *widths}


def first_text(name: str) -> str:
    """ "block1.0.conv" → "block"."""
    return re.split(r"\d", name, maxsplit=1)[0]


def numbers(name: str) -> tuple[int, ...]:
    """ "block1.0.conv" → (1, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", name))


def conv_of_each_norm(path: Path, found: Found) -> dict[int, tuple[str, Scheme]]:
    """k → the BatchNorm module of conv k, and whose: the one called after it, or numbered as the next in a sequence.

    BatchNorms that evidently follow another layer are left out. Raises Failed, naming it, where it cannot be told.
    """
    of = {module: k for k, module in found.convs.items()}
    norms: dict[int, tuple[str, Scheme]] = {}
    for module in sorted(m for m, names in found.modules.items() if not STATISTICS.isdisjoint(names)):
        if _of_pixels(found, module):
            continue
        scheme = scheme_of(found.modules[module]) if module not in found.layers else None
        called = [layer for layer in found.layers if _called_after(module, layer) and _as_wide(found, module, layer)]
        owner = called[0] if len(called) == 1 else found.convs.get(_before(found, module), "") if not called else ""
        if not owner and not called and not found.inside(module) and found.elsewhere(module):
            continue
        k = of.get(owner)
        if scheme is None and (owner not in found.layers or k):
            raise Failed(
                f"{path}: {module!r} has {', '.join(sorted(found.modules[module]))}, which is no BatchNorm with mean "
                "and variance as a framework names it: fold it into its convolution first"
            )
        if not owner or k in norms:
            raise Failed(f"{path}: cannot tell which convolution {module!r} belongs to: fold the BatchNorms first")
        if k and scheme:
            norms[k] = module, scheme
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


def _of_pixels(found: Found, norm: str) -> bool:
    """Whether these are means or deviations of three colours, which unknown() refuses with what is to be given."""
    kinds = found.modules[norm].items()
    return not found.inside(norm) and {found.tensors[n].numel() for kind, n in kinds if kind in STATISTICS} == {3}


def _as_wide(found: Found, norm: str, layer: str) -> bool:
    names = found.modules[norm]
    statistics = [found.tensors[name].numel() for kind, name in names.items() if kind in STATISTICS]
    return set(statistics) == {len(found.layers[layer])}


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


def affine(path: Path, module: str, scheme: Scheme, found: Found) -> Affine:
    """What the BatchNorm `module` does: by its statistics, then by its own scale and shift."""
    names = found.modules[module]
    kinds = [kind for kind in (scheme.mean, scheme.var, scheme.scale, scheme.shift) if kind in names]
    own = {kind: found.tensors[names[kind]].flatten() for kind in kinds}
    if len({len(tensor) for tensor in own.values()}) != 1:
        sizes = ", ".join(f"{names[kind]} {tuple(found.tensors[names[kind]].shape)}" for kind in kinds)
        raise Failed(f"{path}: a BatchNorm whose parameters differ in size ({sizes}): obtain the file again")
    scale, shift = own.get(scheme.scale), own.get(scheme.shift)
    return batch_norm(module, own[scheme.mean], own[scheme.var], scheme.eps, scale=scale, shift=shift)

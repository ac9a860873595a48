"""Learns encoders; knows nothing of tasks or tables. One module per method, one line each in METHODS.

A method's module holds

- ``SUPERVISION``: the word in the table's second column;
- ``MASKS``: the mask kinds it can be given (the first is the default), or ();
- ``defaults(mask) -> Defaults``: the paper's budget; ``TINY``: one for the embedded data;
- ``build(*, mask, loss, shapes) -> Pretext``: the network that turns images into a loss.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from pretrain.files import Failed

if TYPE_CHECKING:  # slow to import, and the names of the methods need none of it
    import torch
    from torch import Tensor

    from pretrain.alexnet import AlexNet

METHODS = {
    "random": "pretrain.gaussian",
    "kmeans": "pretrain.kmeans",
    "autoencoder": "pretrain.autoencoder",
    "context": "pretrain.context",
}


@dataclass(frozen=True)
class Defaults:
    """A training budget: iterations, images per batch, Adam's learning rate.

    Without iterations a method is not trained: it is given one batch to calibrate on, or, with
    batch 0, needs no images at all.
    """

    iterations: int
    batch: int
    rate: float


class Pretext(Protocol):
    """A torch module that owns an encoder and returns its own loss."""

    encoder: "AlexNet"

    def __call__(self, images: "Tensor", random: "torch.Generator") -> "Tensor":
        """N×3×227×227, mean-subtracted → the loss, a scalar."""

    def calibrate(self, images: "Tensor") -> None:
        """Called once, with the first batch, before training (torch's generator is seeded for it)."""

    def pictures(self, images: "Tensor", random: "torch.Generator") -> "list[Tensor]":
        """What to look at while it trains: some N×3×H×W, mean-subtracted, or nothing."""


class MethodModule(Protocol):
    """What a module named in METHODS offers."""

    SUPERVISION: str
    MASKS: tuple[str, ...]
    TINY: Defaults
    defaults: Callable[[str | None], Defaults]
    build: "Callable[..., torch.nn.Module]"


def method_module(name: str) -> MethodModule:
    """The module of a method, imported now."""
    return import_module(METHODS[name])


def row_name(method: str, variant: str) -> str:
    """A row's name, fit for a path. Raises Failed when an encoder's provenance holds anything else."""
    name = "-".join(filter(None, (method, variant)))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
        raise Failed(
            f"{name!r}: not a row's name (letters, digits, '_', '.', '+', '-'): correct the encoder's provenance"
        )
    return name

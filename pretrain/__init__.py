"""Learns encoders; knows nothing of tasks or tables. One module per method, one line each in METHODS.

A method's module holds

- ``SUPERVISION``: the word in the table's second column;
- ``VERSION``: raised with any change that gives other numbers for the same options: older results are then stale;
- ``STARTS``: other starts of its encoder than the fillers that it is built with, or ();
- ``MASKS``: the mask kinds it can be given (the first is the default), or ();
- ``defaults(mask) -> Defaults``: the paper's budget; ``TINY``: one for the embedded data;
- ``EMBEDDED``: the folder of that data it is trained on, "images", "videos" or "odometry";
- ``source(folders) -> Source``: what it is trained on, found and checked but not yet decoded;
- ``build(data, *, mask, loss, shapes) -> Pretext``: the network that turns batches into a loss.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from pretrain.files import Failed

if TYPE_CHECKING:  # slow to import, and the names of the methods need none of it
    from torch import Tensor

    from pretrain.pretext import Pretext
    from pretrain.randomness import Draw
    from pretrain.store import Source

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

METHODS = {
    "labels": "pretrain.labels",
    "random": "pretrain.gaussian",
    "kmeans": "pretrain.kmeans",
    "autoencoder": "pretrain.autoencoder",
    "egomotion": "pretrain.egomotion",
    "tracking": "pretrain.tracking",
    "relative": "pretrain.relative",
    "context": "pretrain.context",
}


@dataclass(frozen=True)
class Folders:
    """Where a run's data lies: stills, videos (or frames with poses), VOC folders with masks (silhouettes)."""

    images: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()
    shapes: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Solver:
    """Adam (Caffe's betas, 0.9 and 0.999), or Caffe's SGD: biases at twice the rate, without decay.

    The rate is multiplied by `drop` after every `step` iterations (0: never).
    """

    name: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    decay: float = 0.0
    step: int = 0
    drop: float = 1.0


ADAM = Solver()


@dataclass(frozen=True)
class Defaults:
    """A training budget: iterations, items per batch, learning rate, solver.

    Without iterations a method is not trained: it is given one batch to calibrate on, or, with
    batch 0, needs no images at all. `calibrate`: whether fresh layers start from data-dependent
    scales, without which the shrunken budgets would end on the plateau that Caffe's fillers start on.
    """

    iterations: int
    batch: int
    rate: float
    solver: Solver = ADAM
    calibrate: bool = False


class Dataset(Protocol):
    """Decoded data, from which batches are made."""

    record: dict[str, Any]  # what an encoder's provenance says of it: name, images, skipped, sha256, …
    train: "Tensor"  # int64, the items to train on
    held_out: "Tensor"  # int64, the items to score the head on; may be empty

    def read(self, items: "Tensor") -> "tuple[Tensor, ...]":
        """Tensors on the CPU whose first dimension is `items`; called from a thread."""

    def batch(self, raw: "tuple[Tensor, ...]", draw: "Draw", *, held_out: bool = False) -> Any:
        """What the pretext takes, from what was read (by now on the training device)."""


class MethodModule(Protocol):
    """What a module named in METHODS offers."""

    SUPERVISION: str
    VERSION: int
    MASKS: tuple[str, ...]
    STARTS: tuple[str, ...]
    TINY: Defaults
    EMBEDDED: str
    defaults: Callable[[str | None], Defaults]
    source: "Callable[[Folders], Source]"
    build: "Callable[..., Pretext[Any]]"


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

"""Checkpoints: written whole, and everything in them checked before anything of it is used."""

import math
import os
import stat
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.files import Failed, Usage, atomic

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

REMEDY = "delete it to start this run over"
SECONDS = "BENCH_CHECKPOINT_SECONDS"


def checkpoint_seconds() -> float:
    """Seconds between two checkpoints: $BENCH_CHECKPOINT_SECONDS, or 60. Raises Usage unless it is a number ≥ 0."""
    said = os.environ.get(SECONDS) or "60"
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise Usage(f"${SECONDS}={said[:40]!r}: not a number of seconds: give one, 0 or more, or unset it")
    return seconds


def checkpoint_due(*, seconds: float | None = None) -> Callable[[], bool]:
    """A function that says True when `seconds` (None: checkpoint_seconds()) have passed since it last did.

    When a checkpoint is written does not change any number, so it may follow the clock.
    """
    every = checkpoint_seconds() if seconds is None else seconds
    last = time.monotonic()

    def due() -> bool:
        nonlocal last
        if time.monotonic() - last < every:
            return False
        last = time.monotonic()
        return True

    return due


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and containers of them) to `path`, atomically."""
    import torch

    with atomic(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """What save_checkpoint wrote at `path`, on the CPU, or None when there is no such file.

    Raises Failed when the file is damaged. No pickle is executed (weights_only), and none unfolds to more than it
    takes on disk.
    """
    import torch

    if not path.exists():
        return None
    try:
        _check_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise Failed(f"{path}: damaged checkpoint: {REMEDY}") from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise Failed(f"{path}: damaged checkpoint: {REMEDY}")
    return state


def _check_file(path: Path) -> None:
    """Raise ValueError unless it is a file as torch.save writes it: a zip of parts that are stored as they are."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    with zipfile.ZipFile(path) as parts:
        infos = parts.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise ValueError("compressed")
        if sum(info.file_size for info in infos) > status.st_size:
            raise ValueError("larger than its file")


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Say of a state that does not fit that the checkpoint at `path` is not one of what is built here: Failed."""
    try:
        yield
    except Failed:
        raise
    except Exception as error:
        reason = f" ({error})" if isinstance(error, Unfit) else ""
        raise Failed(f"{path}: not a checkpoint of this network{reason}: {REMEDY}") from error


class Unfit(ValueError):
    """What of a checkpoint does not fit, in a few words."""


def restore(
    path: Path, saved: dict[str, Any], *, network: "tuple[str, nn.Module]", optimizer: "Optimizer | None",
    count: str, most: int,
) -> int:  # fmt: skip
    """Put what `saved` holds into the network, under its key, and the optimizer; return the `count` behind it.

    All is checked first: names, types, shapes, finite values, a count from 0 to `most`. Raises Failed.
    """
    key, module = network
    with restoring(path):
        done = whole(saved, count, most=most)
        state, expected = saved[key], module.state_dict()
        if not isinstance(state, dict) or set(state) != set(expected):
            raise Unfit("its tensors have other names")
        for name, tensor in state.items():
            check_tensor(tensor, expected[name], name)
        if optimizer is not None:
            _check_optimizer(saved["optimizer"], optimizer)
            optimizer.load_state_dict(saved["optimizer"])
        module.load_state_dict(state)
    return done


def ended(saved: Mapping[str, Any] | None, count: str, *, most: int) -> bool:
    """Whether there is a checkpoint, and it is that of the end: its `count` is `most`."""
    return saved is not None and type(saved.get(count)) is int and saved[count] == most


def made_by(saved: Mapping[str, Any], key: str, run: str) -> bool:
    """Whether a checkpoint says under `key` that it is of this `run`."""
    return isinstance(saved.get(key), str) and saved[key] == run


def whole(saved: Mapping[str, Any], key: str, *, most: int) -> int:
    """A whole number from 0 to `most`. Raises Unfit."""
    value = saved.get(key)
    if type(value) is not int or not 0 <= value <= most:
        raise Unfit(f"its {key} is not a number from 0 to {most}")
    return value


def finite(saved: Mapping[Any, Any], key: Any, *, least: float = -math.inf) -> float:
    """A finite number, at least `least`. Raises Unfit."""
    value = saved.get(key)
    if not _is_number(value) or float(value) < least:  # type: ignore[arg-type]
        raise Unfit(f"its {key} is not a number")
    return float(value)  # type: ignore[arg-type]


def check_tensor(found: Any, expected: Any, name: str) -> None:
    """Raise Unfit unless `found` is a tensor like `expected` (its type and shape), and finite."""
    import torch

    if not isinstance(found, torch.Tensor) or found.layout != torch.strided or found.device.type != "cpu":
        raise Unfit(f"{name} is no tensor")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise Unfit(f"{name} has another shape or type")
    if found.is_floating_point() and not found.isfinite().all():
        raise Unfit(f"{name} has NaN or infinite values")


def _check_optimizer(state: Any, optimizer: "Optimizer") -> None:
    """Raise Unfit unless `state` is one that this optimizer could have saved."""
    import torch

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups, slots = state["param_groups"], state["state"]
    number = 0
    if not isinstance(groups, list) or len(groups) != len(optimizer.param_groups) or not isinstance(slots, dict):
        raise Unfit("its optimizer has other groups")
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        count = len(own["params"])
        if group["params"] != list(range(number, number + count)) or not set(own) >= set(group):
            raise Unfit("its optimizer has other groups")
        number += count
        for key in set(group) - {"params"}:
            if not _alike(group[key], own[key]):
                raise Unfit(f"its optimizer's {key} is of another kind")
    for index, values in slots.items():
        if type(index) is not int or not 0 <= index < len(parameters) or not isinstance(values, dict):
            raise Unfit("its optimizer has other parameters")
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                like = parameters[index] if value.ndim else torch.zeros((), dtype=value.dtype)
                check_tensor(value, like, f"its optimizer's {key}")
            elif value is not None and not _is_number(value):
                raise Unfit(f"its optimizer's {key} is no tensor")


def _alike(value: Any, own: Any) -> bool:
    """Whether an option of an optimizer can be what `own` stands for: a switch, a number, or numbers."""
    if isinstance(own, tuple | list):
        return isinstance(value, tuple | list) and len(value) == len(own) and all(map(_alike, value, own))
    return _is_number(value) if _is_number(own) else type(value) is type(own) or value is None or own is None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300

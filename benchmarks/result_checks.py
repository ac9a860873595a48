"""What must be in a result file, field by field: types, ranges, sizes. So tables need not ask."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from pretrain import row_name
from pretrain.alexnet import described
from transfer import TASKS, find_recipe

Check = Callable[[Any], bool]
IMAGES = 200_000  # of a split; a thousand resamplings of so many take 1.6 GB
LARGE = 2**53  # what a number may be where nothing bounds it
TEXT, PACKED = 2_000, 200 * 2**20  # characters


def whole(low: int, high: int) -> Check:
    """An int of that range, no bool."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def real(low: float, high: float) -> Check:
    """A finite number of that range, no bool."""
    return lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and math.isfinite(value)
    )


def text(value: Any) -> bool:
    """A line that can stand in a table."""
    return isinstance(value, str) and len(value) <= TEXT and value.isprintable()


def mapping(each: Check) -> Check:
    """Lines → what `each` takes."""
    return lambda value: isinstance(value, dict) and all(text(key) and each(found) for key, found in value.items())


def optional(check: Check) -> Check:
    """The same, or None."""
    return lambda value: value is None or check(value)


def truth(value: Any) -> bool:
    """True or False."""
    return isinstance(value, bool)


COUNT, AMOUNT = whole(0, LARGE), real(-LARGE, LARGE)
SCORE = real(-1e-9, 1 + 1e-9)  # sums of floats may end a little beyond
RESULT: dict[str, Check] = {
    "method": text,
    "variant": text,
    "task": lambda value: isinstance(value, str) and value in TASKS,
    "seed": COUNT,
    "recipe.name": text,
    "recipe.sha256": text,
    "data.name": text,
    "data.split": text,
    "data.sha256": text,
    "data.images.train": whole(0, LARGE),
    "data.images.test": whole(1, IMAGES),
    "data.sources": mapping(text),
    "encoder.sha256": text,
    "encoder.provenance": lambda value: isinstance(value, dict),
    "receipt": mapping(COUNT),
    "metrics": mapping(SCORE),
    "per_class": mapping(optional(SCORE)),
    "per_image": lambda value: isinstance(value, str) and len(value) <= PACKED,
    "seconds": real(0, LARGE),
    "resumed": truth,
    "peak_memory_bytes": COUNT,
    "hardware": text,
    "versions": mapping(optional(text)),
    "commit": text,
    "dirty": truth,
}
# What an encoder may say of itself; older ones lack some. What is not here no table reads.
PROVENANCE: dict[str, Check] = {
    "method": text,
    "variant": optional(text),
    "supervision": optional(text),
    "data": optional(text),
    "hardware": optional(text),
    "label": optional(text),
    "mask": optional(text),
    "precision": optional(text),
    "start": optional(text),
    "loss": optional(text),
    "iterations": optional(COUNT),
    "of_iterations": optional(COUNT),
    "batch": optional(COUNT),
    "seconds": optional(real(0, LARGE)),
    "rate": optional(AMOUNT),
    "processes": optional(whole(1, LARGE)),
    "version": optional(COUNT),
    "calibrate": optional(truth),
    "held_out": optional(mapping(AMOUNT)),
    "layers": optional(mapping(mapping(optional(AMOUNT)))),
    "solver.name": optional(text),
    "source.file": text,
    "dataset.name": text,
    "dataset.images": COUNT,
    "rescaled.dataset.name": text,
}
NEVER = object()


def check_result(result: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the field, unless a result holds all that tables read, within bounds."""
    for field, check in RESULT.items():
        _check(result, field, check)
    task, images = TASKS[result["task"]], result["data"]["images"]
    if missing := [name for name in _metrics(result) if name not in result["metrics"]]:
        raise ValueError(f"metrics.{missing[0]} is missing")
    if not set(images) <= {"train", "test"}:
        raise ValueError(f"data.images has {sorted(map(str, images))}")
    if result["encoder"].get("architecture", NEVER) is not None or task.table != "probes":  # a descriptor has none
        described(result["encoder"]["architecture"])
    check_provenance(result["encoder"]["provenance"])


def _metrics(result: Mapping[str, Any]) -> list[str]:
    """The names of the metrics that a result of its task must have."""
    task = TASKS[result["task"]]
    names = [task.metric, f"chance_{task.metric}"]
    if task.table == "probes":
        names.append(f"chance_{task.metric}_spread")  # older results of the other table lack it
    if result["task"] == "low-shot":
        sizes = getattr(find_recipe("low-shot", result["recipe"]["name"]), "sizes", ())
        names += [f"k{size}_{end}" for size in sizes for end in ("filled", "map_sklearn")]
    if result["task"] == "svm":
        layers = [name.removeprefix("cv_") for name in result["metrics"] if name.startswith("cv_")]
        names += [f"{layer}_map_sklearn" for layer in layers] if layers else ["cv_conv1"]
    return names


def check_provenance(provenance: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the field, unless what an encoder says of itself is what tables can read."""
    row_name(provenance["method"], provenance.get("variant") or "")
    for field, check in PROVENANCE.items():
        parts = field.split(".")
        above = [".".join(parts[:depth]) for depth in range(1, len(parts))]
        if parts[0] not in provenance or any(not _at(provenance, path) for path in above):
            continue  # not said, or that there is none
        _check(provenance, field, check, said="encoder.provenance.")
    if provenance.get("of_iterations") is not None:  # an encoder on the way
        for field in ("iterations", "batch", "rate", "layers"):
            if provenance.get(field) is None:
                raise ValueError(f"encoder.provenance.{field} is missing")


def _check(found: Mapping[str, Any], field: str, check: Check, said: str = "") -> None:
    value = _at(found, field)
    if value is NEVER:
        raise ValueError(f"{said}{field} is missing")
    if not check(value):
        raise ValueError(f"{said}{field} is {shown(value, check)}")


def shown(value: Any, check: Check) -> str:
    """A value that is not what it must be, in short; of a mapping, the first that is not."""
    if isinstance(value, dict):
        for key, one in value.items():
            if not check({key: one}):
                return f"{str(key)[:60]!r}: {str(one)[:60]!r}, out of type or range"
    return f"{str(value)[:60]!r}, out of type or range"


def _at(found: Any, field: str) -> Any:
    for part in field.split("."):
        if not isinstance(found, dict) or part not in found:
            return NEVER
        found = found[part]
    return found

"""Which results a table can print: those whose per-image scores can be read, and give their scores."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Read, Result, leave_out, result_path, unpacked
from pretrain.files import Failed
from transfer import TASKS, voc
from transfer.resampling import RESAMPLES

AGAIN = "delete it and run `bench transfer` again"
MOST = 2_000_000  # detections; full VOC07's best hold 100,000


def sound(results: Iterable[Result]) -> list[Result]:
    """The results that can be printed; the others are left out, and named on stderr.

    Raises Failed, naming the first, when there are results and none can.
    """
    found, bad = [], []
    for result in results:
        try:
            check_scores(result)
            found.append(result)
        except Failed as error:
            bad.append(error)
    leave_out(bad, all_of_them=not found)
    return found


def check_scores(result: Result) -> None:
    """Raise Failed, naming the file, unless the per-image scores of a result give its score."""
    task, metrics = result["task"], result["metrics"]
    score, images = metrics[TASKS[task].metric], result["data"]["images"]["test"]
    try:
        kept = unpacked(result["per_image"])
        _check_shapes(kept, images)
        with np.errstate(all="ignore"):
            (own,) = TASKS[task].load().resampled(kept, np.ones((1, images), np.int64))
        for name in replicated(task, metrics):
            if (shape := kept[name].shape) != (RESAMPLES,) or kept[name].dtype != np.uint16 or not kept[name].any():
                raise ValueError(f"{name}: {kept[name].dtype} of shape {shape}, not {RESAMPLES} replicates")
    except Exception as error:  # arrays of any shape and content come here
        what = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise Failed(
            f"{place(result)}: its per-image scores cannot be read ({' '.join(what.split())[:200]}): {AGAIN}"
        ) from error
    if not np.isclose(own, score, rtol=0, atol=1e-9):
        raise Failed(f"{place(result)}: its per-image scores give {own:.4f}, not its score: {AGAIN}")


def _check_shapes(kept: Mapping[str, NDArray[Any]], images: int) -> None:
    """Raise ValueError, or KeyError, unless the arrays are of as many images and classes as there are."""
    classes = len(voc.CLASSES)
    each = dict.fromkeys(("scores", "labels", "ranks", "positives"), (images, classes))  # low-shot: several rankings
    for name, shape in (each | {"tables": (images, classes + 1, classes + 1), "lengths": (classes,)}).items():
        if name in kept and (kept[name].shape[-len(shape) :] != shape or kept[name].ndim > 3):
            raise ValueError(f"{name} of shape {kept[name].shape}, not {shape}")
    if "true" in kept:  # detections
        true, found = kept["true"], kept["images"]
        if true.shape != found.shape or len(found) > MOST or np.count_nonzero(true) > kept["positives"].sum():
            raise ValueError("more detections than there can be")


def replicated(task: str, metrics: dict[str, float]) -> list[str]:
    """The names of the replicates that a result of a probe keeps: one for each layer, or number of images."""
    if task not in ("svm", "low-shot"):
        return []
    ends = [name.removesuffix("_map_sklearn") for name in metrics if name.endswith("_map_sklearn")]
    return [f"replicates_{end}" for end in ends if end != "best" and not end.startswith("chance")]


def place(result: Result) -> Path:
    """Where it was read; of one that was not, its path under the results folder."""
    if isinstance(result, Read):
        return result.path
    identity = {key: result[key] for key in ("method", "variant", "task", "seed")}
    return result_path(Path(), recipe=result["recipe"]["name"], **identity)

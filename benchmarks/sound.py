"""Which results a table can print: those whose per-image scores can be read, and give their scores."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.results import Read, Result, leave_out, result_path, unpacked
from pretrain.files import Failed
from transfer import TASKS
from transfer.resampling import RESAMPLES

AGAIN = "delete it and run `bench transfer` again"
MOST = 1_000_000  # rows of an array; a thousand resamplings of a detection that is true take 8 kB


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
        if any(len(array) > MOST for array in kept.values()):
            raise ValueError(f"more than {MOST:,} rows")
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

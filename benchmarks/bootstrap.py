"""How sure a score is, given its test images: percentile intervals over resampled test sets.

This is not the spread over seeds: it asks what other test images would have given, the seeds ask what
another training run would have. The resamplings of n images are the same for every result on n
images, so two rows on the same data are resampled together, and their difference is a paired one.

A resampling repeats images, and the copies of a hit stand together in the ranking, which lifts AP (on
500 images by about a point). So replicates are shifted to have the score as their mean: the interval
says how far another test set would have moved the score, not where repeated images would have put it.

It speaks of test sets of the same size: AP itself is biased upwards on few images (see results/README.md).
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Result, unpacked
from benchmarks.sound import AGAIN, place
from pretrain.files import Failed
from transfer import TASKS
from transfer.resampling import RESAMPLES as RESAMPLES
from transfer.resampling import resamplings

LEVEL = 95  # percent


def replicates(results: Sequence[Result]) -> NDArray[np.float64]:
    """RESAMPLES values of the headline metric in percent, the mean over `results`: the seeds of one cell."""
    return np.asarray(np.mean([_replicates(result) for result in results], axis=0))


def _replicates(result: Result) -> NDArray[np.float64]:
    task, images = result["task"], result["data"]["images"]["test"]
    return _computed(place(result), task, images, result["metrics"][TASKS[task].metric], result["per_image"])


@cache  # intervals, letters and the control's line ask for the same
def _computed(where: Path, task: str, images: int, score: float, per_image: str) -> NDArray[np.float64]:
    try:
        weights = np.vstack([np.ones(images, np.int64), resamplings(images)])
        kept = TASKS[task].load().resampled(unpacked(per_image), weights)
    except (KeyError, IndexError, ValueError) as error:
        raise Failed(f"{where}: its per-image scores cannot be read ({error}): {AGAIN}") from error
    if not np.isclose(kept[0], score, rtol=0, atol=1e-9):
        raise Failed(f"{where}: its per-image scores give {kept[0]:.4f}, not its score: {AGAIN}")
    values = 100 * np.asarray(kept[1:] - np.nanmean(kept[1:]) + kept[0])
    values.setflags(write=False)
    return values


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle LEVEL percent of the replicates; those without any class to score are left out."""
    low, high = np.nanpercentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)

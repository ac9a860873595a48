"""The resampled test sets behind every interval: the same for all results on as many images."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000


@cache
def resamplings(images: int) -> NDArray[np.int64]:
    """RESAMPLES×images: how often each image is drawn, `images` draws with replacement."""
    random = np.random.default_rng(images)
    return random.multinomial(images, np.full(images, 1 / images), size=RESAMPLES)

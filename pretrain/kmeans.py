"""Krähenbühl et al.'s k-means initialisation as a row of its own (protocols 7.1, 7.7): images, but no training.

Published: 56.6 / 45.6 / 32.6, above the context encoder in all three columns.
"""

from functools import partial

from torch import Tensor

from pretrain import Dataset, Defaults
from pretrain.alexnet import AlexNet
from pretrain.images import still_images
from pretrain.pretext import Pretext
from pretrain.randomness import Draw
from pretrain.rescale import IMAGES, kmeans_trunk

SUPERVISION = "initialization"
VERSION = 1
MASKS = ()
STARTS = ()
TINY = Defaults(iterations=0, batch=IMAGES, rate=0.0)
EMBEDDED = "images"
source = partial(still_images, supervision=SUPERVISION)


def defaults(mask: str | None) -> Defaults:
    """Released code: 10 batches of 16 images, which we take as one; no iteration."""
    del mask
    return Defaults(iterations=0, batch=IMAGES, rate=0.0)


def build(data: Dataset | None, *, mask: str | None, loss: str, shapes: Tensor | None) -> "KMeans":
    """The encoder before it has seen its images."""
    del data, mask, loss, shapes
    return KMeans()


class KMeans(Pretext[Tensor]):
    """An encoder that `calibrate` initialises. It has no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AlexNet()

    def calibrate(self, batch: Tensor, draw: Draw, *, fresh: bool) -> None:
        """N×3×227×227: the within-layer step with k-means filters, conv1 to conv5, then the between-layer step."""
        del draw, fresh
        kmeans_trunk(self.encoder, batch)

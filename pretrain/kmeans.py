"""Krähenbühl et al.'s k-means initialisation as a row of its own (protocols 7.1, 7.7): images, but no training.

Published: 56.6 / 45.6 / 32.6, above the context encoder in all three columns.
"""

import torch
from torch import Tensor, nn

from pretrain import Defaults
from pretrain.alexnet import AlexNet
from pretrain.files import Usage
from pretrain.randomness import generator
from pretrain.rescale import IMAGES, initialise, rescale_trunk

SUPERVISION = "initialization"
MASKS = ()
TINY = Defaults(iterations=0, batch=IMAGES, rate=0.0)  # on the embedded data, without --images


def defaults(mask: str | None) -> Defaults:
    """Released code: 10 batches of 16 images, which we take as one; no iteration."""
    del mask
    return Defaults(iterations=0, batch=IMAGES, rate=0.0)


def build(*, mask: str | None, loss: str, shapes: Tensor | None) -> "KMeans":
    """The encoder before it has seen its images."""
    del mask, loss, shapes
    return KMeans()


class KMeans(nn.Module):
    """An encoder that `calibrate` initialises. It has no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AlexNet()

    def calibrate(self, images: Tensor) -> None:
        """N×3×227×227: the within-layer step with k-means filters, conv1 to conv5, then the between-layer step."""
        random = generator(torch.initial_seed(), "kmeans")
        initialise(self.encoder.convs(), lambda: self.encoder(images), kind="kmeans", random=random)
        rescale_trunk(self.encoder, images, random=random)

    def forward(self, images: Tensor, random: torch.Generator) -> Tensor:
        """Raises Usage."""
        del images, random
        raise Usage("method kmeans is not trained: leave --iterations out, or give 0")

    def pictures(self, images: Tensor, random: torch.Generator) -> list[Tensor]:
        """Nothing to look at."""
        del images, random
        return []

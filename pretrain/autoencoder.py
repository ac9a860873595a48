"""The autoencoder row of Table 2 (protocols 2.4): the context encoder's parts, the whole input as target."""

from functools import partial

import torch
from torch import Tensor

from pretrain import Dataset, Defaults
from pretrain.context import ContextEncoder, Distance
from pretrain.images import still_images
from pretrain.pretext import Loss
from pretrain.randomness import Draw

SUPERVISION = "-"
VERSION = 1
MASKS = ()
STARTS = ("scaled", "kmeans")
TINY = Defaults(iterations=60, batch=16, rate=1e-4)
EMBEDDED = "images"
source = partial(still_images, supervision=SUPERVISION)


def defaults(mask: str | None) -> Defaults:
    """Paper: 14 h, as long as the context encoder; nothing else is stated. We: its budget and rate."""
    del mask
    return Defaults(iterations=100_000, batch=64, rate=1e-4)


def build(data: Dataset | None, *, mask: str | None, loss: Distance, shapes: Tensor | None) -> "Autoencoder":
    """An autoencoder."""
    del data, mask, shapes
    return Autoencoder(loss=loss)


class Autoencoder(ContextEncoder):
    """Images → loss: nothing is dropped on the way in, everything counts on the way out.

    Paper: whether the channel-wise bridge stays is not stated; we keep it, so that the two rows
    differ in the hole alone.
    """

    def __init__(self, *, loss: Distance = "l2") -> None:
        super().__init__(mask="central", loss=loss)

    def forward(self, batch: Tensor, draw: Draw) -> Loss:
        """N×3×227×227, mean-subtracted → the mean error over all values."""
        error = self.error(self.reconstruct(batch, draw) - batch)
        return Loss(error.sum(), torch.tensor(error.numel()))

    @torch.no_grad()
    def scores(self, batch: Tensor, draw: Draw) -> dict[str, Tensor]:
        """The share of each image's variance about its mean colour that the reconstruction explains."""
        left = (self.reconstruct(batch, draw) - batch).square().sum()
        spread = (batch - batch.mean((2, 3), keepdim=True)).square().sum()
        return {"explained": 1 - left / spread, "chance_explained": torch.zeros(())}

    @torch.no_grad()
    def pictures(self, batch: Tensor, draw: Draw) -> list[Tensor]:
        """The input and its reconstruction: two N×3×227×227."""
        return [batch[:8], self.reconstruct(batch[:8], draw)]

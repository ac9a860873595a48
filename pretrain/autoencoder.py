"""The autoencoder row of Table 2 (protocols 2.4): the context encoder's parts, the whole input as target."""

import torch
from torch import Tensor

from pretrain import Defaults
from pretrain.context import ContextEncoder, Loss

SUPERVISION = "-"
MASKS = ()
TINY = Defaults(iterations=240, batch=32, rate=1e-4)  # on the embedded data, without --images


def defaults(mask: str | None) -> Defaults:
    """Paper: 14 h, as long as the context encoder; nothing else is stated. We: its budget and rate."""
    del mask
    return Defaults(iterations=100_000, batch=64, rate=1e-4)


def build(*, mask: str | None, loss: Loss, shapes: Tensor | None) -> "Autoencoder":
    """An autoencoder."""
    del mask, shapes
    return Autoencoder(loss=loss)


class Autoencoder(ContextEncoder):
    """Images → loss: nothing is dropped on the way in, everything counts on the way out.

    Paper: whether the channel-wise bridge stays is not stated; we keep it, so that the two rows
    differ in the hole alone.
    """

    def __init__(self, *, loss: Loss = "l2") -> None:
        super().__init__(mask="central", loss=loss)

    def forward(self, images: Tensor, random: torch.Generator) -> Tensor:
        """N×3×227×227, mean-subtracted → the mean error over all values."""
        del random  # nothing is drawn
        error = self.reconstruct(images) - images
        return (error.square() if self.loss == "l2" else error.abs()).mean()

    @torch.no_grad()
    def pictures(self, images: Tensor, random: torch.Generator) -> list[Tensor]:
        """The input and its reconstruction: two N×3×227×227."""
        del random
        return [images, self.reconstruct(images)]

"""The random Gaussian row of Table 2 (protocols 7.1): Caffe's fillers, and no training at all."""

import torch
from torch import Tensor, nn

from pretrain import Defaults
from pretrain.alexnet import AlexNet
from pretrain.files import Usage

SUPERVISION = "initialization"
MASKS = ()
TINY = Defaults(iterations=0, batch=0, rate=0.0)  # on the embedded data, without --images


def defaults(mask: str | None) -> Defaults:
    """Paper: "< 1 minute". We: no iteration."""
    del mask
    return Defaults(iterations=0, batch=0, rate=0.0)


def build(*, mask: str | None, loss: str, shapes: Tensor | None) -> "Gaussian":
    """The untrained encoder."""
    del mask, loss, shapes
    return Gaussian()


class Gaussian(nn.Module):
    """An encoder as it is initialised. It has no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AlexNet()

    def forward(self, images: Tensor, random: torch.Generator) -> Tensor:
        """Raises Usage."""
        del images, random
        raise Usage("method random is not trained: leave --iterations out, or give 0")

    def calibrate(self, images: Tensor) -> None:
        """Nothing to calibrate."""

    def pictures(self, images: Tensor, random: torch.Generator) -> list[Tensor]:
        """Nothing to look at."""
        del images, random
        return []

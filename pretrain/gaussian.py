"""The random Gaussian row of Table 2 (protocols 7.1): Caffe's fillers, and no training at all."""

from functools import partial

from torch import Tensor

from pretrain import Dataset, Defaults
from pretrain.alexnet import AlexNet
from pretrain.images import still_images
from pretrain.pretext import Pretext

SUPERVISION = "initialization"
VERSION = 1
MASKS = ()
STARTS = ()
TINY = Defaults(iterations=0, batch=0, rate=0.0)
EMBEDDED = "images"
source = partial(still_images, supervision=SUPERVISION)


def defaults(mask: str | None) -> Defaults:
    """Paper: "< 1 minute". We: no iteration."""
    del mask
    return Defaults(iterations=0, batch=0, rate=0.0)


def build(data: Dataset | None, *, mask: str | None, loss: str, shapes: Tensor | None) -> "Gaussian":
    """The untrained encoder."""
    del data, mask, loss, shapes
    return Gaussian()


class Gaussian(Pretext[Tensor]):
    """An encoder as it is initialised. It has no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AlexNet()

"""What every pretext is: a torch module that owns an encoder and returns its own loss."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from pretrain.alexnet import AlexNet
from pretrain.files import Usage
from pretrain.randomness import Draw

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Loss:
    """A sum of errors and how many they are, both scalars.

    Kept apart so that a batch has one mean error, however many processes share it.
    """

    total: Tensor
    count: Tensor


class Pretext(nn.Module, Generic[Batch]):
    """A batch → a loss. Subclasses replace what they need of it."""

    encoder: AlexNet

    def forward(self, batch: Batch, draw: Draw) -> Loss:
        """The loss of this process's part of a batch. Raises Usage for a method that has none."""
        del batch, draw
        raise Usage("this method is not trained: leave --iterations out, or give 0")

    def calibrate(self, batch: Batch, draw: Draw, *, fresh: bool) -> None:
        """Called once, with the whole first batch, before training (torch's generator is seeded for it).

        `fresh`: bring every fresh layer but the last to data-dependent scales (see Defaults.calibrate).
        """

    def begin(self, batch: Batch, start: str) -> None:
        """Start the encoder as `start` (one of its module's STARTS) says, from the whole first batch, in place of its
        fillers. Called before calibrate, with torch's generator seeded for it.
        """
        del batch
        raise Usage(f"--start {start}: this method has one start")

    def scores(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        """How well the head solves a batch it was not trained on, and what chance is: scalars."""
        del batch, draw
        return {}

    def pictures(self, batch: Batch, draw: Draw) -> list[Tensor]:
        """What to look at while it trains: some N×3×H×W, mean-subtracted, or nothing."""
        del batch, draw
        return []

    def trained(self) -> AlexNet:
        """The encoder to keep."""
        return self.encoder

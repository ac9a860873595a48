"""fc6 and fc7, freshly initialised for every transfer (paper B), as classification and detection use them."""

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.fillers import filled


class Head(nn.Module):
    """N×channels×side×side → N×width: fc6, fc7, each with ReLU and dropout 0.5 (protocols 1.1).

    Filled as CaffeNet's: N(0, 0.005), bias 1, from torch's global generator.
    """

    def __init__(self, *, channels: int = 256, side: int = 6, width: int = 4096) -> None:
        super().__init__()
        self.fc6 = filled(nn.Linear(channels * side * side, width), std=0.005, bias=1.0)
        self.fc7 = filled(nn.Linear(width, width), std=0.005, bias=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """N×channels×side×side → N×width."""
        x = F.dropout(F.relu(self.fc6(x.flatten(1))), 0.5, self.training)
        return F.dropout(F.relu(self.fc7(x)), 0.5, self.training)

"""A convolution whose padding is not zero: what lies around an image, in the pixels of a foreign encoder."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FilledConv2d(nn.Conv2d):
    """nn.Conv2d whose padding holds `fill`, a number per input channel; its state dict is nn.Conv2d's.

    Where every number is zero it is nn.Conv2d, to the same bits.
    """

    def __init__(self, inputs: int, outputs: int, side: int, *, fill: tuple[float, ...], **options: Any) -> None:
        super().__init__(inputs, outputs, side, **options)
        self.fill = fill

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not any(self.fill) or not any(self.padding):
            return super()._conv_forward(x, weight, bias)  # type: ignore[no-any-return]  # torch leaves it untyped
        rows, columns = (int(side) for side in self.padding)
        channels = zip(torch.split(x, 1, dim=1), self.fill, strict=True)
        x = torch.cat([F.pad(one, (columns, columns, rows, rows), value=value) for one, value in channels], dim=1)
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)

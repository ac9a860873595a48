"""The context encoder (paper 3, 5.2 and B; protocols 2.1, 2.2): predict what is in the hole."""

import math
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import Dataset, Defaults, masks
from pretrain.alexnet import CROP, AlexNet
from pretrain.images import still_images
from pretrain.precision import widened
from pretrain.pretext import Loss, Pretext
from pretrain.randomness import Draw
from pretrain.rescale import calibrate, kmeans_trunk, mean_and_deviation

Distance = Literal["l2", "l1"]
SUPERVISION = "context"
VERSION = 2
# The model of Table 2 was trained with random-region holes (protocols 2.2).
MASKS = ("random-region", "random-block", "random-pattern", "central")
STARTS = ("scaled", "kmeans")
TINY = Defaults(iterations=60, batch=16, rate=1e-4)
EMBEDDED = "images"
source = partial(still_images, supervision=SUPERVISION)


def defaults(mask: str | None) -> Defaults:
    """Paper 5.2: 100k iterations of Adam, rate 1e-3 for central holes, 1e-4 else; batch not stated."""
    return Defaults(iterations=100_000, batch=64, rate=1e-3 if mask == "central" else 1e-4)


def build(data: Dataset | None, *, mask: str, loss: Distance, shapes: Tensor | None) -> "ContextEncoder":
    """A context encoder; `shapes` (K×64×64 bool) are the silhouettes of random-region holes."""
    del data
    return ContextEncoder(mask=mask, loss=loss, shapes=shapes)


class _SubPixel(torch.autograd.Function):
    """conv_transpose2d of kernel 5, stride 2, padding 2, whose forward pass is one 3×3 convolution.

    On the CPU in bfloat16 torch's own takes 1.5 to 5 times as long (in float32 0.6 to 2 times), its backward pass
    less than ours would.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        columns = _taps(_taps(weight, 2), 4)  # inputs×outputs×2×3×2×3: parity and tap, of rows and of columns
        kernel = columns.permute(1, 2, 4, 0, 3, 5).flatten(0, 2).contiguous(memory_format=torch.channels_last)
        return F.pixel_shuffle(F.conv2d(x, kernel, bias.repeat_interleave(4), padding=1), 2)[:, :, :-1, :-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        how = ([2, 2], [2, 2], [1, 1], True, [0, 0], 1, [True, True, True])  # stride, padding, dilation, transposed, …
        return torch.ops.aten.convolution_backward(grad, x, weight, [weight.shape[1]], *how)  # type: ignore[no-any-return]


def _taps(weight: Tensor, axis: int) -> Tensor:
    """…×5×… → …×2×3×…: the taps (input j - 1, j, j + 1) of output 2j, and those of output 2j + 1.

    Output o takes input i through tap o - 2i + 2: an even one taps 4, 2, 0, an odd one none, 3, 1.
    """
    even, odd = (weight.index_select(axis, torch.tensor(taps)) for taps in ((4, 2, 0), (3, 1)))
    nothing = torch.zeros_like(odd.narrow(axis, 0, 1))
    return torch.stack([even, torch.cat([nothing, odd], axis)], axis)


class UpConvolution(nn.ConvTranspose2d):
    """N×inputs×h×w → N×outputs×(2h - 1)×(2w - 1): kernel 5, stride 2, padding 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 5, stride=2, padding=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """See the class."""
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            kind, bias = torch.get_autocast_dtype("cpu"), self.bias
            assert bias is not None
            return _SubPixel.apply(x.to(kind), self.weight.to(kind), bias.to(kind))  # type: ignore[no-any-return]
        return super().forward(x, output_size)


class ChannelwiseLinear(nn.Module):
    """N×C×h×w → the same shape: every channel has its own (h·w)×(h·w) matrix (paper 3.1).

    In Caffe a grouped convolution on pool5: kernel 6, 9216 outputs, 256 groups (protocols 2.1).
    """

    def __init__(self, *, channels: int = 256, places: int = 36) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, places, places) / math.sqrt(places))
        self.bias = nn.Parameter(torch.zeros(channels, 1, places))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        by_channel = x.flatten(2).transpose(0, 1).to(self.bias)  # C×N×hw
        return torch.baddbmm(self.bias, by_channel, self.weight).transpose(0, 1).view(x.shape)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Rescale so that on the batch `x` every output has mean 0 and deviation 1."""
        mean, deviation = (value[:, None] for value in mean_and_deviation(self(x).flatten(2)))  # C×1×hw
        self.weight.div_(deviation)
        self.bias.copy_((self.bias - mean) / deviation)


class Decoder(nn.Sequential):
    """N×256×6×6 → N×3×227×227: five up-convolutions, 6 → 11 → 21 → 41 → 81 → 161, then resized.

    Paper B, figure 9(b); kernel 5, stride 2, padding 2 gives these sizes (3, 2, 1 would too). The
    paper puts a ReLU behind each; we leave the last one linear, as targets are mean-subtracted. It
    predicts in units of 64 grey levels, about the deviation of a pixel, and starts near zero.
    """

    WIDTHS = (256, 128, 64, 64, 32, 3)
    UNIT = 64.0

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in zip(self.WIDTHS[:-1], self.WIDTHS[1:], strict=True):
            up = UpConvolution(inputs, outputs)
            # Each output pixel of a stride-2 up-convolution sees a quarter of the kernel.
            nn.init.normal_(up.weight, std=math.sqrt(2 / (inputs * 25 / 4)))
            nn.init.zeros_(up.bias)  # type: ignore[arg-type]
            layers += [up, nn.ReLU()]
        up.weight.data *= 0.1
        super().__init__(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        for layer in self:
            x = layer(x)
        return self.UNIT * F.interpolate(widened(x), size=(CROP, CROP), mode="bilinear", align_corners=False)


class ContextEncoder(Pretext[Tensor]):
    """Images → loss: the encoder sees the image with a hole, the decoder fills the hole."""

    def __init__(self, *, mask: str, loss: Distance = "l2", shapes: Tensor | None = None) -> None:
        super().__init__()
        self.encoder = AlexNet()
        self.bridge = ChannelwiseLinear()
        # Paper: a stride-1 convolution spreads information across channels; its kernel is not
        # stated, nor whether a ReLU follows; we take 1×1 and a ReLU.
        self.mix = nn.Conv2d(256, 256, 1)
        nn.init.kaiming_normal_(self.mix.weight)
        self.decoder = Decoder()
        self.loss: Distance = loss
        shape = masks.MASKS[mask]
        self.shape = partial(shape, shapes=shapes) if mask == "random-region" else shape
        self.to(memory_format=torch.channels_last)

    def calibrate(self, batch: Tensor, draw: Draw, *, fresh: bool) -> None:
        """Calibrate the bridge on the first batch (pretrain.rescale says why); the encoder stays as it is.

        Paper: the bridge's initialisation is not stated.
        """
        del draw, fresh
        self.bridge.calibrate(self.encoder(batch))

    def begin(self, batch: Tensor, start: str) -> None:
        """Start the encoder from data-dependent scales ("scaled") or k-means filters, in place of Caffe's fillers.

        Paper: "random initialization" (figure 9 and 5.2), no more; we: Caffe's fillers unless asked.
        """
        if start == "kmeans":
            kmeans_trunk(self.encoder, batch)
        else:
            calibrate(self.encoder.convs(), lambda: self.encoder(batch))

    def reconstruct(self, images: Tensor, draw: Draw) -> Tensor:
        """N×3×227×227 (with holes) → N×3×227×227."""
        code = draw.dropout(self.bridge(self.encoder(images)), 0.5, training=self.training)
        return self.decoder(F.relu(self.mix(code)))  # type: ignore[no-any-return]

    def holes(self, images: Tensor, draw: Draw) -> Tensor:
        """N×1×227×227 bool, True = dropped."""
        return draw.part(len(images), lambda count, random: self.shape(count, images.shape[-1], random))

    def forward(self, batch: Tensor, draw: Draw) -> Loss:
        """N×3×227×227, mean-subtracted → the masked loss (paper eq. 1).

        "Normalised masked": the mean over the dropped values. A hole is zero after the mean.
        Paper: L2, "no significant difference" with L1; its author (issue 30): L1 only; we default
        to L2 and offer both.
        """
        holes = self.holes(batch, draw)
        error = self.error(self.reconstruct(batch.masked_fill(holes, 0.0), draw) - batch)
        return Loss((error * holes).sum(), holes.sum() * batch.shape[1])

    def error(self, difference: Tensor) -> Tensor:
        """Squared or absolute, value by value."""
        return difference.square() if self.loss == "l2" else difference.abs()

    @torch.no_grad()
    def scores(self, batch: Tensor, draw: Draw) -> dict[str, Tensor]:
        """The share of the squared error of filling a hole with the mean colour around it that is gone."""
        holes = self.holes(batch, draw)
        broken = batch.masked_fill(holes, 0.0)
        around = broken.sum((2, 3), keepdim=True) / (~holes).sum((2, 3), keepdim=True)
        left = ((self.reconstruct(broken, draw) - batch).square() * holes).sum()
        return {"explained": 1 - left / ((around - batch).square() * holes).sum(), "chance_explained": torch.zeros(())}

    @torch.no_grad()
    def pictures(self, batch: Tensor, draw: Draw) -> list[Tensor]:
        """The input, the input with its hole filled, the truth: three N×3×227×227."""
        holes = self.holes(batch[:8], draw)
        broken = batch[:8].masked_fill(holes, 0.0)
        return [broken, torch.where(holes, self.reconstruct(broken, draw), batch[:8]), batch[:8]]

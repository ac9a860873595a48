"""The relative context row of Table 2 (Doersch et al. 2015; protocols 7.5): where does one patch lie from another?"""

import math
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import Dataset, Defaults, Folders, Solver
from pretrain.alexnet import AlexNet, Architecture, mean_rgb
from pretrain.files import Usage
from pretrain.fillers import xavier
from pretrain.images import Images, find_noted, split
from pretrain.parallel import total
from pretrain.pixels import open_image
from pretrain.precision import widened
from pretrain.pretext import Loss, Pretext
from pretrain.randomness import Draw, Shard
from pretrain.store import Source, Store, centre_square

SUPERVISION = "relative context"
VERSION = 1
MASKS = ()
STARTS = ()
TINY = Defaults(iterations=60, batch=2, rate=1e-4)
EMBEDDED = "images"
PATCH, GAP, JITTER = 96, 48, 7
ACROSS = 3  # patches of a grid along each side
GRIDS = 4  # an image
AREA = (150_000, 450_000)  # pixels of a resized image
SPAN = ACROSS * PATCH + (ACROSS - 1) * GAP + 2 * JITTER  # what a grid covers: 398
SIDE = 400  # of stored images
# A stored square is at most about three times its image.
LEAST = math.ceil(SPAN / 3)
SHRUNK, RMS = 0.33, 50.0  # the share of patches that lose detail; what patches are normalised to
UNGROUPED = Architecture(groups=(1, 1, 1, 1, 1))

# Every pair of adjacent patches of a grid, in both orders, and the direction from the first to the second.
DIRECTIONS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]
PAIRS = [
    (ACROSS * row + column, ACROSS * (row + down) + column + right, number)
    for row in range(ACROSS)
    for column in range(ACROSS)
    for number, (down, right) in enumerate(DIRECTIONS)
    if 0 <= row + down < ACROSS and 0 <= column + right < ACROSS
]


def defaults(mask: str | None) -> Defaults:
    """Released solver: no momentum, no decay, 1M iterations of up to 512 patches.

    Its rate, 1e-5, is for the sum over all pairs of a batch; ours is for their mean.
    """
    del mask
    images = 512 // (GRIDS * ACROSS**2)
    return Defaults(iterations=1_000_000, batch=images, rate=1e-5 * images * GRIDS * len(PAIRS), solver=Solver("sgd"))


def decode(path: Path) -> list[bytes] | str:
    """One square of SIDE, of an image that is large enough for a grid."""
    image = open_image(path)
    if isinstance(image, str):
        return image
    return [centre_square(image, SIDE)] if min(image.size) >= LEAST else f"smaller than a patch grid ({LEAST} pixels)"


def source(folders: Folders) -> Source:
    """Images whose shorter side is LEAST pixels or more; smaller ones are skipped."""
    found = find_noted(folders.images)
    return Source(found.files, SUPERVISION, Grids, decode, SIDE, f"grids {LEAST}", notes=found.notes)


class Grids(Images):
    """Grids of patches: (4·N)×9×3×96×96, each patch normalised by itself. One image in 20 is held out."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.train, self.held_out = split(store.images)

    def batch(self, raw: tuple[Tensor, ...], draw: Draw, *, held_out: bool = False) -> Tensor:
        """Four grids an image, anywhere in it, at one size; each patch shifted by up to 7 pixels."""
        del held_out
        patches = defended(cut(raw[0], draw).flatten(0, 1), draw)
        return patches.view(-1, ACROSS**2, *patches.shape[1:])


def cut(raw: Tensor, draw: Draw) -> Tensor:
    """N×S×S×3 uint8 → (4·N)×9×3×96×96, minus the mean: the patches, as an image resized to AREA would have them.

    Released code: whole images, resized; we: their centre squares, of a side that holds a grid.
    """
    count, device = len(raw), raw.device
    area = AREA[0] + draw.rand(count, 1) * (AREA[1] - AREA[0])
    side = area.sqrt().clamp(min=SPAN)[:, None, None]  # N×1×1×1
    origin = JITTER + draw.rand(count, GRIDS, 1, 2) * (side - SPAN)
    shift = (draw.rand(count, GRIDS, ACROSS**2, 2) * 2 - 1) * JITTER
    cell = torch.arange(ACROSS**2, device=device)
    place = torch.stack([cell % ACROSS, cell // ACROSS], 1) * (PATCH + GAP)  # x, y
    corner = (origin + place + shift).round().flatten(1, 2)  # N×36×2
    pixel = torch.arange(PATCH, device=device) + 0.5
    x, y = ((corner[:, :, k, None] + pixel) / side[:, :, :, 0] * 2 - 1 for k in range(2))  # N×36×96
    shape = (count, GRIDS * ACROSS**2, PATCH, PATCH)
    grid = torch.stack([x[:, :, None, :].expand(shape), y[:, :, :, None].expand(shape)], 4).flatten(1, 2)
    pixels = raw.permute(0, 3, 1, 2).float() - mean_rgb(device)
    found = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)  # N×3×(36·96)×96
    apart = found.view(count, 3, GRIDS, ACROSS**2, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5)
    return apart.flatten(0, 1)


def defended(patches: Tensor, draw: Draw) -> Tensor:
    """P×3×96×96 → the same, robbed of what gives the place of a patch away: chromatic aberration, resolution.

    A third lose detail (down to 10² to 95² pixels and up again); all keep one colour channel
    at random, the others becoming noise; all are normalised to a root mean square of RMS.
    """
    count = len(patches)
    drawn = draw.rand(count, 3)
    for number in (drawn[:, 0] < SHRUNK).nonzero().flatten().tolist():
        side = int(math.sqrt(10**2 + drawn[number, 1] * (95**2 - 10**2)))  # released code: uniform in pixels
        small = F.interpolate(patches[number, None], size=(side, side), mode="bilinear", antialias=True)
        patches[number] = F.interpolate(small, size=(PATCH, PATCH), mode="bilinear")[0]
    kept = F.one_hot((drawn[:, 2] * 3).long(), 3).bool()[:, :, None, None]
    centred = patches - patches.mean((2, 3), keepdim=True)
    coloured = torch.where(kept, centred, draw.rand(*patches.shape) - 0.5)
    return coloured * (RMS / coloured.square().mean((1, 2, 3), keepdim=True).sqrt())  # never 0, for the noise


def build(data: Dataset | None, *, mask: str | None, loss: str, shapes: Tensor | None) -> "Relative":
    """The network. Raises Usage for an L1 loss."""
    del data, mask, shapes
    if loss != "l2":
        raise Usage(f"--loss {loss}: relative has a cross-entropy: leave --loss out")
    return Relative()


class BatchNorm(nn.Module):
    """N×C×… → the same shape, over the whole batch of all processes: deviation 1, mean 0, no scale and shift.

    Released code: running means of which a batch leaves 0.999, Caffe's default; we: 0.95, since with few
    iterations 0.999 would not have forgotten its start.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor
    EPSILON, MOMENTUM = 1e-5, 0.05

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor, shard: Shard) -> Tensor:
        """In training by the batch's own statistics, which are kept as running means; else by these.

        As in Caffe, what they started from counts for nothing: the first batches are averaged.
        """
        x, shape = widened(x), (1, -1, *[1] * (x.ndim - 2))
        mean, variance = self.statistics(x, shard) if self.training else (self.mean, self.variance)
        return (x - mean.view(shape)) * (variance.view(shape) + self.EPSILON).rsqrt()

    def statistics(self, x: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
        """The mean and variance of each channel."""
        places, count = [0, *range(2, x.ndim)], x.numel() // x.shape[1] * shard.world
        mean = total(x.sum(places), shard) / count
        shape = (1, -1, *[1] * (x.ndim - 2))
        variance = total((x - mean.view(shape)).square().sum(places), shard) / count
        with torch.no_grad():
            self.batches += 1
            share = (1 / self.batches).clamp(min=self.MOMENTUM)
            self.mean.lerp_(mean, share)
            self.variance.lerp_(variance, share)
        return mean, variance

    @torch.no_grad()
    def fold(self, conv: nn.Conv2d) -> None:
        """Make `conv` do what it did with this behind it."""
        scale = (self.variance + self.EPSILON).rsqrt()
        assert conv.bias is not None
        conv.weight *= scale[:, None, None, None]
        conv.bias.copy_((conv.bias - self.mean) * scale)


class Relative(Pretext[Tensor]):
    """Grids of patches → the 8-way cross-entropy of every adjacent pair.

    CaffeNet's sizes without groups, conv1 padded by 5; batch norm behind conv3–5, fc6, fc7; a tower to
    fc6 (4096) for each patch, then both together fc7 (4096), fc8 (4096), and the direction.
    """

    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AlexNet(UNGROUPED, conv1_pad=5)
        for conv in self.encoder.convs():
            xavier(conv)
        self.norms = nn.ModuleList(BatchNorm(width) for width in (*UNGROUPED.widths[2:], 4096, 4096))
        self.fc6 = xavier(nn.Linear(256 * 3 * 3, 4096))
        # One layer of 8192 inputs, in halves, so that each patch is multiplied once and not once a pair.
        fc7 = xavier(nn.Linear(2 * 4096, 4096))
        self.fc7_first, self.fc7_second = nn.Linear(4096, 4096), nn.Linear(4096, 4096, bias=False)
        with torch.no_grad():
            self.fc7_first.weight.copy_(fc7.weight[:, :4096])
            self.fc7_second.weight.copy_(fc7.weight[:, 4096:])
            self.fc7_first.bias.zero_()
        self.fc8, self.direction = xavier(nn.Linear(4096, 4096)), xavier(nn.Linear(4096, len(DIRECTIONS)))
        self.register_buffer("pairs", torch.tensor(PAIRS).T.contiguous(), persistent=False)

    def logits(self, grids: Tensor, shard: Shard) -> Tensor:
        """G×9×3×96×96 → G×40×8."""
        norms = [partial(norm, shard=shard) for norm in self.norms]
        x = self.encoder(grids.flatten(0, 1), norms=norms[:3])
        x = F.relu(norms[3](self.fc6(x.flatten(1)))).view(*grids.shape[:2], -1)
        first, second, _ = self.pairs
        both = self.fc7_first(x)[:, first] + self.fc7_second(x)[:, second]
        x = F.relu(norms[4](both.flatten(0, 1)))
        return widened(self.direction(F.relu(self.fc8(x)))).view(*both.shape[:2], -1)

    def forward(self, batch: Tensor, draw: Draw) -> Loss:
        """The summed cross-entropy of all pairs, and how many."""
        logits = self.logits(batch, draw.shard).flatten(0, 1)
        labels = self.pairs[2].repeat(len(batch))
        return Loss(F.cross_entropy(logits, labels, reduction="sum"), torch.tensor(len(labels)))

    def scores(self, batch: Tensor, draw: Draw) -> dict[str, Tensor]:
        """The share of pairs whose direction is the first guess."""
        right = self.logits(batch, draw.shard).argmax(2) == self.pairs[2]
        return {"accuracy": right.float().mean(), "chance_accuracy": torch.tensor(1 / len(DIRECTIONS))}

    def pictures(self, batch: Tensor, draw: Draw) -> list[Tensor]:
        """The nine patches of each grid, one below the other."""
        del draw
        return list(batch.unbind(1))

    def trained(self) -> AlexNet:
        """The trunk with the batch norms folded into conv3–conv5; later papers rescale it (`bench rescale`)."""
        trunk = AlexNet(UNGROUPED).to(self.encoder.conv1.weight.device)
        trunk.load_state_dict(self.encoder.state_dict())
        for norm, conv in zip(self.norms, trunk.convs()[2:], strict=False):
            assert isinstance(norm, BatchNorm)
            norm.fold(conv)
        return trunk

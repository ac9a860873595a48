"""The egomotion row of Table 2 (Agrawal et al. 2015; protocols 7.3): how did the camera move between two frames?"""

from collections.abc import Sequence
from functools import partial
from hashlib import sha256

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import Dataset, Defaults, Folders, Solver
from pretrain.alexnet import CROP, AlexNet
from pretrain.files import Missing, Usage
from pretrain.fillers import filled
from pretrain.images import SIDE, Found, Images, as_input, find_noted, last_groups, split, stills
from pretrain.motion import moved_stills, reach, views
from pretrain.odometry import AXES, Drive, find_sequences, left_out, pairs
from pretrain.precision import widened
from pretrain.pretext import Loss, Pretext
from pretrain.randomness import Draw
from pretrain.rescale import calibrate
from pretrain.store import Source, Store

SUPERVISION = "egomotion"
VERSION = 1
MASKS = ()
STARTS = ()
TINY = Defaults(iterations=60, batch=8, rate=3e-5, calibrate=True)
EMBEDDED = "odometry"
BINS, WIDTH = 20, 0.3  # of z-scored motion; two more classes lie beyond
STILL = 1e-6  # metres and radians: no motion, but what rounding makes of none
STEP, TURN, SPAN = 40.0, 0.26, 160.0  # stills: pixels of 256 along x and y, radians (15°), side of a view

Batch = tuple[Tensor, Tensor, Tensor]


def defaults(mask: str | None) -> Defaults:
    """Released solver; 60k iterations for the network that joins at conv5. Momentum is not stated: 0.9."""
    del mask
    solver = Solver("sgd", momentum=0.9, decay=5e-4, step=20_000, drop=0.5)
    return Defaults(iterations=60_000, batch=128, rate=1e-3, solver=solver)


def source(folders: Folders) -> Source:
    """Frames with poses, or stills that are then moved. Raises Missing when there is neither."""
    if not folders.videos:
        return moved_stills(find_noted(folders.images), SUPERVISION, MovedStills)
    if folders.images:
        raise Usage("egomotion: give --videos (frames with poses) or --images (motion made from stills), not both")
    sequences = [sequence for folder in folders.videos for sequence in find_sequences(folder)]
    files = [(sequence.folder, frame) for sequence in sequences for frame in sequence.frames]
    notes = [line for folder in dict.fromkeys(folders.videos) for line in left_out(folder, sequences)]
    return stills(Found(tuple(files), tuple(notes)), SUPERVISION, partial(FramePairs, sequences=sequences))


class FramePairs(Images):
    """Pairs of frames: two N×3×227×227 and the class of each motion, N×3 int64.

    The last tenth of the sequences (one at least, of two or more) is held out. Paper:
    20 bins, labels z-scored; released code: z-scored, rescaled, 20 bins and two beyond; we: z-scored
    over the training pairs, 20 bins of 0.3 deviations each, and two beyond.
    """

    classes, axes = BINS + 2, AXES

    def __init__(self, store: Store, *, sequences: Sequence[Drive]) -> None:
        super().__init__(store)
        found = pairs(sequences, store)
        if not len(found.first):
            raise Missing(f"{store.name}: no two frames of a sequence can be decoded: give another folder")
        self.found = found
        self.train, self.held_out = last_groups(found.sequence)
        train = found.motion[self.train]
        deviation = train.std(0, correction=0)
        for axis, moved in zip(AXES, deviation.tolist(), strict=True):
            if moved <= STILL:
                raise Missing(f"{store.name}: the camera never moves along {axis}: give sequences with motion")
        scaled = (found.motion - train.mean(0)) / deviation
        edges = (torch.arange(BINS + 1) - BINS / 2) * WIDTH
        self.labels = torch.bucketize(scaled.float(), edges, right=True)
        self.usual = commonest(F.one_hot(self.labels[self.train], self.classes).sum(0))
        told = sha256(f"{store.sha256} {found.motion.tolist()}".encode()).hexdigest()  # the poses count, too
        counts = {"pairs": len(found.first), "sequences": len(sequences)}
        self.record = self.record | {"sha256": told} | counts

    def read(self, items: Tensor) -> tuple[Tensor, ...]:
        """Two N×256×256×3 uint8 and N×3 int64."""
        return self.pixels[self.found.first[items]], self.pixels[self.found.second[items]], self.labels[items]

    def batch(self, raw: tuple[Tensor, ...], draw: Draw, *, held_out: bool = False) -> Batch:
        """One crop for both frames of a pair, never mirrored: either would change the motion."""
        del held_out
        first, second, labels = raw
        drawn = (draw.rand(len(first), 2) * (SIDE - CROP + 1)).long()
        step = torch.arange(CROP, device=first.device)
        image = torch.arange(len(first), device=first.device)[:, None, None]
        rows, columns = (drawn[:, :1] + step)[:, :, None], (drawn[:, 1:] + step)[:, None, :]
        return as_input(first[image, rows, columns]), as_input(second[image, rows, columns]), labels


class MovedStills(Images):
    """Two views of a still each, by synthetic motion: along x, along y, about the view's axis; 20 classes an axis."""

    classes, axes = BINS, ("x", "y", "roll")

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.train, self.held_out = split(store.images)
        self.record = self.record | {"motion": "synthetic from stills"}
        self.usual = commonest(torch.ones(len(self.axes), self.classes))

    def batch(self, raw: tuple[Tensor, ...], draw: Draw, *, held_out: bool = False) -> Batch:
        """Classes uniformly drawn, motion uniformly within its class; both views lie inside the image."""
        del held_out
        (pixels,) = raw
        count = len(pixels)
        labels = (draw.rand(count, 3) * self.classes).long()
        moved = (labels + draw.rand(count, 3)) / self.classes * 2 - 1  # in [-1, 1)
        step, angle = moved[:, :2] * STEP, moved[:, 2] * TURN
        side = torch.full((count,), SPAN, device=pixels.device)
        margin = reach(side, angle)[:, None]
        low = margin - step.clamp(max=0)
        high = SIDE - margin - step.clamp(min=0)
        start = low + draw.rand(count, 2) * (high - low).clamp(min=0)
        return views(pixels, start, side, torch.zeros_like(angle)), views(pixels, start + step, side, angle), labels


def commonest(counts: Tensor) -> Tensor:
    """How often each class of each axis was seen (axes×classes) → the best guess without a look; of equals, a share."""
    best = counts == counts.amax(1, keepdim=True)
    return best / best.sum(1, keepdim=True)


def build(data: Dataset | None, *, mask: str | None, loss: str, shapes: Tensor | None) -> "Egomotion":
    """Two towers for the motions of `data`. Raises Usage for an L1 loss."""
    del mask, shapes
    if loss != "l2":
        raise Usage(f"--loss {loss}: egomotion has a cross-entropy: leave --loss out")
    assert isinstance(data, FramePairs | MovedStills)
    return Egomotion(data.usual)


class Egomotion(Pretext[Batch]):
    """Two images and the classes of the motion between them → the cross-entropies, one an axis.

    `usual` (axes×classes): the guess of who sees no image, to score the head by.

    Two towers with the same weights, joined behind pool5. The published top is not to be had: two 3×3
    convolutions (256, 128), a layer of 500 with dropout, one softmax an axis; filled as CaffeNet.
    """

    usual: Tensor

    def __init__(self, usual: Tensor) -> None:
        super().__init__()
        axes, self.classes = usual.shape
        self.register_buffer("usual", usual, persistent=False)
        self.encoder = AlexNet()
        self.join1 = filled(nn.Conv2d(512, 256, 3, padding=1), std=0.01, bias=0.0)
        self.join2 = filled(nn.Conv2d(256, 128, 3, padding=1), std=0.01, bias=0.0)
        self.fc = filled(nn.Linear(128 * 36, 500), std=0.005, bias=1.0)
        self.motion = filled(nn.Linear(500, axes * self.classes), std=0.01, bias=0.0)

    def calibrate(self, batch: Batch, draw: Draw, *, fresh: bool) -> None:
        """See Pretext."""
        if fresh:
            towers = torch.cat(batch[:2])
            calibrate(self.encoder.convs(), lambda: self.encoder(towers))
            calibrate((self.join1, self.join2, self.fc), partial(self.logits, *batch[:2], draw))

    def logits(self, first: Tensor, second: Tensor, draw: Draw, *, training: bool = False) -> Tensor:
        """Two N×3×227×227 → N×classes×axes."""
        both = self.encoder(torch.cat([first, second]))
        x = F.relu(self.join2(F.relu(self.join1(torch.cat(both.chunk(2), 1)))))
        x = draw.dropout(F.relu(self.fc(x.flatten(1))), 0.5, training=training)
        return widened(self.motion(x)).view(len(x), self.classes, -1)

    def forward(self, batch: Batch, draw: Draw) -> Loss:
        """The summed cross-entropies of N pairs, and N."""
        first, second, labels = batch
        logits = self.logits(first, second, draw, training=self.training)
        return Loss(F.cross_entropy(logits, labels, reduction="sum"), torch.tensor(len(labels)))

    def scores(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        """The share of motions whose class is the first guess, and whose is that most often seen in training."""
        first, second, labels = batch
        right = self.logits(first, second, draw).argmax(1) == labels
        chance = (F.one_hot(labels, self.classes) * self.usual).sum(2).mean()
        return {"accuracy": right.float().mean(), "chance_accuracy": chance}

    def pictures(self, batch: Batch, draw: Draw) -> list[Tensor]:
        """The first views over the second."""
        del draw
        return [batch[0], batch[1]]

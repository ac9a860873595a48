"""The motion row of Table 2 (Wang and Gupta 2015; protocols 7.4): patches of one track look alike."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import Dataset, Defaults, Folders, Solver
from pretrain.alexnet import AlexNet
from pretrain.files import Missing, Usage
from pretrain.fillers import filled
from pretrain.images import SIDE, Images, centre_crop, crop_and_mirror, find_noted, last_groups, split
from pretrain.motion import moved_stills, reach, views
from pretrain.parallel import gathered
from pretrain.precision import full, widened
from pretrain.pretext import Loss, Pretext
from pretrain.randomness import Draw, generator
from pretrain.rescale import calibrate
from pretrain.store import Source, Store
from pretrain.tracks import LENGTH, STRIDE, list_videos, tracks

SUPERVISION = "motion"
VERSION = 2  # 1: tracks of one video were negatives of each other
MASKS = ()
STARTS = ()
TINY = Defaults(iterations=60, batch=8, rate=1e-4, calibrate=True)
EMBEDDED = "videos"
MARGIN = 0.5  # paper; released code: 1, its README: 0.5 or 0.1
NEGATIVES, HARD, HARDEST = 4, 2, 4  # a pair; of these from the hardest; how many those are
EASY = 0.25  # of the iterations, before hard negatives: about where the released code's rate first drops

Batch = tuple[Tensor, Tensor, Tensor]


def defaults(mask: str | None) -> Defaults:
    """Released solver. Its data layer's batch of 100 counts patches: 50 pairs."""
    del mask
    solver = Solver("sgd", momentum=0.9, decay=5e-4, step=100_000, drop=0.1)
    return Defaults(iterations=400_000, batch=50, rate=1e-3, solver=solver)


def source(folders: Folders) -> Source:
    """Videos, or stills that are then moved. Raises Missing when there is neither."""
    if not folders.videos:
        return moved_stills(find_noted(folders.images), SUPERVISION, MovedStills)
    if folders.images:
        raise Usage("tracking: give --videos or --images (motion made from stills), not both")
    listings = [(folder, list_videos(folder)) for folder in folders.videos]
    files = [(folder, path) for folder, listing in listings for path in listing.files]
    notes = [line for folder, listing in listings for line in listing.notes(folder)]
    return Source(files, SUPERVISION, Tracks, tracks, SIDE, f"whole tracks {LENGTH} {STRIDE}", notes=notes)


class Tracks(Images):
    """First and last patches, two N×3×227×227, and the numbers of their videos, N int64.

    The tracks of the last tenth of the videos (two at least, of four or more) are held out. Raises
    Missing when there is one video, whose tracks there is no telling apart.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.videos = store.owners()[::2]
        self.train, aside = last_groups(self.videos, least=2)
        if len(set(self.videos[self.train].tolist())) < 2:
            raise Missing(f"{store.name}: tracks of 1 video to train on, 2 are the least: give more videos")
        # In disorder, so that a batch is of several videos, however many tracks each has.
        self.held_out = aside[torch.randperm(len(aside), generator=generator(0, "held out"))]
        self.record = self.record | {
            "images": 2 * len(self.videos),
            "tracks": len(self.videos),
            "videos": len(set(self.videos.tolist())),
        }

    def read(self, items: Tensor) -> tuple[Tensor, ...]:
        """Two N×256×256×3 uint8 and N int64."""
        return self.pixels[2 * items], self.pixels[2 * items + 1], self.videos[items]

    def batch(self, raw: tuple[Tensor, ...], draw: Draw, *, held_out: bool = False) -> Batch:
        """Random crops, mirrored with chance 1/2, of each patch by itself; of held-out ones the centres."""
        first, last = (centre_crop(part) if held_out else crop_and_mirror(part, draw) for part in raw[:2])
        return first, last, raw[2]


class MovedStills(Images):
    """Two views of a still each, the second a little aside, turned, nearer or farther, of more or less contrast.

    And the numbers of the stills, N int64. Raises Missing when there is one, as its views have no others.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.train, self.held_out = split(store.images)
        if len(self.train) < 2:
            raise Missing(f"{store.name}: {len(self.train)} image to train on, 2 are the least: give more images")
        self.record = self.record | {"motion": "synthetic from stills"}

    def read(self, items: Tensor) -> tuple[Tensor, ...]:
        """N×256×256×3 uint8 and N int64."""
        return self.pixels[items], items

    def batch(self, raw: tuple[Tensor, ...], draw: Draw, *, held_out: bool = False) -> Batch:
        """A window of 40 to 60% of the side; then moved by up to 20% of it, turned by 15°, scaled by 0.8 to 1.25."""
        del held_out
        pixels, owners = raw
        count = len(pixels)
        first, moved = draw.rand(count, 4), draw.rand(count, 5) * 2 - 1
        side = SIDE * (0.4 + 0.2 * first[:, 0])
        angle = moved[:, 0] * 0.26
        later = side * 1.25 ** moved[:, 1]
        margin = reach(side, torch.zeros_like(side))[:, None]
        start = margin + first[:, 1:3] * (SIDE - 2 * margin)
        end = start + 0.2 * side[:, None] * moved[:, 2:4]
        room = reach(later, angle)[:, None]
        end = torch.minimum(torch.maximum(end, room), SIDE - room)
        contrast = 1.2 ** moved[:, 4].view(-1, 1, 1, 1)
        before = views(pixels, start, side, torch.zeros_like(angle))
        return before, views(pixels, end, later, angle) * contrast, owners


def build(data: Dataset | None, *, mask: str | None, loss: str, shapes: Tensor | None) -> "Tracking":
    """The two towers. Raises Usage for an L1 loss."""
    del data, mask, shapes
    if loss != "l2":
        raise Usage(f"--loss {loss}: tracking has a hinge loss: leave --loss out")
    return Tracking()


class Tracking(Pretext[Batch]):
    """First and last patches of N tracks, and their videos → the hinge ranking loss on the cosines of fc7 (1024)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AlexNet()
        self.fc6 = filled(nn.Linear(9216, 4096), std=0.005, bias=1.0)
        self.fc7 = filled(nn.Linear(4096, 1024), std=0.005, bias=1.0)

    def calibrate(self, batch: Batch, draw: Draw, *, fresh: bool) -> None:
        """See Pretext."""
        del draw
        if fresh:
            calibrate([*self.encoder.convs(), self.fc6, self.fc7], lambda: self.features(torch.cat(batch[:2])))

    def features(self, patches: Tensor) -> Tensor:
        """N×3×227×227 → N×1024, of length 1."""
        x = F.relu(self.fc7(F.relu(self.fc6(self.encoder(patches).flatten(1)))))
        return F.normalize(widened(x))

    def forward(self, batch: Batch, draw: Draw) -> Loss:
        """The summed hinges of N tracks with NEGATIVES others each, on both of a track's patches, and how many.

        Others are the patches of all other videos in the batch that violate the first patch's margin, as in
        the released code: at first random ones, then HARD of the HARDEST ones and the rest random.
        """
        first, last = self.features(torch.cat(batch[:2])).chunk(2)
        by_first, both = self.hinges(first, last, batch[2], draw)
        drawn = draw.rand(*both.shape)
        hard = HARD if draw.iteration > EASY * draw.iterations else 0
        order = draw.rand(len(both), HARDEST).argsort(1)[:, :hard]
        mined = by_first.topk(HARDEST).indices.gather(1, order)
        others = torch.where(by_first > 0, drawn, drawn - 1).scatter(1, mined, -2.0)
        kept = both.gather(1, torch.cat([mined, others.topk(NEGATIVES - hard).indices], 1))
        return Loss(kept.sum(), torch.tensor(2 * kept.numel()))

    def hinges(self, first: Tensor, last: Tensor, owners: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Two n×1024 and their videos (n), n of the batch's N tracks → two n×2N, for each patch of the batch.

        The hinge of the first patch, without gradient: 0 for patches of its own video. Both patches'
        together: 0 where that one is. Raises Usage when the batch is one track.
        """
        together = (first * last).sum(1, keepdim=True)
        others = torch.cat([gathered(part, draw.shard) for part in (first, last)])
        if len(others) == 2:
            raise Usage("--batch 1: tracking tells the tracks of a batch apart: give 2 or more")
        with full(first.device):  # in bfloat16 most hinges would differ by nothing
            by_first, by_last = (F.relu(MARGIN + part @ others.T - together) for part in (first, last))
        # By video, not by place: a track may stand in the batch twice, where two passes meet.
        own = owners[:, None] == gathered(owners, draw.shard).repeat(2)
        left_out = own | (by_first == 0)
        return by_first.detach().masked_fill(own, 0.0), (by_first + by_last).masked_fill(left_out, 0.0)

    def scores(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        """How often a first patch is nearer to the last of its track than to that of a track of another video."""
        del draw
        *patches, owners = batch
        other = owners[:, None] != owners
        if not other.any():
            return {}
        first, last = self.features(torch.cat(patches)).chunk(2)
        together, apart = (first * last).sum(1, keepdim=True), first @ last.T
        return {"accuracy": (together > apart)[other].float().mean(), "chance_accuracy": torch.tensor(0.5)}

    def pictures(self, batch: Batch, draw: Draw) -> list[Tensor]:
        """First patches over last ones."""
        del draw
        return list(batch[:2])

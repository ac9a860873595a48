"""The ImageNet labels row of Table 2 (protocols 1.2, 7.6): CaffeNet, trained to name what an image shows."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import Dataset, Defaults, Folders, Solver
from pretrain.alexnet import AlexNet
from pretrain.classes import sort_classes
from pretrain.files import Missing, Usage
from pretrain.fillers import filled
from pretrain.images import Images, find_noted, split, stills
from pretrain.listing import printable
from pretrain.precision import widened
from pretrain.pretext import Loss, Pretext
from pretrain.randomness import Draw
from pretrain.rescale import calibrate
from pretrain.store import Source, Store

SUPERVISION = "class labels"
VERSION = 1
MASKS = ()
STARTS = ()
# At 1e-4 the steps of fc6 and fc7 are too large for so few images: the loss rises to 8, and conv4 forgets its images.
TINY = Defaults(iterations=100, batch=16, rate=3e-5, calibrate=True)
EMBEDDED = "images"
IMAGENET = 1000

Batch = tuple[Tensor, Tensor]


def defaults(mask: str | None) -> Defaults:
    """The released solver of CaffeNet; its published weights are those of iteration 310k."""
    del mask
    solver = Solver("sgd", momentum=0.9, decay=5e-4, step=100_000, drop=0.1)
    return Defaults(iterations=450_000, batch=256, rate=0.01, solver=solver)


def source(folders: Folders) -> Source:
    """Class folders: DIR/<class>/…, or below DIR's split folders (pretrain/classes.py), images at any depth.

    Raises Missing when there is no image, or no two classes, and whatever sort_classes raises.
    """
    found = sort_classes(find_noted(folders.images), folders.images)
    names = sorted(set(found.names))
    if len(names) < 2:
        first = printable(folders.images[0])
        one = printable(names[0]) if names else "none"
        raise Missing(f"{first}: one class ({one}) alone: give --images a folder with one folder a class")
    numbers = {name: number for number, name in enumerate(names)}
    data = partial(
        LabelledImages,
        labels=torch.tensor([numbers[name] for name in found.names]),
        validation=torch.tensor(found.validation),
        names=names,
    )
    kind = "" if len(names) == IMAGENET else f"{len(names)}-classes"
    return stills(found.images, f"{len(names)} class labels", data, kind=kind)


class LabelledImages(Images):
    """Crops and labels: N×3×227×227 and N int64. Without val images one image in 20 of each class is held out.

    Raises Missing when a class has no image to train on: none there, or none that can be decoded.
    """

    def __init__(self, store: Store, *, labels: Tensor, validation: Tensor, names: Sequence[str]) -> None:
        super().__init__(store)
        owners = store.owners()
        self.labels, self.classes, aside = labels[owners], len(names), validation[owners]
        self.record = self.record | {"classes": self.classes}
        if aside.any():
            items = torch.arange(store.images)
            self.train, self.held_out = items[~aside], items[aside]
        else:
            by_class = torch.argsort(self.labels, stable=True)
            self.train, self.held_out = (by_class[part].sort().values for part in split(store.images))
        seen = self.labels[self.train].bincount(minlength=self.classes).tolist()
        if unseen := [name for name, images in zip(names, seen, strict=True) if not images]:
            few = ", ".join(map(printable, unseen[:10]))
            raise Missing(f"{store.name}: no image to train on of class {few}: add some, or remove the folder")

    def read(self, items: Tensor) -> tuple[Tensor, ...]:
        """N×256×256×3 uint8 and N int64."""
        return self.pixels[items], self.labels[items]

    def batch(self, raw: tuple[Tensor, ...], draw: Draw, *, held_out: bool = False) -> Batch:
        """Crops, and their labels."""
        return super().batch(raw, draw, held_out=held_out), raw[1]


def build(data: Dataset | None, *, mask: str | None, loss: str, shapes: Tensor | None) -> "Classifier":
    """A CaffeNet for the classes of `data`. Raises Usage for an L1 loss."""
    del mask, shapes
    if loss != "l2":
        raise Usage(f"--loss {loss}: labels have a cross-entropy: leave --loss out")
    assert isinstance(data, LabelledImages)
    return Classifier(data.classes)


class Classifier(Pretext[Batch]):
    """Images and labels → the cross-entropy of CaffeNet (protocols 1.1)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = AlexNet()
        self.fc6 = filled(nn.Linear(9216, 4096), std=0.005, bias=1.0)
        self.fc7 = filled(nn.Linear(4096, 4096), std=0.005, bias=1.0)
        self.fc8 = filled(nn.Linear(4096, classes), std=0.01, bias=0.0)

    def calibrate(self, batch: Batch, draw: Draw, *, fresh: bool) -> None:
        """See Pretext."""
        if fresh:
            calibrate([*self.encoder.convs(), self.fc6, self.fc7], lambda: self.logits(batch[0], draw, training=False))

    def logits(self, images: Tensor, draw: Draw, *, training: bool) -> Tensor:
        """N×3×227×227 → N×classes."""
        x = self.encoder(images).flatten(1)
        for layer in (self.fc6, self.fc7):
            x = draw.dropout(F.relu(layer(x)), 0.5, training=training)
        return widened(self.fc8(x))

    def forward(self, batch: Batch, draw: Draw) -> Loss:
        """The summed cross-entropy of N images, and N."""
        images, labels = batch
        logits = self.logits(images, draw, training=self.training)
        return Loss(F.cross_entropy(logits, labels, reduction="sum"), torch.tensor(len(labels)))

    def scores(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        """The share of images whose label is the first guess, and among the first five."""
        images, labels = batch
        logits = self.logits(images, draw, training=False)
        guesses = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        top1, top5 = guesses[:, 0].float().mean(), guesses.any(1).float().mean()
        classes = torch.tensor(float(logits.shape[1]))
        return {"top1": top1, "top5": top5, "chance_top1": 1 / classes, "chance_top5": (5 / classes).clamp(max=1)}

"""VOC07 classification (Table 2, column 1; paper 5.2.1; protocols 4): random crops in training, 10 in testing.

`bench transfer --task classification`. The public code of the co-author (philkr/voc-classification,
"VC" below) is the protocol; `quick` and `tiny` are the same with smaller numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.alexnet import CAFFENET, AlexNet, Architecture, Encoder, Receipt, load_encoder, mean_rgb
from pretrain.checkpoints import checkpoint_due, ended, load_checkpoint, restore, save_checkpoint
from pretrain.files import Failed
from pretrain.fillers import filled
from pretrain.precision import autocast, widened
from pretrain.progress import Progress, progress
from pretrain.randomness import generator, reseed, shuffled
from pretrain.solver import parameter_groups, set_rates
from pretrain.workers import threads
from transfer import ADDED, Data, Outcome, voc
from transfer import Recipe as BaseRecipe
from transfer.divergence import REMEDY, check_finite
from transfer.head import Head, trunk_rates
from transfer.ranking import Labels, average_precisions, chance_map, resampled_map


@dataclass(frozen=True, kw_only=True)
class Recipe(BaseRecipe):
    """The protocol's constants (protocols 4.1 throughout).

    Paper: "random crops", no constants; released code: VC, published months later; we: VC.
    """

    year: str = "VOC2007"
    train_split: str = "trainval"  # 5,011 images
    test_split: str = "test"  # 4,952 images
    train_images: int | None = None  # None: all; else that many, evenly spaced
    test_images: int | None = None
    crop: int = 227
    scale: tuple[float, float] = (0.5, 2.0)  # of the crop's side, capped by the image's shorter side
    batch: int = 16
    iterations: int = 80_000
    rate: float = 1e-3
    rate_factor: float = 0.5  # every rate_step iterations
    rate_step: int = 10_000
    momentum: float = 0.9
    decay: float = 1e-6
    bias_rate: float = 2.0  # times the rate
    bias_decay: float = 1.0  # times the decay
    clip: float = 10.0  # of the global gradient norm; 0: none
    width: int = 4096  # of fc6 and fc7
    # Table 2: all. VC's --train-from pool5 and drop7: what lies before stays as loaded, or as filled.
    trained: Literal["all", "fc6-8", "fc8"] = "all"
    calibrated: bool = False  # fresh layers fitted to the encoder's scales (transfer.head.prepare)
    crops: int = 10  # per test image, from the training distribution
    # conv1–conv5: times the rate and each layer's multiplier (transfer.head.trunk_rates); published: one rate for all
    trunk_rate: float | None = field(default=None, kw_only=True, metadata=ADDED)
    dropout: float = field(default=0.5, kw_only=True, metadata=ADDED)  # of fc6 and fc7


PREPARED_ON = 64  # images
PAPER = Recipe(name="paper")
# Without dropout, which so short a run has no use for, and without a clip, which holds back the encoders whose
# gradients are large in their own scales.
SHORT: dict[str, Any] = {
    "rate": 3e-3, "rate_factor": 0.2, "clip": 0.0, "width": 512, "dropout": 0.0, "calibrated": True, "trunk_rate": 0.3,
    "crops": 4,
}  # fmt: skip
# Real VOC, about 3 minutes on two CPU cores.
QUICK = Recipe(name="quick", train_images=1600, test_images=500, iterations=360, rate_step=240, **SHORT)
RECIPES = {
    "paper": PAPER,
    "paper-fc6-8": replace(PAPER, name="paper-fc6-8", trained="fc6-8"),
    "paper-fc8": replace(PAPER, name="paper-fc8", trained="fc8"),
    "quick": QUICK,
    "quick-fc6-8": replace(QUICK, name="quick-fc6-8", trained="fc6-8"),
    "quick-fc8": replace(QUICK, name="quick-fc8", trained="fc8"),
    # The embedded data, about 30 seconds on two CPU cores.
    "tiny": Recipe(name="tiny", iterations=70, rate_step=50, **SHORT),
}


class Classifier(nn.Module):
    """N×3×227×227 → N×20 scores before the sigmoid: AlexNet to pool5, fc6, fc7, fc8."""

    def __init__(self, recipe: Recipe, architecture: Architecture = CAFFENET) -> None:
        super().__init__()
        self.trunk, self.precision = AlexNet(architecture), recipe.precision
        side = (recipe.crop - 35) // 32  # 227 → 6
        self.head = Head(
            channels=architecture.widths[-1], side=side, width=recipe.width, prepared=recipe.calibrated,
            dropout=recipe.dropout,
        )  # fmt: skip
        # VC: the output layer is N(0, 0.01) with bias 0.1.
        self.fc8 = filled(nn.Linear(recipe.width, len(voc.CLASSES)), std=0.01, bias=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        with autocast(x.device, self.precision):
            x = self.head(self.trunk(x))
        return self.fc8(widened(x))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Split:
    """The images of one split: their folder (…/VOC2007), their ids, and labels (images×20; see voc.presence)."""

    year: Path
    ids: list[str]
    labels: Labels

    def image(self, index: int) -> Tensor:
        """3×H×W uint8. Raises Missing or Failed, naming the file."""
        pixels = voc.read_image(voc.image_path(self.year, self.ids[index]))
        return torch.from_numpy(pixels).permute(2, 0, 1)


def _ids(recipe: Recipe, devkit: Path) -> tuple[list[str], list[str]]:
    """The training and test ids."""
    year = devkit / recipe.year
    train = voc.at_most(voc.image_set(year, "Main", recipe.train_split), recipe.train_images)
    return train, voc.at_most(voc.image_set(year, "Main", recipe.test_split), recipe.test_images)


def _split(year: Path, ids: list[str]) -> Split:
    return Split(year, ids, voc.presence(voc.read_annotation(voc.annotation_path(year, name)) for name in ids))


def data(recipe: Recipe, devkit: Path) -> Data:
    """Digest the lists, images and XML of both splits. Raises Missing, naming what is not there."""
    train, test = _ids(recipe, devkit)
    return voc.labelled(devkit, recipe.year, train=(recipe.train_split, train), test=(recipe.test_split, test))


def evaluate(encoder: Encoder, recipe: Recipe, devkit: Path, *, seed: int, work: Path, device: torch.device) -> Outcome:
    """Fine-tune the layers that the recipe trains on the training split and score the test split.

    metrics: map_sklearn (the headline: VC's call, today's step-wise sum), map_trapezoid (what that
    call meant before scikit-learn 0.19), map_11point, each over `crops` crops; map_sklearn_1crop;
    chance_map_sklearn and its _spread: mean and standard deviation of map_sklearn over random rankings of
    these test labels. Raises Failed when the loss is no longer finite or a file cannot be read whole.
    """
    train, test = (_split(devkit / recipe.year, ids) for ids in _ids(recipe, devkit))
    model, receipt = build(encoder, recipe, seed=seed, device=device)
    _train(model, train, recipe, seed=seed, work=work)
    scores = _score(model, test, recipe, seed=seed)
    if not scores.isfinite().all():
        raise Failed(f"classification: some scores are not finite, training diverged: {REMEDY}")
    return _outcome(scores, test.labels, receipt)


def build(encoder: Encoder, recipe: Recipe, *, seed: int, device: torch.device) -> tuple[Classifier, Receipt]:
    """A classifier with the encoder's weights and a fresh head, and the receipt for the ten tensors."""
    reseed(seed, "classification", "head")
    model = Classifier(recipe, encoder.architecture)
    receipt = load_encoder(model.trunk, encoder)
    model.trunk.requires_grad_(recipe.trained == "all")
    model.head.requires_grad_(recipe.trained != "fc8")
    return model.to(device), receipt


def _train(model: Classifier, split: Split, recipe: Recipe, *, seed: int, work: Path) -> None:
    """Fine-tune in place, from the checkpoint in `work` if there is one; one of the end needs no training image."""
    path = work / "checkpoint.pt"
    saved = load_checkpoint(path)
    if saved and ended(saved, "iteration", most=recipe.iterations):
        _restore(path, saved, model, None, recipe)
        return
    images, labels = _decode(split), torch.from_numpy(split.labels)
    groups = parameter_groups(
        model, rate=recipe.rate, decay=recipe.decay, bias_rate=recipe.bias_rate, bias_decay=recipe.bias_decay,
        own=_prepare(model, images, recipe, seed=seed) if recipe.calibrated else None,
    )  # fmt: skip
    optimizer = torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum)
    rates = [group["lr"] for group in optimizer.param_groups]
    start, due = _restore(path, saved, model, optimizer, recipe) if saved else 0, checkpoint_due()
    device = next(model.parameters()).device
    model.train()
    with Progress("classification: train", total=recipe.iterations, start=start) as shown:
        for iteration in range(start, recipe.iterations):
            set_rates(optimizer, [rate * recipe.rate_factor ** (iteration // recipe.rate_step) for rate in rates])
            reseed(seed, "classification", iteration)
            chosen = shuffled(len(images), batch=recipe.batch, seed=seed, iteration=iteration)
            crops = random_crops([images[i].to(device) for i in chosen], recipe, generator(seed, "crops", iteration))
            loss = _step(model, optimizer, crops, labels[chosen].to(device), recipe)
            if not math.isfinite(loss):
                raise Failed(f"classification: the loss is {loss} at iteration {iteration + 1}: {REMEDY}")
            if iteration + 1 == recipe.iterations:
                check_finite(model, task="classification")
            if due() or iteration + 1 == recipe.iterations:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                save_checkpoint(path, state | {"iteration": iteration + 1})
            shown.step(f"loss {loss:.3f}")


def _prepare(model: Classifier, images: Sequence[Tensor], recipe: Recipe, *, seed: int) -> dict[str, float] | None:
    """Fit the fresh layers to the encoder, on crops of PREPARED_ON training images; the trunk's rates, if any."""
    device = next(model.parameters()).device
    sample = [images[i * len(images) // PREPARED_ON].to(device) for i in range(PREPARED_ON)]
    crops = random_crops(sample, recipe, generator(seed, "calibrate"))
    model.eval()
    model.head.prepare(lambda: model(crops))
    if recipe.trunk_rate is None or recipe.trained != "all":
        return None
    top = lambda: model.head.standardise(model.trunk(crops))  # noqa: E731
    return trunk_rates(model.trunk, top, times=recipe.trunk_rate, prefix="trunk.", seed=seed)


def _restore(
    path: Path, saved: dict[str, Any], model: Classifier, optimizer: torch.optim.Optimizer | None, recipe: Recipe
) -> int:
    """Load a checkpoint; the iterations it has behind it."""
    return restore(
        path, saved, network=("model", model), optimizer=optimizer, count="iteration", most=recipe.iterations
    )


def _step(model: Classifier, optimizer: torch.optim.Optimizer, crops: Tensor, labels: Tensor, recipe: Recipe) -> float:
    loss = multilabel_loss(model(crops), labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if recipe.clip:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return float(loss.detach())


def _decode(split: Split) -> list[Tensor]:
    """All images, decoded once, 3×H×W uint8."""
    with threads() as pool:
        count = range(len(split.ids))
        return list(progress(pool.map(split.image, count), "classification: decode", total=len(count)))


def multilabel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """N×20 scores and labels (1, 0 ambiguous, -1) → the summed sigmoid cross-entropy / N (protocols 4.1)."""
    each = F.binary_cross_entropy_with_logits(scores, (labels > 0).float(), reduction="none")
    return (each * (labels != 0)).sum() / len(scores)


def random_crops(images: Sequence[Tensor], recipe: Recipe, random: torch.Generator) -> Tensor:
    """n images 3×H×W uint8, of any sizes → n×3×crop×crop float, mean-subtracted; one crop of each.

    VC's sampler (protocols 4.1): scale s ~ U(min(0.5, m), m) with m = min(2, H/227, W/227), a square
    window of side 227·s at a uniform position, mirrored with chance 1/2, bilinear, no aspect change.
    """
    crop, device = recipe.crop, images[0].device
    sizes = torch.tensor([image.shape[1:] for image in images], dtype=torch.float64)  # n×(H, W)
    largest = (sizes.amin(1) / crop).clamp(max=recipe.scale[1])
    smallest = largest.clamp(max=recipe.scale[0])
    draw = torch.rand(4, len(images), dtype=torch.float64, generator=random)
    window = crop * (smallest + draw[0] * (largest - smallest))
    top_left = draw[1:3].T * (sizes - window[:, None])
    mirror = torch.where(draw[3] < 0.5, -1.0, 1.0).double()
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    margins = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in images]
    padded = torch.cat(
        [F.pad(image[None].float(), m, mode="replicate") for image, m in zip(images, margins, strict=True)]
    )
    # affine_grid's frame: -1 and 1 are the padded image's outer edges (align_corners=False).
    full = torch.tensor([height, width], dtype=torch.float64)
    centre = (top_left + window[:, None] / 2) / full * 2 - 1
    extent = window[:, None] / full
    theta = torch.zeros(len(images), 2, 3, dtype=torch.float64)
    theta[:, 0, 0], theta[:, 0, 2] = extent[:, 1] * mirror, centre[:, 1]
    theta[:, 1, 1], theta[:, 1, 2] = extent[:, 0], centre[:, 0]
    grid = F.affine_grid(theta.float().to(device), [len(images), 3, crop, crop], align_corners=False)
    return F.grid_sample(padded, grid, padding_mode="border", align_corners=False) - mean_rgb(device)


@torch.no_grad()
def _score(model: Classifier, split: Split, recipe: Recipe, *, seed: int) -> Tensor:
    """images×crops×20: the score of every crop of every test image."""
    model.eval()
    device, count, rows = next(model.parameters()).device, len(split.ids), []
    with threads(2) as pool:
        images = pool.map(split.image, range(count))
        for index, image in enumerate(progress(images, "classification: test", total=count)):
            crops = random_crops([image.to(device)] * recipe.crops, recipe, generator(seed, "test", index))
            rows.append(model(crops).cpu())
    return torch.stack(rows)


def _outcome(scores: Tensor, labels: Labels, receipt: Receipt) -> Outcome:
    totals, first = scores.sum(1).numpy(), scores[:, 0].numpy()
    summed, single = totals.astype(np.float64), first.astype(np.float64)
    by_name = {
        "map_sklearn": average_precisions(summed, labels, metric="sklearn"),
        "map_trapezoid": average_precisions(summed, labels, metric="trapezoid"),
        "map_11point": average_precisions(summed, labels, metric="11point"),
        "map_sklearn_1crop": average_precisions(single, labels, metric="sklearn"),
    }
    means = {name: float(np.mean([v for v in values if v is not None])) for name, values in by_name.items()}
    means |= dict(zip(("chance_map_sklearn", "chance_map_sklearn_spread"), chance_map(labels), strict=True))
    per_class = dict(zip(voc.CLASSES, by_name["map_sklearn"], strict=True))
    per_image = {"scores": totals, "labels": labels.astype(np.int8)}
    return Outcome(metrics=means, per_class=per_class, receipt=receipt, per_image=per_image)


def resampled(per_image: Mapping[str, NDArray[Any]], weights: NDArray[np.int64]) -> voc.Floats:
    """B×images copies of each test image → B values of map_sklearn."""
    return resampled_map(per_image["scores"].astype(np.float64), per_image["labels"].astype(np.int64), weights)

"""VOC07 detection (Table 2, column 2): Fast R-CNN, trained on multiple scales, tested on one.

protocols 5.1 (FR is rbgirshick/fast-rcnn) and 5.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.utils.events import EventStorage
from numpy.typing import NDArray
from PIL import Image

from pretrain.alexnet import Encoder, load_encoder
from pretrain.checkpoints import checkpoint_due, ended, load_checkpoint, made_by, restore, save_checkpoint
from pretrain.files import Failed, digest
from pretrain.progress import Progress, log, progress
from pretrain.randomness import derived, generator, reseed, shuffled
from pretrain.solver import parameter_groups, set_rates
from pretrain.workers import threads
from transfer import Data, Outcome, voc
from transfer.detections import (
    Detections,
    average_precision,
    chance,
    joined,
    limited,
    per_image,
    resampled_map,
    suppressed,
)
from transfer.divergence import REMEDY, check_finite
from transfer.fast_rcnn import STRIDE, Example, Recipe, build, model_input, prepare, target_statistics
from transfer.proposals import SelectiveSearch, proposals
from transfer.published_proposals import published_boxes, published_files

PREPARED_ON = 40  # images

# 150k iterations of 2 images up to 1200×2000: a day or more on one GPU.
PAPER = Recipe(
    name="paper",
    year="VOC2007", train_split="trainval", test_split="test", train_images=None, test_images=None,
    search=SelectiveSearch(mode="fast", side=None, least=20, most=2000), published=True,
    train_sides=(480, 576, 688, 864, 1200), train_longest=2000, test_side=600, test_longest=1000,
    iterations=150_000, rate=1e-3, rate_every=50_000, rate_factor=0.1, momentum=0.9, decay=5e-4,
    freeze_conv1=False,
    images_per_batch=2, rois_per_image=64, foreground_fraction=0.25, foreground_overlap=0.5, background_overlap=0.1,
    smooth_l1_beta=1.0, head_width=4096, conditioned=False, nms=0.3, most_per_image=100, most_per_class=40,
)  # fmt: skip
SHORT = replace(
    PAPER,
    name="quick", published=False,
    iterations=500, rate=3e-3, rate_every=350, images_per_batch=4, rois_per_image=32, foreground_fraction=0.5,
    head_width=512, conditioned=True, dropout=0.0, trunk_rate=0.3,
)  # fmt: skip
# Fast R-CNN as it was published: one scale, 40k iterations. From scratch it ends 10 points lower (5.2).
PAPER_40K = replace(
    PAPER, name="paper-40k", train_sides=(600,), train_longest=1000, iterations=40_000, rate_every=30_000
)
RECIPES = {
    "paper": PAPER,
    "paper-conv1-frozen": replace(PAPER, name="paper-conv1-frozen", freeze_conv1=True),
    "paper-40k": PAPER_40K,
    "paper-40k-conv1-frozen": replace(PAPER_40K, name="paper-40k-conv1-frozen", freeze_conv1=True),
    # Real VOC, about 4 minutes on two CPU cores, and one more for the proposals the first time.
    "quick": replace(
        SHORT, train_images=1000, test_images=250, search=SelectiveSearch(mode="fast", side=120, least=16, most=500),
        train_sides=(240,), train_longest=480, test_side=240, test_longest=480,
    ),
    # The embedded data, about a minute on two CPU cores. A random encoder: 11-point mAP 0.34, by chance 0.01.
    "tiny": replace(
        SHORT, name="tiny", test_images=150, search=SelectiveSearch(mode="fast", side=100, least=12, most=300),
        train_sides=(160,), train_longest=320, test_side=160, test_longest=320,
        iterations=120, rate_every=84, rois_per_image=24,
    ),
}  # fmt: skip


def data(recipe: Recipe, devkit: Path) -> Data:
    """Digest the split lists, images, annotations and published proposals that `recipe` reads."""
    year, counts = devkit / recipe.year, {}
    paths = list(published(recipe, devkit).values())
    root = devkit.parent if paths else devkit  # the published files lie beside it
    for role, split, count in splits(recipe):
        ids = voc.at_most(voc.image_set(year, "Main", split), count)
        counts[role] = len(ids)
        paths += [where(year, i) for i in ids for where in (voc.image_path, voc.annotation_path)]
        paths.append(year / "ImageSets" / "Main" / f"{split}.txt")
    split_names, sources = f"{recipe.train_split} → {recipe.test_split}", {"proposals": proposal_source(recipe, devkit)}
    sha256 = digest(root, set(paths))
    return Data(split_names, counts, sha256, sources | voc.sources(paths))


def published(recipe: Recipe, devkit: Path) -> dict[str, Path]:
    """Split → the authors' file of its proposals; {} when there is none, or the recipe does without."""
    names = [split for _, split, _ in splits(recipe)]
    return published_files(devkit, recipe.year, names) if recipe.published else {}


def proposal_source(recipe: Recipe, devkit: Path) -> str:
    """What the proposals are, for the result and the table."""
    names = [path.name for path in published(recipe, devkit).values()]
    if names:
        return " + ".join(names) + " (published)"
    return f"OpenCV {cv2.__version__} selective search, {recipe.search.mode}"


def splits(recipe: Recipe) -> tuple[tuple[str, str, int | None], ...]:
    """(role, split, how many images at most) for training and testing."""
    return ("train", recipe.train_split, recipe.train_images), ("test", recipe.test_split, recipe.test_images)


def examples(recipe: Recipe, devkit: Path, split: str, count: int | None, *, cache: Path) -> list[Example]:
    """The images of a split, checked against their annotations, with proposals."""
    year = devkit / recipe.year
    listed = voc.image_set(year, "Main", split)
    ids = voc.at_most(listed, count)
    images = [voc.image_path(year, i) for i in ids]
    annotations = [read_checked(image, voc.annotation_path(year, i)) for image, i in zip(images, ids, strict=True)]
    if given := published(recipe, devkit):
        sizes = {i: (a.width, a.height) for i, a in zip(ids, annotations, strict=True)}
        by_id = published_boxes(given[split], listed=listed, sizes=sizes)
        boxes = [by_id[i] for i in ids]
    else:
        boxes = proposals(images, recipe.search, cache=cache)
    return [Example(*parts) for parts in zip(images, annotations, boxes, strict=True)]


def read_checked(image: Path, xml: Path) -> voc.Annotation:
    """Read `xml`; Failed when it speaks of another size than the image has."""
    annotation = voc.read_annotation(xml)
    try:
        with Image.open(image) as opened:
            width, height = opened.size
    except OSError:
        height, width = voc.read_image(image).shape[:2]  # raises, naming file and remedy
    if (annotation.width, annotation.height) != (width, height):
        raise Failed(
            f"{xml}: says {annotation.width}×{annotation.height}, {image.name} is {width}×{height}: correct the file"
        )
    return annotation


def batch(train: Sequence[Example], recipe: Recipe, *, seed: int, iteration: int) -> list[dict[str, Any]]:
    """The images of an iteration: the next in shuffled passes over all images and their mirrors."""
    size, own = recipe.images_per_batch, derived(seed, "detection")
    picks = shuffled(2 * len(train), batch=size, seed=own, iteration=iteration)
    draws = torch.randint(len(recipe.train_sides), (size,), generator=generator(own, "scale", iteration))
    inputs = []
    for pick, draw in zip(picks.tolist(), draws.tolist(), strict=True):
        flipped, index = divmod(pick, len(train))
        side, longest = recipe.train_sides[draw], recipe.train_longest
        inputs.append(model_input(train[index], side=side, longest=longest, flipped=flipped == 1)[0])
    return inputs


def fit(model: Any, train: Sequence[Example], recipe: Recipe, *, seed: int, work: Path, run: str) -> None:
    """Train `model`, continuing from the checkpoint of `run` in `work`; the next images are read meanwhile."""
    path = work / "checkpoint.pt"
    saved = resumed(path, run)
    if saved and ended(saved, "done", most=recipe.iterations):  # nothing but the test is left
        restore(path, saved, network=("model", model), optimizer=None, count="done", most=recipe.iterations)
        return
    own = None
    if recipe.conditioned:
        seen = train[:: max(1, len(train) // PREPARED_ON)]
        inputs = [model_input(x, side=recipe.test_side, longest=recipe.test_longest)[0] for x in seen]
        own = prepare(model, inputs, recipe, seed=seed)
    groups = parameter_groups(model, rate=recipe.rate, decay=recipe.decay, own=own)
    optimizer = torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum)
    rates = [group["lr"] for group in optimizer.param_groups]
    due, start = checkpoint_due(), 0
    if saved:
        most = recipe.iterations
        start = restore(path, saved, network=("model", model), optimizer=optimizer, count="done", most=most)
    model.train()
    with Progress("detection: train", total=recipe.iterations, start=start) as shown, threads(1) as reader:
        ahead = reader.submit(batch, train, recipe, seed=seed, iteration=start)
        for i in range(start, recipe.iterations):
            inputs, ahead = ahead.result(), reader.submit(batch, train, recipe, seed=seed, iteration=i + 1)
            reseed(seed, "detection", i)
            set_rates(optimizer, [rate * recipe.rate_factor ** (i // recipe.rate_every) for rate in rates])
            with EventStorage(i):
                loss = sum(model(inputs).values())
            if not loss.isfinite():
                raise Failed(f"detection: the loss is {loss.item()} at iteration {i + 1}: {REMEDY}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shown.step(f"loss {loss.item():.3f}")
            if i + 1 == recipe.iterations:
                check_finite(model, task="detection")
            if due() or i + 1 == recipe.iterations:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                save_checkpoint(path, {"run": run, "done": i + 1, **state})


def resumed(path: Path, run: str) -> dict[str, Any] | None:
    """The checkpoint of this very run, if there is one."""
    state = load_checkpoint(path)
    if state is not None and not made_by(state, "run", run):
        log(f"{path}: of another run (encoder, recipe or seed): starting over")
        return None
    return state


@torch.no_grad()
def detect(model: Any, test: Sequence[Example], recipe: Recipe) -> Detections:
    """Detections in all images of `test`: FR's two limits on candidates, then NMS."""
    model.eval()
    found = []
    for index, example in enumerate(progress(test, "detection: test", total=len(test))):
        inputs, scale = model_input(example, side=recipe.test_side, longest=recipe.test_longest)
        inputs["proposals"] = distinct(inputs["proposals"])
        out = model.inference([inputs], do_postprocess=False)[0].to("cpu")
        images, labels = np.full(len(out), index), out.pred_classes.numpy()
        boxes = (out.pred_boxes.tensor / scale).double().numpy()
        found.append(Detections(images, labels, out.scores.double().numpy(), boxes))
    # Released code: scores are written with three decimals before the AP is computed; we keep them whole.
    best = limited(joined(found), recipe.most_per_class * len(test))
    return suppressed(best, nms=model.roi_heads.box_predictor.test_nms_thresh)


def distinct(given: Any) -> Any:
    """The first of all proposals that are the same after rounding to the feature map's cells, and in `copies` how
    many there are: as in FR, one is computed, and its scores and boxes then count for each (fast_rcnn.Predictor).
    """
    cells = (given.proposal_boxes.tensor / STRIDE).round().numpy()
    _, first, copies = np.unique(cells, axis=0, return_index=True, return_counts=True)
    chosen = given[torch.from_numpy(np.sort(first))]
    chosen.copies = torch.from_numpy(copies[np.argsort(first)])
    return chosen


def evaluate(
    encoder: Encoder, recipe: Recipe, devkit: Path, *, seed: int, work: Path, device: torch.device,
    cache: Path | None = None,
) -> Outcome:  # fmt: skip
    """Train on the train split, then score the test split.

    Proposals that are computed are kept in `cache`; by default RUNS/proposals where `work` is RUNS/transfer/….

    map_11point and map_area: the mean over the classes of per_class with an object to find.
    chance_map_11point and its _spread: see transfer.detections.chance.
    """
    cache = cache or next((folder.parent for folder in work.parents if folder.name == "transfer"), work) / "proposals"
    log(f"detection: proposals: {proposal_source(recipe, devkit)}")
    train, test = (examples(recipe, devkit, split, count, cache=cache) for _, split, count in splits(recipe))
    means, stds = target_statistics(train, overlap=recipe.foreground_overlap)
    model = build(recipe, means=means, stds=stds, seed=seed, architecture=encoder.architecture)
    receipt = load_encoder(model.backbone.trunk, encoder)
    fit(model.to(device), train, recipe, seed=seed, work=work, run=f"{encoder.sha256} {recipe.sha256} {seed}")
    found, truths = detect(model, test, recipe), [example.annotation for example in test]
    aps = average_precision(found, truths)
    known = [ap for ap in aps.values() if ap]
    if not known:
        raise Failed(f"{devkit / recipe.year}: {recipe.test_split} shows no object but difficult ones: list others")
    eleven, area = np.mean(known, axis=0)
    metrics = {"map_11point": float(eleven), "map_area": float(area)}
    metrics |= dict(zip(("chance_map_11point", "chance_map_11point_spread"), chance(found, truths), strict=True))
    per_class = {name: ap[0] if ap else None for name, ap in aps.items()}
    return Outcome(metrics, per_class, receipt, per_image(found, truths))


def resampled(per_image: Mapping[str, NDArray[Any]], weights: NDArray[np.int64]) -> voc.Floats:
    """B×images copies of each test image → B values of map_11point."""
    return resampled_map(per_image, weights)

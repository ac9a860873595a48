"""VOC12 segmentation with FCN-32s (protocols 6.1), trained and tested by mmengine's Runner."""

import contextlib
import math
import sys
import uuid
from collections.abc import Iterator, Mapping
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import mmengine.hooks
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

import transfer
from pretrain.alexnet import CAFFENET, Architecture, Encoder, load_encoder
from pretrain.checkpoints import (
    Unfit,
    checkpoint_due,
    ended,
    finite,
    load_checkpoint,
    made_by,
    restore,
    restoring,
    save_checkpoint,
)
from pretrain.files import Failed, Missing, digest
from pretrain.progress import Progress, log
from pretrain.randomness import derived, generator, reseed
from transfer import Data, Outcome, voc
from transfer.divergence import REMEDY, check_finite
from transfer.fcn import Recipe, build_model, optimizer
from transfer.head import prepare, trunk_rates
from transfer.iu import LABELS, class_iu, histogram, resampled_mean_iu, scores
from transfer.truth import Example, check_objects, read_truth

YEAR = "VOC2012"
TRAIN, TEST = "train", "test"
PREPARED_ON = 32  # images


# The same FCN-32s for a few thousand images instead of two million: fresh layers fitted to the encoder, no dropout,
# and a weighted loss, for otherwise nothing outweighs background's three quarters so early.
SHRUNK: dict[str, Any] = {"train": "train", "conv1_pad": 20, "fc6_pad": 3, "width": 512, "accumulate": 4}
SHRUNK |= {"dropout": 0.0, "rate": 4e-3, "prepared": True, "trunk_rate": 0.3}
RECIPES = {
    "tiny": Recipe("tiny", test="val", side=128, background_weight=0.15, iterations=160, **SHRUNK),
    "quick": Recipe("quick", test="seg11valid", side=224, background_weight=0.1, iterations=500, **SHRUNK),
    "paper": Recipe("paper", train="sbd", test="seg11valid", score_every=4000),
}


def sbd_folder(devkit: Path) -> Path:
    """Where SBD's benchmark.tgz is unpacked: beside the devkit."""
    return devkit.parent / "benchmark_RELEASE" / "dataset"


def sbd_examples(devkit: Path) -> list[Example]:
    """SBD's train images. Raises Missing, naming the folder, when SBD is not there."""
    folder = sbd_folder(devkit)
    if not (folder / "train.txt").is_file():
        raise Missing(f"{folder}: no SBD here (train.txt, cls/, img/): unpack SBD's benchmark.tgz beside the VOCdevkit")
    ids = voc.read_ids(folder / "train.txt")
    return [Example(folder / "img" / f"{i}.jpg", folder / "cls" / f"{i}.mat") for i in ids]


def voc_ids(devkit: Path, split: str) -> list[str]:
    """Ids of a VOC2012 split; seg11valid is shipped, and a devkit's own list (a part of it) goes first."""
    if split == "seg11valid" and not split_path(devkit, split).is_file():
        return resources.files(transfer).joinpath("seg11valid.txt").read_text(encoding="utf-8").split()
    return voc.image_set(devkit / YEAR, "Segmentation", split)


def split_path(devkit: Path, split: str) -> Path:
    """Where a split's list lies."""
    if split == "sbd":
        return sbd_folder(devkit) / "train.txt"
    return devkit / YEAR / "ImageSets" / "Segmentation" / f"{split}.txt"


def examples(recipe: Recipe, devkit: Path, *, part: str) -> list[Example]:
    """What `recipe` trains (part "train") or tests ("test") on."""
    split = recipe.train if part == TRAIN else recipe.test
    if split == "sbd":
        return sbd_examples(devkit)
    year = devkit / YEAR
    return [Example(voc.image_path(year, i), voc.mask_path(year, i)) for i in voc_ids(devkit, split)]


def data(recipe: Recipe, devkit: Path) -> Data:
    """Digest the lists, images and masks.

    Raises Missing, naming the first file that is not there, Failed when the masks of a part show no object.
    """
    parts = {part: examples(recipe, devkit, part=part) for part in (TRAIN, TEST)}
    lists = [path for split in (recipe.train, recipe.test) if (path := split_path(devkit, split)).is_file()]
    files = {path for part in parts.values() for e in part for path in (e.image, e.mask)}
    root = devkit.parent if recipe.train == "sbd" else devkit
    sha256 = digest(root, {*files, *lists})
    for part, split in ((TRAIN, recipe.train), (TEST, recipe.test)):
        check_objects(parts[part], split_path(devkit, split))
    counts = {part: len(found) for part, found in parts.items()}
    return Data(split=f"{recipe.train} → {recipe.test}", images=counts, sha256=sha256)


Item = dict[str, Any]


class Images(Dataset[Item]):
    """RGB images, reduced to the recipe's side, with masks: reduced alike to train, whole to test."""

    def __init__(self, examples: list[Example], *, side: int | None, part: str) -> None:
        self.examples, self.side, self.part = examples, side, part
        self.kept: dict[int, tuple[voc.Bytes, voc.Bytes]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Item:
        """3×h×w image and 1×H×W mask as mmseg's model takes them."""
        pixels, mask = self.kept.get(index) or self.read(index)
        if self.part == TRAIN and self.side is not None:
            self.kept[index] = pixels, mask
        sample = SegDataSample(metainfo={"img_shape": pixels.shape[:2], "ori_shape": mask.shape})
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(mask).long()[None])
        return {"inputs": torch.from_numpy(pixels).permute(2, 0, 1), "data_samples": sample}

    def read(self, index: int) -> tuple[voc.Bytes, voc.Bytes]:
        """h×w×3 and H×W."""
        example = self.examples[index]
        pixels = voc.read_image(example.image)
        mask = read_truth(example.mask, size=pixels.shape[:2])
        if self.side is None or self.side >= max(mask.shape):
            return pixels, mask
        size = tuple(max(1, round(n * self.side / max(mask.shape))) for n in reversed(mask.shape))
        if self.part == TRAIN:
            mask = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)), mask


class Draws(Sampler[int]):
    """With replacement (protocols 6.1); the n-th draw is a function of (seed, n)."""

    def __init__(self, images: int, *, seed: int) -> None:
        self.images, self.seed, self.start = images, seed, 0

    def skip(self, draws: int) -> None:
        """Start `draws` later: mmengine calls this when it resumes."""
        self.start += draws

    def __iter__(self) -> Iterator[int]:
        for n in count(self.start):
            yield int(torch.randint(self.images, (), generator=generator(self.seed, "segmentation", "draw", n)))


class Score(BaseMetric):  # type: ignore[misc]
    """One histogram for each test image, in `tables` after the test; the scores are those of their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = np.zeros((0, len(LABELS), len(LABELS)), dtype=np.int64)

    def process(self, data_batch: Any, data_samples: Any) -> None:  # noqa: ARG002
        """Count one batch's pixels."""
        for sample in data_samples:
            truth, predicted = (sample[key]["data"][0].cpu().numpy() for key in ("gt_sem_seg", "pred_sem_seg"))
            self.results.append(histogram(truth, predicted))

    def compute_metrics(self, results: list[NDArray[np.int64]]) -> dict[str, float]:
        """The scores over all images."""
        self.tables = np.array(results)
        return scores(self.tables.sum(0))


class Step(mmengine.hooks.Hook):  # type: ignore[misc]
    """Around each training image: seed dropout, check the loss, show progress, score, write the checkpoint.

    Checkpoints are written between updates only, so no gradient is ever half accumulated in one.
    `history` holds the mean IU after every `score_every` updates.
    """

    def __init__(self, recipe: Recipe, *, seed: int, path: Path, identity: str, progress: Progress) -> None:
        self.recipe, self.seed, self.path, self.identity, self.progress = recipe, seed, path, identity, progress
        self.due, self.history = checkpoint_due(), dict[int, float]()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        """Seed torch for image `batch_idx`."""
        reseed(self.seed, "segmentation", batch_idx)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:  # noqa: ARG002
        """After image `batch_idx`, and after the update when it was the last one of it."""
        iteration, between = divmod(batch_idx + 1, self.recipe.accumulate)
        finished = iteration == self.recipe.iterations and not between
        loss = outputs["loss"].item()
        if not math.isfinite(loss):
            raise Failed(f"segmentation: the loss is {loss} in iteration {iteration}: {REMEDY}")
        if finished:
            check_finite(runner.model, task="segmentation")
        if between:
            return
        self.progress.step(f"loss {loss:.3f}")
        if self.recipe.score_every and iteration % self.recipe.score_every == 0 and not finished:
            self.history[iteration] = runner.test()["mean_iu"]
            runner.model.train()
            log(f"segmentation: mean IU {100 * self.history[iteration]:.1f} after {iteration} iterations")
        if finished or self.due():
            state = {"identity": self.identity, "images": batch_idx + 1, "model": runner.model.state_dict()}
            state |= {"optimizer": runner.optim_wrapper.state_dict(), "history": self.history}
            save_checkpoint(self.path, state)


def loader(recipe: Recipe, devkit: Path, *, part: str, seed: int) -> DataLoader[Item]:
    """Batches of one image: draws to train, each once to test."""
    images = Images(examples(recipe, devkit, part=part), side=recipe.side, part=part)
    sampler = Draws(len(images), seed=seed) if part == TRAIN else None
    return DataLoader(images, batch_size=1, sampler=sampler, collate_fn=collate)


def collate(items: list[Item]) -> Item:
    """Lists, as mmseg's data preprocessor takes them."""
    return {key: [item[key] for item in items] for key in items[0]}


def build_runner(
    recipe: Recipe, devkit: Path, *, seed: int, work: Path, device: torch.device, architecture: Architecture = CAFFENET
) -> Runner:
    """mmengine's Runner with the model on `device`, its own hooks, logs and seeding off."""
    reseed(seed, "segmentation", "fresh layers")
    model = build_model(recipe, architecture)
    wrapper = OptimWrapper(optimizer(model, recipe), accumulative_counts=recipe.accumulate)
    off = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
    runner = Runner(
        model=model,
        work_dir=str(work / "mmengine"),
        train_dataloader=loader(recipe, devkit, part=TRAIN, seed=seed),
        train_cfg={"by_epoch": False, "max_iters": recipe.iterations * recipe.accumulate},
        optim_wrapper=wrapper,
        test_dataloader=loader(recipe, devkit, part=TEST, seed=seed),
        test_cfg={},
        test_evaluator=[{"type": Score}],
        default_hooks=dict.fromkeys(off),
        env_cfg={"mp_cfg": {"opencv_num_threads": cv2.getNumThreads()}},
        log_level="ERROR",
        randomness={"seed": derived(seed, "segmentation") % 2**32},
        experiment_name=uuid.uuid4().hex,  # mmengine keeps loggers by name: runs must not share one
    )
    runner.model.to(device)  # mmengine moved it to the accelerator it found
    return runner


def fitted(model: Any, images: Images, recipe: Recipe, *, seed: int) -> dict[str, float] | None:
    """Fit fc6 and fc7 to the encoder, on PREPARED_ON training images (transfer.head); the trunk's rates, if any."""
    chosen = [images[i] for i in range(0, len(images), max(1, len(images) // PREPARED_ON))]
    inputs = [model.data_preprocessor(collate([item]))["inputs"] for item in chosen]
    backbone = model.eval().backbone
    prepare(backbone.standardise, (backbone.fc6, backbone.fc7), lambda: [backbone(one) for one in inputs])
    if recipe.trunk_rate is None:
        return None
    top = lambda: backbone.standardise(torch.cat([backbone.trunk(one).flatten(2) for one in inputs], 2))  # noqa: E731
    return trunk_rates(backbone.trunk, top, times=recipe.trunk_rate, prefix="backbone.trunk.", seed=seed)


def resumed(path: Path, *, identity: str) -> dict[str, Any] | None:
    """The checkpoint at `path` if it is this run's."""
    state = load_checkpoint(path)
    if state is not None and not made_by(state, "identity", identity):
        log(f"{path}: of another run: starting over")
        return None
    return state


def seen(path: Path, state: dict[str, Any], recipe: Recipe) -> dict[int, float]:
    """A checkpoint's scores on the way: iteration → mean IU. Raises Failed unless that is what they are."""
    with restoring(path):
        history = state["history"]
        if state["images"] % recipe.accumulate:
            raise Unfit("it is in the middle of an update")
        if not isinstance(history, dict) or any(type(n) is not int or n > recipe.iterations for n in history):
            raise Unfit("its history has other iterations")
        return {n: finite(history, n) for n in history}


def evaluate(encoder: Encoder, recipe: Recipe, devkit: Path, *, seed: int, work: Path, device: torch.device) -> Outcome:
    """Train FCN-32s on top of the encoder, all layers, then score it at full resolution.

    metrics: those of transfer.iu.scores after the last iteration (mean_iu is the headline), and
    best_mean_iu, the best seen on the way, where the recipe looks. Paper and released code do not say
    which one is quoted (protocols 6.1).
    """
    with contextlib.redirect_stdout(sys.stderr):  # where mmengine's loggers would write
        runner = build_runner(recipe, devkit, seed=seed, work=work, device=device, architecture=encoder.architecture)
        receipt = load_encoder(runner.model.backbone.trunk, encoder)
        path, identity = work / "checkpoint.pt", f"{recipe.sha256} {encoder.sha256} {seed}"
        saved, most = resumed(path, identity=identity), recipe.iterations * recipe.accumulate
        finished = ended(saved, "images", most=most)  # nothing but the test is left
        if recipe.prepared and not finished:
            images = Images(examples(recipe, devkit, part=TRAIN), side=recipe.side, part=TRAIN)
            own = fitted(runner.model, images, recipe, seed=seed)
            runner.optim_wrapper.optimizer = optimizer(runner.model, recipe, own=own)
        done, history, total = 0, dict[int, float](), recipe.iterations
        if saved:
            inner = None if finished else runner.optim_wrapper.optimizer
            done = restore(path, saved, network=("model", runner.model), optimizer=inner, count="images", most=most)
            history = seen(path, saved, recipe)
        with Progress("segmentation: train", total=total, start=done // recipe.accumulate) as progress:
            step = Step(recipe, seed=seed, path=path, identity=identity, progress=progress)
            step.history |= history
            if not finished:
                runner.train_loop._iter = done
                runner.register_hook(step)
                runner.train()
        metrics = runner.test()
    tables = runner.test_evaluator.metrics[0].tables
    if recipe.score_every:
        metrics["best_mean_iu"] = max([metrics["mean_iu"], *step.history.values()])
    iu = zip(LABELS, class_iu(tables.sum(0)), strict=True)
    per_class = {name: None if math.isnan(x) else float(x) for name, x in iu}
    return Outcome(metrics, per_class, receipt, {"tables": tables.astype(np.int32)})


def resampled(per_image: Mapping[str, NDArray[Any]], weights: NDArray[np.int64]) -> voc.Floats:
    """B×images copies of each test image → B values of mean_iu."""
    return resampled_mean_iu(per_image["tables"], weights)

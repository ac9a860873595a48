"""The training loop: resume, log, look, checkpoint, and in the end save the encoder alone."""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pretrain import method_module, provenance
from pretrain.alexnet import mean_rgb, read_encoder, save_encoder
from pretrain.files import Failed, Usage, atomic, load_checkpoint, save_checkpoint, write_error, write_text
from pretrain.images import Store, batches, build_store
from pretrain.masks import silhouettes
from pretrain.progress import Progress, checkpoint_due, log
from pretrain.randomness import generator, reseed

LOG_EVERY = 10  # iterations
PICTURES = 8  # grids per run


@dataclass(frozen=True)
class Config:
    """All that decides the numbers of a pre-training run, apart from the images."""

    method: str
    mask: str | None
    loss: str
    iterations: int
    batch: int
    rate: float
    seed: int
    label: str = ""

    @property
    def variant(self) -> str:
        """The part of a row's name after the method: "random-region", "central-l1", …"""
        return "-".join(filter(None, (self.mask, self.loss if self.loss != "l2" else "", self.label)))

    @property
    def name(self) -> str:
        """A row's name, as in paths."""
        return "-".join(filter(None, (self.method, self.variant)))


@dataclass(frozen=True)
class Run:
    """A run on its way: what is trained, on what, where it is kept, how far it is."""

    config: Config
    store: Store | None
    shapes: dict[str, Any] | None
    folder: Path
    device: torch.device
    pretext: Any
    optimizer: torch.optim.Optimizer


def pretrain(
    config: Config, *, images: Sequence[Path], shapes: Sequence[Path], runs: Path, device: torch.device
) -> Path:
    """Train by `config` on the image folders; return the encoder file, …/encoder.safetensors.

    `shapes` are VOC folders whose masks give the silhouettes of random-region holes. The run's
    folder under `runs` is named after everything that decides its numbers, so the same call goes on
    where it was stopped, or returns at once what is finished. Raises Failed when the loss is no
    longer finite, Usage when iterations are asked of a method that has none, and whatever
    build_store and silhouettes raise.
    """
    if config.iterations and not method_module(config.method).defaults(config.mask).iterations:
        raise Usage(f"method {config.method} is not trained: leave --iterations out, or give 0")
    store = build_store(images, runs / "stores") if config.batch else None
    cut = silhouettes(shapes) if config.mask == "random-region" else None
    shapes_used = None if cut is None else {"silhouettes": len(cut), "sha256": _digest(cut)}
    identity = json.dumps([asdict(config), store and store.sha256, shapes_used])
    folder = runs / "pretrain" / f"{config.name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    encoder = folder / "encoder.safetensors"
    if encoder.is_file():
        read_encoder(encoder)
        log(f"{encoder}: already trained")
    else:
        reseed(config.seed, "initialisation")
        pretext: Any = method_module(config.method).build(mask=config.mask, loss=config.loss, shapes=cut).to(device)
        optimizer = torch.optim.Adam(pretext.parameters(), lr=config.rate)
        run = Run(config, store, shapes_used, folder, device, pretext, optimizer)
        seconds = _train(run)
        save_encoder(encoder, pretext.encoder, _provenance(run, seconds))
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        log(f"{encoder}: written after {config.iterations} iterations")
    write_text(runs / "pretrain" / "last", f"{encoder.relative_to(runs)}\n")
    return encoder


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def _train(run: Run) -> float:
    """Train to the end, from the last checkpoint; return the seconds spent in all."""
    config, start, seconds = run.config, 0, 0.0
    if not run.store:
        return 0.0
    if not config.iterations:
        return _calibrate_only(run, run.store)
    if saved := load_checkpoint(run.folder / "checkpoint.pt"):
        start, seconds = _restore(run, saved)
        log(f"{run.folder}: going on from iteration {start}")
    journal = Journal(run.folder, start=start)
    began, due = time.monotonic() - seconds, checkpoint_due()
    stream = batches(run.store, batch=config.batch, seed=config.seed, start=start, stop=config.iterations,
                     device=run.device)  # fmt: skip
    every = max(1, config.iterations // PICTURES)
    with Progress(config.name, total=config.iterations, start=start) as shown:
        for iteration, images in enumerate(journal.timed(stream), start=start + 1):
            if iteration == 1:
                _calibrate(run, images)
            loss = _step(run, images, iteration)
            last = iteration == config.iterations
            save = due() or last
            if save or iteration % LOG_EVERY == 0:
                value = _finite(run, loss, iteration)
                journal.write(iteration, loss=value, images=config.batch, seconds=time.monotonic() - began)
            if iteration % every == 0 or last:
                _save_pictures(run, images, iteration)
            if save:
                _checkpoint(run, iteration, time.monotonic() - began)
            shown.step(journal.note)
    return time.monotonic() - began


def _calibrate_only(run: Run, store: Store) -> float:
    """A method that is not trained sees its first batch and no more; return the seconds it took."""
    config, began = run.config, time.monotonic()
    (images,) = batches(store, batch=config.batch, seed=config.seed, start=0, stop=1, device=run.device)
    _calibrate(run, images)
    return time.monotonic() - began


def _calibrate(run: Run, images: Tensor) -> None:
    reseed(run.config.seed, "calibration")
    run.pretext.calibrate(images)


def _step(run: Run, images: Tensor, iteration: int) -> Tensor:
    """One iteration; its random numbers depend on (seed, iteration) alone."""
    reseed(run.config.seed, "dropout", iteration)
    loss: Tensor = run.pretext(images, generator(run.config.seed, "holes", iteration, device=run.device))
    run.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    run.optimizer.step()
    return loss.detach()


def _finite(run: Run, loss: Tensor, iteration: int) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise Failed(
            f"{run.folder}: the loss is {value} at iteration {iteration}: lower --lr (it is {run.config.rate:g}); "
            "no encoder was written"
        )
    return value


def _checkpoint(run: Run, iteration: int, seconds: float) -> None:
    state = {"pretext": run.pretext.state_dict(), "optimizer": run.optimizer.state_dict()}
    save_checkpoint(run.folder / "checkpoint.pt", state | {"iteration": iteration, "seconds": seconds})


def _restore(run: Run, saved: dict[str, Any]) -> tuple[int, float]:
    """Put what _checkpoint saved in its place; return its iteration and seconds."""
    try:
        run.pretext.load_state_dict(saved["pretext"])
        run.optimizer.load_state_dict(saved["optimizer"])
        return saved["iteration"], saved["seconds"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        path = run.folder / "checkpoint.pt"
        raise Failed(f"{path}: not a checkpoint of this network: delete it to start this run over") from error


def _save_pictures(run: Run, images: Tensor, iteration: int) -> None:
    """pictures/<iteration>.png: one column per image; holes, filled, truth from top to bottom."""
    run.pretext.eval()
    rows = run.pretext.pictures(images[:8], generator(run.config.seed, "pictures", device=run.device))
    run.pretext.train()
    if rows:
        tiles = torch.cat([torch.cat(list(row + mean_rgb(run.device)), 2) for row in rows], 1)
        pixels = tiles.clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        with atomic(run.folder / "pictures" / f"{iteration:06d}.png") as temporary:
            Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")


def _provenance(run: Run, seconds: float) -> dict[str, Any]:
    """What an encoder file says of itself."""
    head, dirty = provenance.commit()
    store = run.store
    config = asdict(run.config)
    return config | {
        "variant": run.config.variant,
        "supervision": method_module(run.config.method).SUPERVISION,
        "images_seen": max(run.config.iterations, 1) * run.config.batch if store else 0,
        "dataset": store
        and {"name": store.name, "images": store.images, "skipped": store.skipped, "sha256": store.sha256},
        "shapes": run.shapes,
        "seconds": round(seconds, 1),
        "hardware": provenance.hardware(run.device),
        "versions": provenance.versions(),
        "commit": head,
        "dirty": dirty,
    }


class Journal:
    """log.jsonl, one JSON object per line, and the same scalars for TensorBoard.

    Lines after `start` (written before a crash, after the last checkpoint) are dropped.
    """

    def __init__(self, folder: Path, *, start: int) -> None:
        self.path, self.note = folder / "log.jsonl", ""
        self.waited, self.since, self.iteration = 0.0, time.monotonic(), start
        old = self.path.read_text().splitlines() if self.path.is_file() else []
        kept = [line for line in old if line.endswith("}") and json.loads(line)["iteration"] <= start]
        write_text(self.path, "".join(f"{line}\n" for line in kept))
        with self._writing():
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(self.path, error) from error

    def timed(self, stream: Iterator[Tensor]) -> Iterator[Tensor]:
        """Pass batches on, adding up the time that the loop waits for them."""
        while True:
            asked = time.monotonic()
            images = next(stream, None)
            self.waited += time.monotonic() - asked
            if images is None:
                with self._writing():
                    self.board.close()
                return
            yield images

    def write(self, iteration: int, *, loss: float, images: int, seconds: float) -> None:
        """One line: loss, images/s and the share of time spent waiting for data since the last."""
        elapsed = time.monotonic() - self.since
        record = {
            "iteration": iteration,
            "loss": loss,
            "images_per_second": round((iteration - self.iteration) * images / elapsed, 2),
            "waiting_share": round(self.waited / elapsed, 4),
            "seconds": round(seconds, 1),
        }
        with self._writing():
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            for name in ("loss", "images_per_second", "waiting_share"):
                self.board.add_scalar(name, record[name], iteration)
        self.note = f"loss {loss:.4g}, {record['images_per_second']:.0f} images/s"
        self.waited, self.since, self.iteration = 0.0, time.monotonic(), iteration

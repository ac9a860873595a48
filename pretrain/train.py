"""The training loop: resume, log, look, checkpoint, score the head, and in the end save the encoder alone."""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pretrain import ADAM, Dataset, Folders, Precision, Solver, method_module, parallel, provenance
from pretrain.alexnet import AlexNet, mean_rgb, read_encoder, save_encoder
from pretrain.checkpoints import (
    checkpoint_due,
    checkpoint_seconds,
    finite,
    load_checkpoint,
    restore,
    restoring,
    save_checkpoint,
)
from pretrain.files import Failed, Usage, atomic, sweep, write_text
from pretrain.images import batches, held_out_batches
from pretrain.journal import Journal
from pretrain.layers import layer_statistics
from pretrain.locks import locked
from pretrain.masks import silhouettes
from pretrain.precision import autocast
from pretrain.pretext import Loss
from pretrain.progress import Progress, log
from pretrain.randomness import ALONE, Draw, Shard, generator, reseed
from pretrain.solver import optimizer, schedule
from pretrain.store import Source

Budget = Literal["tiny", "paper"]
LOG_EVERY = 10  # iterations
PICTURES = 8  # grids per run


@dataclass(frozen=True)
class Config:
    """All that decides the numbers of a pre-training run, apart from the data itself.

    `data` says of what kind the data is where it is not of the kind that the row stands for (Source.kind).
    """

    method: str
    mask: str | None
    loss: str
    iterations: int
    batch: int
    rate: float
    seed: int
    label: str = ""
    solver: Solver = ADAM
    calibrate: bool = False
    data: str = ""
    version: int = 1  # of the method's code
    precision: Precision = "fp32"
    start: str = ""  # of the encoder: one of the method's STARTS, or its fillers

    @property
    def variant(self) -> str:
        """The part of a row's name after the method: "random-region", "central-l1", "synthetic", …"""
        start = f"{self.start}-start" if self.start else ""
        return "-".join(filter(None, (self.mask, self.loss if self.loss != "l2" else "", start, self.data, self.label)))

    @property
    def name(self) -> str:
        """A row's name, as in paths."""
        return "-".join(filter(None, (self.method, self.variant)))


def configure(
    method: str, *, folders: Folders, budget: Budget, mask: str | None = None, loss: str = "l2",
    iterations: int | None = None, batch: int | None = None, rate: float | None = None,
    seed: int = 0, label: str = "", precision: Precision = "fp32", start: str = "",
) -> Config:  # fmt: skip
    """What to train: the published budget and solver, or the shrunken ones, but for what is given.

    Raises Usage when the method takes no such mask or start, or is not trained, and what its source raises.
    """
    module = method_module(method)
    if mask and mask not in module.MASKS:
        raise Usage(f"--mask {mask}: method {method} takes {', '.join(module.MASKS) or 'no mask'}")
    mask = mask or (module.MASKS[0] if module.MASKS else None)
    chosen = module.TINY if budget == "tiny" else module.defaults(mask)
    if start and start not in module.STARTS:
        raise Usage(f"--start {start}: method {method} takes {', '.join(module.STARTS) or 'no other start'}")
    if iterations and not chosen.iterations:
        raise Usage(f"method {method} is not trained: leave --iterations out, or give 0")
    if precision != "fp32" and not chosen.iterations:
        raise Usage(f"--precision {precision}: method {method} is not trained: leave it out")
    return Config(
        method=method,
        mask=mask,
        loss=loss,
        iterations=chosen.iterations if iterations is None else iterations,
        batch=batch or chosen.batch,
        rate=rate or chosen.rate,
        seed=seed,
        label=label,
        solver=chosen.solver,
        calibrate=chosen.calibrate,
        data=module.source(folders).kind if chosen.batch else "",
        version=module.VERSION,
        precision=precision,
        start=start,
    )


@dataclass(frozen=True)
class Run:
    """A run on its way: what is trained, on what, where it is kept, which part of it is this process's."""

    config: Config
    source: Source | None
    data: Dataset | None
    shapes: dict[str, Any] | None
    folder: Path
    device: torch.device
    shard: Shard
    pretext: Any
    network: Any  # the pretext, or what averages its gradients over processes
    optimizer: torch.optim.Optimizer
    save_at: tuple[int, ...]  # iterations after which an encoder is saved on the way


def pretrain(
    config: Config, *, folders: Folders, runs: Path, device: torch.device, shard: Shard = ALONE,
    save_at: Sequence[int] = (),
) -> Path:  # fmt: skip
    """Train by `config`; return the encoder file, …/encoder.safetensors.

    The run's folder under `runs` is named after everything that decides its numbers, so the same call
    goes on where it was stopped, or returns at once what is finished. `shard`: which of the processes
    that share the run this is; all of them call it. After each iteration of `save_at` (0: before the
    first) the encoder is saved on the way, as encoder-<iteration>.safetensors, with the state of its layers.
    The folder is locked meanwhile: of two such calls one waits, and finds the encoder of the other.
    Raises Failed when the loss is no longer finite, Usage when the processes cannot share a batch evenly or
    an encoder on the way can no longer be had, and whatever the source and silhouettes raise.
    """
    _check(config, shard, save_at)
    source = method_module(config.method).source(folders) if config.batch else None
    with parallel.in_turn(shard):
        data = source.open(runs / "stores") if source else None
    if data and not len(data.train):
        raise Usage(f"{data.record['name']}: nothing to train on: all its items are held out")
    cut, shapes = _shapes(config, folders)
    folder = _folder(config, data, shapes, runs)
    encoder = folder / "encoder.safetensors"
    with nullcontext() if shard.rank else locked(folder.with_name(f"{folder.name}.lock")):
        if parallel.first_says(encoder.is_file(), shard, device):
            if not shard.rank:
                read_encoder(encoder)
                _check_saved(folder, save_at, config.iterations)
                _clear(folder)
                log(f"{encoder}: already trained")
        else:
            reseed(config.seed, "initialisation")
            built = method_module(config.method).build(data, mask=config.mask, loss=config.loss, shapes=cut)
            pretext: Any = built.to(device)
            solver = optimizer(pretext, rate=config.rate, solver=config.solver)
            network = DistributedDataParallel(pretext, forward_sync_buffers=False) if shard.world > 1 else pretext
            run = Run(config, source, data, shapes, folder, device, shard, pretext, network, solver, tuple(save_at))
            seconds = _train(run)
            if not shard.rank:
                _finish(run, encoder, seconds)
        parallel.wait(shard)
    if not shard.rank:
        write_text(runs / "pretrain" / "last", f"{encoder.relative_to(runs)}\n")
    return encoder


def _check(config: Config, shard: Shard, save_at: Sequence[int]) -> None:
    """Raise Usage, before anything is read, for what cannot be trained so."""
    if save_at and not config.iterations:
        raise Usage(f"--save-at {save_at[0]}: nothing is trained here: leave this out, the encoder is the start")
    if beyond := [n for n in save_at if n > config.iterations]:
        raise Usage(f"--save-at {beyond[0]}: training ends after {config.iterations} iterations")
    if config.batch % shard.world:
        raise Usage(f"--batch {config.batch}: not divisible among {shard.world} processes")
    checkpoint_seconds()


def finished(config: Config, *, folders: Folders, runs: Path) -> Path | None:
    """The encoder of this run, if it is trained and its data still decoded under `runs`. Decodes nothing."""
    data = method_module(config.method).source(folders).opened(runs / "stores") if config.batch else None
    if config.batch and data is None:
        return None
    encoder = _folder(config, data, _shapes(config, folders)[1], runs) / "encoder.safetensors"
    return encoder if encoder.is_file() else None


def same_training(provenance: dict[str, Any], config: Config) -> bool:
    """Whether an encoder that says this of itself was trained by `config`. Older ones lack the newer keys."""
    unsaid = {"label": "", "solver": asdict(ADAM), "calibrate": False, "data": "", "version": 1}
    unsaid |= {"precision": "fp32", "start": ""}
    matters = asdict(config)
    if not config.batch:  # no data, so what was said of batches decides nothing
        del matters["batch"]
    return all((unsaid | provenance).get(key) == value for key, value in matters.items())


def _shapes(config: Config, folders: Folders) -> tuple[Tensor | None, dict[str, Any] | None]:
    """The silhouettes of random-region holes, and what the provenance says of them."""
    if config.mask != "random-region":
        return None, None
    cut = silhouettes(folders.shapes)
    return cut, {"silhouettes": len(cut), "sha256": _digest(cut)}


def _folder(config: Config, data: Dataset | None, shapes: dict[str, Any] | None, runs: Path) -> Path:
    # What came later counts where it is not at its default: older runs keep their folders.
    decides = {k: v for k, v in asdict(config).items() if (k, v) not in (("precision", "fp32"), ("start", ""))}
    identity = json.dumps([decides, data and data.record["sha256"], shapes])
    return runs / "pretrain" / f"{config.name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def _train(run: Run) -> float:
    """Train to the end, from the last checkpoint; return the seconds spent in all."""
    config, start, seconds = run.config, 0, 0.0
    if run.data is None:
        return 0.0
    if not config.iterations:
        began = time.monotonic()
        _calibrate(run, run.data)
        return time.monotonic() - began
    if saved := load_checkpoint(run.folder / "checkpoint.pt"):
        start, seconds = _restore(run, saved)
        log(f"{run.folder}: going on from iteration {start}")
        _check_saved(run.folder, run.save_at, start)
    if parallel.first_says(start, run.shard, run.device) != start:
        raise Failed(f"{run.folder}: not every process finds its checkpoint: give --runs on a disk that all share")
    journal = Journal(run.folder, start=start, writes=not run.shard.rank)
    began, due = time.monotonic() - seconds, checkpoint_due()
    stream = batches(run.data, batch=config.batch, seed=config.seed, start=start, stop=config.iterations,
                     device=run.device, shard=run.shard)  # fmt: skip
    every = max(1, config.iterations // PICTURES)
    with Progress(config.name, total=config.iterations, start=start) as shown:
        for iteration, batch in enumerate(journal.timed(stream), start=start + 1):
            if iteration == 1:
                _calibrate(run, run.data)
                if 0 in run.save_at:
                    _save_on_the_way(run, batch, 0, 0.0)
            loss = _step(run, batch, iteration)
            last = iteration == config.iterations
            # The clocks of the processes differ: only the first one writes, and all look at the loss.
            save = not run.shard.rank and (due() or last)
            if save or last or iteration % LOG_EVERY == 0:
                value = _finite(run, loss, iteration)
                journal.write(iteration, loss=value, images=config.batch, seconds=time.monotonic() - began)
            if not run.shard.rank and (iteration % every == 0 or last):
                _save_pictures(run, batch, iteration)
            if iteration in run.save_at:  # before a checkpoint that is behind it
                _save_on_the_way(run, batch, iteration, time.monotonic() - began)
            if save:
                _checkpoint(run, iteration, time.monotonic() - began)
            shown.step(journal.note)
    return time.monotonic() - began


def _calibrate(run: Run, data: Dataset) -> None:
    """Show the network the whole first batch: every process does, so that all start the same."""
    config = run.config
    (batch,) = batches(data, batch=config.batch, seed=config.seed, start=0, stop=1, device=run.device)
    reseed(config.seed, "calibration")
    draw = Draw(generator(config.seed, "calibration", device=run.device))
    if config.start:
        run.pretext.begin(batch, config.start)
    run.pretext.calibrate(batch, draw, fresh=config.calibrate)


def _step(run: Run, batch: Any, iteration: int) -> Tensor:
    """One iteration; its random numbers depend on (seed, iteration) alone. Returns the loss of the whole batch."""
    config, shard = run.config, run.shard
    schedule(run.optimizer, iteration=iteration, solver=config.solver)
    random = generator(config.seed, "holes", iteration, device=run.device)
    with autocast(run.device, config.precision):
        found: Loss = run.network(batch, Draw(random, shard, iteration, config.iterations))
    whole = parallel.total(torch.stack([found.total.detach(), found.count.detach().to(found.total)]), shard)
    run.optimizer.zero_grad()
    # Gradients are averaged over the processes: times their number they are the sum's.
    (found.total * shard.world / whole[1]).backward()  # type: ignore[no-untyped-call]
    run.optimizer.step()
    return whole[0] / whole[1]


def _finish(run: Run, encoder: Path, seconds: float) -> None:
    """Score the head, save the encoder, drop the checkpoint."""
    held_out = _held_out(run)
    said = ", ".join(f"{name} {value:.3g}" for name, value in held_out.items())
    save_encoder(encoder, run.pretext.trained(), _provenance(run, seconds, held_out))
    _clear(run.folder)
    log(f"{encoder}: written after {run.config.iterations} iterations" + (f"; held out: {said}" if said else ""))


def _clear(folder: Path) -> None:
    """Remove what a finished run has no use for, and what killed processes left of it."""
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    for name in ("encoder.safetensors", "checkpoint.pt", "log.jsonl"):
        sweep(folder / name)


@torch.no_grad()
def _held_out(run: Run) -> dict[str, float]:
    """The head's scores on the items that were held out: means over those that it could be scored on."""
    if run.data is None:
        return {}
    run.pretext.eval()
    totals: dict[str, float] = {}
    shares: dict[str, float] = {}
    for number, (share, batch) in enumerate(held_out_batches(run.data, batch=run.config.batch, device=run.device)):
        draw = Draw(generator(run.config.seed, "scores", number, device=run.device))
        for name, value in run.pretext.scores(batch, draw).items():
            totals[name] = totals.get(name, 0.0) + share * float(value)
            shares[name] = shares.get(name, 0.0) + share
    run.pretext.train()
    return {name: round(value / shares[name], 6) for name, value in totals.items()}


def _saved(folder: Path, iteration: int) -> Path:
    return folder / f"encoder-{iteration:06d}.safetensors"


def _check_saved(folder: Path, save_at: Sequence[int], done: int) -> None:
    """Raise Usage when an encoder that was to be saved on the way is not there, and training is past it."""
    for iteration in save_at:
        if iteration <= done and not _saved(folder, iteration).is_file():
            raise Usage(f"--save-at {iteration}: {folder} has passed it: delete that to train again, or leave this out")


def _save_on_the_way(run: Run, batch: Any, iteration: int, seconds: float) -> None:
    """Save the encoder as it is after `iteration`, a row of its own, and the state of its layers on this batch.

    That state is of the first tensor of a batch, where that is images. All processes call it; one writes.
    """
    if run.shard.rank:
        return
    images = batch if isinstance(batch, Tensor) else batch[0]
    trunk = run.pretext.trained()
    layers = layer_statistics(trunk, images.flatten(0, -4), trained=run.pretext.encoder)
    trained = _provenance(run, seconds, {}) | {"iterations": iteration, "of_iterations": run.config.iterations}
    label = "-".join(filter(None, (run.config.label, f"at-{iteration}")))
    trained |= {"variant": replace(run.config, label=label).variant, "label": label, "layers": layers}
    trained["images_seen"] = iteration * run.config.batch
    path = _saved(run.folder, iteration)
    if not _holds(path, trunk):  # a resumed run passes here again: what was scored meanwhile stays fresh
        save_encoder(path, trunk, trained)


def _holds(path: Path, trunk: AlexNet) -> bool:
    """Whether the encoder file at `path` is there and has these very weights."""
    if not path.is_file():
        return False
    state = trunk.state_dict()
    return all(torch.equal(state[name].cpu(), tensor) for name, tensor in read_encoder(path).tensors.items())


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
    path, most = run.folder / "checkpoint.pt", run.config.iterations
    with restoring(path):
        seconds = finite(saved, "seconds", least=0.0)
    pretext = "pretext", run.pretext
    return restore(path, saved, network=pretext, optimizer=run.optimizer, count="iteration", most=most), seconds


@torch.no_grad()
def _save_pictures(run: Run, batch: Any, iteration: int) -> None:
    """pictures/<iteration>.png: one column per item; holes, filled, truth (say) from top to bottom."""
    run.pretext.eval()
    rows = run.pretext.pictures(batch, Draw(generator(run.config.seed, "pictures", device=run.device)))
    run.pretext.train()
    if rows:
        tiles = torch.cat([torch.cat(list(row[:8] + mean_rgb(run.device)), 2) for row in rows], 1)
        pixels = tiles.clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        with atomic(run.folder / "pictures" / f"{iteration:06d}.png") as temporary:
            Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")


def _provenance(run: Run, seconds: float, held_out: dict[str, float]) -> dict[str, Any]:
    """What an encoder file says of itself."""
    head, dirty = provenance.commit()
    config = asdict(run.config)
    return config | {
        "variant": run.config.variant,
        "supervision": run.source.supervision if run.source else method_module(run.config.method).SUPERVISION,
        "images_seen": max(run.config.iterations, 1) * run.config.batch if run.data else 0,
        "dataset": run.data and run.data.record,
        "held_out": held_out,
        "processes": run.shard.world,
        "shapes": run.shapes,
        "seconds": round(seconds, 1),
        "hardware": provenance.hardware(run.device),
        "versions": provenance.versions(),
        "commit": head,
        "dirty": dirty,
    }

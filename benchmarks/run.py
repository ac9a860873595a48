"""One encoder through some tasks: reuse what is finished, go on with what is not, record the rest."""

import hashlib
import json
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.data import dataset_name
from benchmarks.result_checks import check_provenance
from benchmarks.results import SCHEMA, Result, packed, read_result, result_path, same_run, write_result
from pretrain import provenance
from pretrain.alexnet import Encoder
from pretrain.checkpoints import checkpoint_seconds
from pretrain.files import Failed, Usage
from pretrain.locks import alone, locked
from pretrain.progress import log
from transfer import TASKS, Data, Outcome, Recipe, find_recipe
from transfer.probes.descriptors import Descriptor
from transfer.voc import find_devkit

Source = Encoder | Descriptor


def transfer(
    encoder: Source, *, tasks: Sequence[str], recipe: str, data: Path, seed: int, results: Path, runs: Path,
    device: torch.device, again: bool = False,
) -> list[Path]:  # fmt: skip
    """Score `encoder` on `tasks` under the recipe of that name; return the result files.

    A result made from the same encoder, recipe and data is reused (unless `again`); any other at
    its place is stale and replaced. The folder of what is on its way is locked: of two such calls one waits, and
    finds the result of the other. Raises Usage before anything runs when a task has no such recipe, and what the
    task raises.
    """
    check_recipe(recipe, tasks)
    _check_said(encoder)
    checkpoint_seconds()
    return [
        _run(encoder, task, recipe=recipe, data=data, seed=seed, results=results, runs=runs, device=device, again=again)
        for task in tasks
    ]


def _check_said(encoder: Source) -> None:
    """Raise Failed, before hours are spent, when no result could hold what an encoder file says of itself."""
    try:
        check_provenance(encoder.provenance)
        json.dumps(encoder.provenance, allow_nan=False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed(
            f"{encoder.path}: no result can hold what it says of itself ({error}): make the encoder again"
        ) from error


def check_recipe(recipe: str, tasks: Sequence[str]) -> None:
    """Raise Usage, listing those there are, when one of `tasks` has no recipe of that name."""
    for task in tasks:
        if find_recipe(task, recipe) is None:
            raise Usage(f"--recipe {recipe}: {task} has {', '.join(TASKS[task].load().RECIPES)}")


def read_data(task: str, *, recipe: str, data: Path) -> tuple[Recipe, Path, Data]:
    """The task's recipe of that name, the VOCdevkit in `data`, and what the recipe reads there, digested."""
    module, devkit = TASKS[task].load(), find_devkit(data)
    chosen = find_recipe(task, recipe)
    assert chosen is not None  # check_recipe was called
    return chosen, devkit, module.data(chosen, devkit)


def _run(
    encoder: Source, task: str, *, recipe: str, data: Path, seed: int, results: Path, runs: Path,
    device: torch.device, again: bool,
) -> Path:  # fmt: skip
    chosen, devkit, read = read_data(task, recipe=recipe, data=data)
    method, variant = encoder.provenance["method"], encoder.provenance["variant"]
    path = result_path(results, recipe=recipe, method=method, variant=variant, task=task, seed=seed)
    identity = f"{encoder.sha256} {chosen.sha256} {read.sha256} {read.sources} {seed} {device.type}"
    work = runs / "transfer" / recipe / path.parent.name / f"{path.stem}-{_short(identity)}"
    lock = work.with_name(f"{work.name}.lock")
    if not again and _is_fresh(path, encoder, chosen, read, said=True):
        _clear(work, lock)
        return path
    name = dataset_name(data)  # now: a broken dataset.json is better found before the training than after it
    with locked(lock):
        if not again and _is_fresh(path, encoder, chosen, read, said=False):
            shutil.rmtree(work, ignore_errors=True)
            return path
        work.mkdir(parents=True, exist_ok=True)
        resumed, began = any(work.iterdir()), time.monotonic()
        outcome = TASKS[task].load().evaluate(encoder, chosen, devkit, seed=seed, work=work, device=device)
        if outcome.receipt.loaded != outcome.receipt.expected:
            raise Failed(f"{encoder.path}: only {asdict(outcome.receipt)} tensors reached {task}: nothing was recorded")
        identity_keys = {"method": method, "variant": variant, "task": task, "seed": seed}
        result = identity_keys | _record(outcome, read, encoder, device) | {
            "recipe": {"name": recipe, "sha256": chosen.sha256},
            "seconds": round(time.monotonic() - began, 1),
            "resumed": resumed,
        }  # fmt: skip
        result["data"]["name"] = name
        write_result(path, result)
        shutil.rmtree(work)
    log(f"{path}: {TASKS[task].metric} {100 * outcome.metrics[TASKS[task].metric]:.1f}")
    return path


def _clear(work: Path, lock: Path) -> None:
    """Remove what is left of a run that was killed just after it had written its result."""
    if work.exists():
        with alone(lock) as ours:
            if ours:
                shutil.rmtree(work)


def _is_fresh(path: Path, encoder: Source, recipe: Recipe, read: Data, *, said: bool) -> bool:
    """Whether the result at `path` is there, of this encoder, recipe and data; where it is stale that is `said`."""
    if not path.is_file():
        return False
    if same_run(read_result(path), encoder=encoder.sha256, recipe=recipe.sha256, data=read):
        log(f"{path}: finished, reused")
        return True
    if said:
        log(f"{path}: stale (its encoder, recipe or data changed), computed again")
    return False


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _record(outcome: Outcome, data: Data, encoder: Source, device: torch.device) -> Result:
    """The parts of a result that do not depend on where it is kept."""
    head, dirty = provenance.commit()
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "data": asdict(data),
        "encoder": {
            "sha256": encoder.sha256,
            "architecture": encoder.architecture.record() if encoder.architecture else None,
            "provenance": encoder.provenance,
        },
        "receipt": asdict(outcome.receipt),
        "metrics": outcome.metrics,
        "per_class": outcome.per_class,
        "per_image": packed(outcome.per_image),
        "peak_memory_bytes": _peak_memory(device),
        "hardware": provenance.hardware(device),
        "versions": provenance.versions(),
        "commit": head,
        "dirty": dirty,
    }
    return record


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

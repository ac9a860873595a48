"""VOC07 classification by linear SVMs on each frozen layer (Goyal et al. 2019, 5.1 and 6.1).

`bench transfer --task svm`. The cost of each class's SVM is chosen by cross-validation on the training
images; the test images see one SVM a class and layer.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pretrain.checkpoints import check_tensor, finite, load_checkpoint, restoring, save_checkpoint
from pretrain.progress import Progress, log
from transfer import Outcome, voc
from transfer.probes import images, scores
from transfer.probes.features import Rows, Source, read
from transfer.probes.images import data as data
from transfer.probes.linear import Machine, all_scores, best_costs, one_thread, rotated, validated
from transfer.probes.scores import resampled as resampled
from transfer.ranking import Labels, average_precisions


@dataclass(frozen=True, kw_only=True)
class Recipe(images.Recipe):
    """Images, features and SVMs."""

    machine: Machine = field(default_factory=Machine)


RECIPES = {name: Recipe(name=name, **counts) for name, counts in images.SIZES.items()}  # type: ignore[arg-type]


def evaluate(source: Source, recipe: Recipe, devkit: Path, *, seed: int, work: Path, device: torch.device) -> Outcome:
    """Train SVMs on every layer of both splits' features and score the test split. The seed shuffles the folds.

    metrics: <layer>_map_sklearn, _map_trapezoid, _map_11point of each layer; cv_<layer>, the mean over classes
    of the best cross-validated AP; map_sklearn (the headline), …, of the last layer, pool5; best_map_sklearn, …, of
    the layer whose cv is highest; chance_map_sklearn and its spread. per_image also keeps the replicates of each
    layer. What `work` holds of layers that are done is not computed again. Raises Failed when a feature is not finite.
    """
    features = read(source, recipe, devkit, work=work, device=device)
    labels = features.test.labels
    done = _done(work / "checkpoint.pt", labels)
    metrics: dict[str, float] = {}
    kept = {}
    with Progress("svm", total=len(features.layers)) as shown:
        for layer in features.layers:
            if layer not in done:
                done[layer] = _layer(
                    *features.layer(layer), features.train.labels, recipe.machine, seed=seed, name=layer
                )
                save_checkpoint(work / "checkpoint.pt", done)
            found, cv = done[layer][0].numpy(), done[layer][1]
            metrics |= scores.maps(found, labels, prefix=f"{layer}_") | {f"cv_{layer}": cv}
            kept[f"replicates_{layer}"] = scores.pack(scores.replicates(found, labels))
            shown.step(f"{layer} {100 * metrics[f'{layer}_map_sklearn']:.1f}")
    best = best_layer(metrics)
    for definition in scores.DEFINITIONS:
        metrics[f"map_{definition}"] = metrics[f"{layer}_map_{definition}"]
        metrics[f"best_map_{definition}"] = metrics[f"{best}_map_{definition}"]
    per_class = dict(zip(voc.CLASSES, average_precisions(found, labels, metric="sklearn"), strict=True))
    metrics |= scores.chance(labels, "map_sklearn")
    return Outcome(metrics, per_class, features.receipt, {**scores.per_image(found, labels), **kept})


def _done(path: Path, labels: Labels) -> dict[str, tuple[torch.Tensor, float]]:
    """Layer → scores and cross-validated mAP that a checkpoint holds. Raises Failed unless that is what they are."""
    saved = load_checkpoint(path) or {}
    with restoring(path):
        for layer, (found, cv) in saved.items():
            check_tensor(found, torch.zeros(labels.shape, dtype=torch.float64), layer)
            finite({layer: cv}, layer)
    return saved


def _layer(
    train: Rows, test: Rows, labels: Labels, machine: Machine, *, seed: int, name: str
) -> tuple[torch.Tensor, float]:
    """Training rows, test rows, training labels → test images×classes scores, and the cross-validated mAP."""
    if not train.any():
        log(f"svm: {name} is zero on every training image: its score is that of a ranking of ties")
    with one_thread():
        aps = validated(train, labels, machine, seed=seed)
        rows, tests = rotated(train, test)
        found = all_scores(rows, labels, tests, costs=best_costs(aps, machine), machine=machine)
    known = aps[:, ~np.isnan(aps).all(axis=0)]
    return torch.from_numpy(found), float(np.nanmax(known, axis=0).mean()) if known.size else 0.0


def best_layer(metrics: dict[str, float]) -> str:
    """The layer of a result whose cross-validated mAP is highest: chosen without the test images."""
    layers = [name.removeprefix("cv_") for name in metrics if name.startswith("cv_")]
    return max(layers, key=lambda layer: metrics[f"cv_{layer}"])

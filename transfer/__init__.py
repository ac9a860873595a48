"""Scores encoders: one module per task, one line each in TASKS.

A task module holds

- ``RECIPES``: recipe name → a frozen dataclass derived from Recipe, whose fields cite their source;
- ``data(recipe, devkit) -> Data``: what the recipe reads there, digested; Missing when it is not there;
- ``evaluate(encoder, recipe, devkit, *, seed, work, device) -> Outcome``: train, test, score. It keeps
  its checkpoint in the folder `work` and continues from it, to the same numbers;
- ``resampled(per_image, weights) -> values``: the headline metric when image i counts weights[:, i] times.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pretrain import Precision

if TYPE_CHECKING:  # slow to import, and the names of the tasks need none of it
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pretrain.alexnet import Receipt

Table = Literal["table2", "probes"]

BF16 = "-bf16"
ADDED = {"added": True}  # marks a recipe's field that came later: see Recipe.sha256


@dataclass(frozen=True)
class Recipe:
    """A protocol with its constants. Its digest is in every result, so a changed recipe shows."""

    name: str
    precision: Precision = field(
        default="fp32", kw_only=True, metadata=ADDED
    )  # of conv1–conv5, fc6 and fc7; see find_recipe

    @property
    def sha256(self) -> str:
        """Hex sha256 over every field; one that is ADDED counts where it is not at its default.

        So a recipe that has no use for a later field keeps its digest, and results made with it stay fresh.
        """
        later = {field.name: field.default for field in dataclasses.fields(self) if field.metadata == ADDED}
        said = dataclasses.asdict(self)
        text = json.dumps({k: v for k, v in said.items() if k not in later or v != later[k]}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Data:
    """What a recipe reads: the splits ("trainval → test"), images per split, a digest of it all.

    `sources` names what was not read but made, or could have come from elsewhere ("proposals").
    """

    split: str
    images: dict[str, int]
    sha256: str
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The scores of one run, each in [0, 1] under its defined name, and the loading receipt.

    `per_image` holds what `resampled` of the task needs to compute the headline metric again, image
    by image in the order of the test split, so that the metric's uncertainty can be asked for later.
    """

    metrics: dict[str, float]
    per_class: dict[str, float | None]
    receipt: "Receipt"
    per_image: "Mapping[str, NDArray[Any]]" = field(compare=False)  # arrays have no one truth


class TaskModule(Protocol):
    """What a module named in TASKS offers."""

    RECIPES: Mapping[str, Any]

    def data(self, recipe: Any, devkit: Path) -> Data:
        """Digest what `recipe` reads under `devkit`."""

    def evaluate(
        self, encoder: Any, recipe: Any, devkit: Path, *, seed: int, work: Path, device: "torch.device"
    ) -> Outcome:
        """Transfer, test and score an Encoder; a task of the table `probes` takes a Descriptor too."""

    def resampled(self, per_image: "Mapping[str, NDArray[Any]]", weights: "NDArray[np.int64]") -> "NDArray[np.float64]":
        """B×images copies of each test image → B values of the headline metric."""


@dataclass(frozen=True)
class Task:
    """A column of a table: the module that scores it, its headline metric, its split, which table."""

    module: str
    metric: str
    split: str
    table: Table = "table2"

    def load(self) -> TaskModule:
        """The task's module, imported now (the frameworks are slow to import)."""
        return import_module(self.module)


TASKS = {
    "classification": Task("transfer.classification", "map_sklearn", "VOC07 test"),
    "detection": Task("transfer.detection", "map_11point", "VOC07 test"),
    "segmentation": Task("transfer.segmentation", "mean_iu", "VOC12 val"),
    "svm": Task("transfer.probes.svm", "map_sklearn", "VOC07 test", table="probes"),
    "low-shot": Task("transfer.probes.low_shot", "k16_map_sklearn", "VOC07 test", table="probes"),
    "knn": Task("transfer.probes.knn", "map_sklearn", "VOC07 test", table="probes"),
}


def find_recipe(task: str, name: str) -> Recipe | None:
    """The task's recipe of that name; of "<name>-bf16" the recipe <name> computed in bfloat16. None when unknown.

    Frozen features are always computed in float32.
    """
    known: Mapping[str, Recipe] = TASKS[task].load().RECIPES
    base = known.get(name.removesuffix(BF16))
    if name in known or base is None or TASKS[task].table == "probes":
        return known.get(name)
    return dataclasses.replace(base, name=name, precision="bf16")


def tasks(table: Table) -> tuple[str, ...]:
    """The tasks whose scores one table holds: the fine-tuned columns of Table 2, or the probes of frozen features."""
    return tuple(name for name, task in TASKS.items() if task.table == table)

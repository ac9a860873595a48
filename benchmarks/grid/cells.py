"""The cells of a grid: an encoder, a task, a seed; whether each is done, and how it is filled."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from benchmarks import commands
from benchmarks.grid.encoders import AnyEncoder, Given, Places, Rescaling, Training, encoder, source, there
from benchmarks.grid.plan import Plan
from benchmarks.results import read_result, result_path, same_run
from benchmarks.run import transfer
from pretrain.files import Failed
from transfer import Data

State = Literal["done", "stale", "missing"]


@dataclass(frozen=True)
class Cell:
    """Score an encoder on a task with a seed: a job."""

    encoder: AnyEncoder
    task: str
    seed: int
    recipe: str
    data: Path
    places: Places

    @property
    def name(self) -> str:
        """The job's name, as in paths and lines."""
        return f"{self.recipe}/{self.encoder.row}/{self.task}-seed{self.seed}"

    @property
    def path(self) -> Path:
        """Where its result lies."""
        results, row = self.places.results, self.encoder.row
        return result_path(results, recipe=self.recipe, method=row, variant="", task=self.task, seed=self.seed)

    def state(self, file: Path | None, recipe: str, read: Data) -> State:
        """Whether its result is there, made with the encoder `file` (None: with one like it), recipe and data."""
        if not self.path.is_file():
            return "missing"
        try:
            result = read_result(self.path)
        except Failed:  # it will be told what to do with it when it is run
            return "stale"
        made_with = result["encoder"]
        sha256 = encoder(file).sha256 if file else made_with["sha256"]
        same = same_run(result, encoder=sha256, recipe=recipe, data=read)
        return "done" if same and (file or self.encoder.made(made_with["provenance"])) else "stale"

    def with_file(self, file: Path) -> "Cell":
        """The same with its encoder at hand, which then need not be looked for by all that decides its numbers."""
        return replace(self, encoder=Given(self.encoder.row, file))

    def run(self) -> None:
        """Transfer, test, score; or go on; or find it done."""
        transfer(
            source(there(self.encoder)),
            tasks=[self.task],
            recipe=self.recipe,
            data=self.data,
            seed=self.seed,
            results=self.places.results,
            runs=self.places.runs,
            device=commands.torch_device(self.places.device),
        )


def cells(plan: Plan, places: Places) -> list[Cell]:
    """The cells of the grid, in the plan's order, each with its encoder."""
    found: list[tuple[AnyEncoder, str, int]] = []
    for entry in plan.entries:
        raw: Given | Training
        if isinstance(entry.source, Path):
            raw = Given(entry.row, entry.source)
        else:
            raw = Training(entry.source, entry.folders, places)
        for variant in entry.variants:
            encoder = raw if variant == "raw" else Rescaling(raw, entry.stills, places)
            found += [(encoder, task, seed) for task in entry.tasks for seed in plan.seeds]
    return [Cell(encoder, task, seed, plan.recipe, plan.data, places) for encoder, task, seed in found]

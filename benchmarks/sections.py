"""Which results may share a table: those of one recipe and, column by column, of one set of data."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.results import Result, data_identity
from benchmarks.sound import sound
from pretrain.progress import log
from transfer import TASKS, Table, find_recipe

ORDER = ("paper", "quick", "tiny")  # of the sections; variants ("paper-40k") follow their recipe


@dataclass(frozen=True)
class Section:
    """One table: results of one recipe and, column by column, of one set of data."""

    recipe: str
    results: list[Result]

    def data(self) -> dict[str, str]:
        """Task → "VOC trainval → test, 5011 + 4952 images", in the order of TASKS."""
        told = {}
        for result in self.results:
            data, images = result["data"], result["data"]["images"]
            told[result["task"]] = f"{data['name']} {data['split']}, {images['train']} + {images['test']} images"
        return {task: told[task] for task in TASKS if task in told}


def sections(results: Iterable[Result], *, on_the_way: bool = False) -> list[Section]:
    """Split results so that a column of a section holds one recipe and one set of data.

    Encoders that were saved on the way of a pre-training are no rows, but points of `bench curve`: their results are
    left out, and said so on stderr, unless `on_the_way`; so are those that cannot be printed.
    """
    found, fresh = [], sound(current(results if on_the_way else _ends(results)))
    recipes = {result["recipe"]["name"] for result in fresh}
    for recipe in sorted(recipes, key=lambda name: ([name.split("-")[0] != first for first in ORDER], name)):
        own = [result for result in fresh if result["recipe"]["name"] == recipe]
        ranks = {task: _ranks(r for r in own if r["task"] == task) for task in TASKS}
        for rank in range(max(map(len, ranks.values()))):
            chosen = [r for r in own if ranks[r["task"]].get(data_identity(r)) == rank]
            found += [Section(recipe, chosen)] if chosen else []
    return found


def of_table(table: Table, results: Iterable[Result]) -> list[Result]:
    """The results of the tasks that one table holds."""
    return [result for result in results if TASKS[result["task"]].table == table]


def current(results: Iterable[Result]) -> list[Result]:
    """Those of a recipe that has not changed since; the others are stale: left out, and said so on stderr."""
    fresh, stale = [], 0
    for result in results:
        recipe = find_recipe(result["task"], result["recipe"]["name"])
        known = recipe is not None and recipe.sha256 == result["recipe"]["sha256"]
        fresh += [result] if known else []
        stale += not known
    if stale:
        log(f"{stale} results left out: their recipe has changed since; `bench transfer` computes them again")
    return fresh


def saved_on_the_way(provenance: dict[str, Any]) -> bool:
    """Whether an encoder is one of `bench pretrain --save-at` whose training went on."""
    total = provenance.get("of_iterations")
    return total is not None and provenance["iterations"] < total


def _ends(results: Iterable[Result]) -> list[Result]:
    """The results without those of encoders on the way, which are counted on stderr."""
    given = list(results)
    ends = [result for result in given if not saved_on_the_way(result["encoder"]["provenance"])]
    if len(ends) < len(given):
        log(f"{len(given) - len(ends)} results of encoders on the way left out: `bench curve` prints them")
    return ends


def _ranks(results: Iterable[Result]) -> dict[str, int]:
    """Data identity → 0 for the one with the most results, 1 for the next, …"""
    counts = Counter(map(data_identity, results))
    return {data: rank for rank, (data, _) in enumerate(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))}

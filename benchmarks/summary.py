"""The short table: a row a method, frozen and fine-tuned features side by side. README opens with it."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks import probes
from benchmarks.bootstrap import LEVEL
from benchmarks.controls import control_lines, imagenet
from benchmarks.probes import column_cells, measured
from benchmarks.results import read_results
from benchmarks.rows import Measured, cell, marks
from benchmarks.sections import Section, sections
from benchmarks.table2 import LETTERS, chance
from pretrain.files import Missing
from transfer import tasks

CONTROLS = ("random", "kmeans")  # behind ImageNet's features


def report(results: Path, *, recipe: str) -> str:
    """Markdown, ending in a newline. Raises Missing when there is no result of `recipe`."""
    chosen = sections(read_results(results, recipe=recipe))
    if not chosen:
        raise Missing(f"{results}: no results of recipe {recipe}: run `bench run {recipe}`")
    return "\n".join(map(markdown, chosen))


def markdown(section: Section) -> str:
    """What it is, the table, what its letters mean, what the controls showed."""
    shown = ["svm", *tasks("table2")]
    control = control_lines(section.results, [task for task in shown if task in section.data()])
    text = frame(section).to_markdown(index=False, disable_numparse=True)
    what = (
        f"Recipe `{section.recipe}`, percent: mean ± standard deviation over seeds (number of seeds) [{LEVEL}% "
        "bootstrap interval over the test images] letters."
    )
    return "\n".join([what, "", text, "", f"- {control}.", f"- {LETTERS}", ""])


def frame(section: Section) -> pd.DataFrame:
    """Controls, then the methods in Table 2's order: svm on pool5 and on the best layer, the three tasks; chance."""
    found = sorted(measured(section), key=_place)
    columns = {"SVM, pool5": "pool5", "SVM, best layer": "Best layer"}
    by_heading = {column.heading: column for column in probes.columns()}
    cells = {name: column_cells(found, by_heading[heading]) for name, heading in columns.items()}
    cells |= {task.capitalize(): _task(found, task) for task in tasks("table2")}
    last = {name: chance(section, "svm" if name in columns else name.lower()) for name in cells}
    table = [{"Method": row.name} | {name: own[i] for name, own in cells.items()} for i, row in enumerate(found)]
    return pd.DataFrame([*table, {"Method": "(chance)"} | last])


def _task(found: Sequence[Measured], task: str) -> list[str]:
    return [cell(row, task, mark=mark) for row, mark in zip(found, marks(found, task), strict=True)]


def _place(row: Measured) -> int:
    """0 for ImageNet's features, 1, 2 for the controls without training, 3 for the methods."""
    if imagenet(row.results[0]):
        return 0
    result = row.results[0]
    raw = result["method"] in CONTROLS and not result["variant"]
    return 1 + (CONTROLS.index(result["method"]) if raw else len(CONTROLS))

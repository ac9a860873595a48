"""The table of frozen features: linear SVMs by layer, few images, nearest neighbours. A pivot of the result files.

Rows of different recipes, or of different data, never share a table.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks import bootstrap
from benchmarks.bootstrap import LEVEL, RESAMPLES, interval
from benchmarks.controls import control_lines
from benchmarks.letters import letters
from benchmarks.probe_notes import notes
from benchmarks.published import NONE
from benchmarks.results import Result, read_results, unpacked
from benchmarks.rows import Measured, rows, spread, supervision
from benchmarks.sections import Section, of_table, sections
from benchmarks.table2 import LETTERS, Format
from pretrain.files import Failed, Missing
from transfer import TASKS, tasks
from transfer.probes import low_shot, svm
from transfer.probes.features import LAYERS
from transfer.probes.scores import unpack

SIZES = low_shot.Recipe.sizes
SHOWN = (1, 4, 16, 96)  # of the sizes, in the first table


@dataclass(frozen=True)
class Column:
    """A heading, and what of a task's results stands under it: which metric, and where its replicates are kept."""

    heading: str
    task: str
    metric: Callable[[Result], str]
    replicates: Callable[[Result], str | None]  # None: they follow from the per-image scores


@dataclass(frozen=True)
class Score:
    """A row's number under a column, in percent: a value a seed, the interval of their mean (of these replicates).

    `layers`: what it is of.
    """

    values: list[float]
    low: float
    high: float
    layers: str
    replicates: NDArray[np.float64] = field(compare=False)

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float | None:
        """Of the sample, over the seeds; one seed has none."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


def columns() -> list[Column]:
    """conv1 … pool5, best layer, 1 … 96 images, k-NN."""
    layers = [_fixed(layer, "svm", f"{layer}_map_sklearn", f"replicates_{layer}") for layer in LAYERS]
    best = Column(
        "Best layer", "svm", lambda r: f"{best_layer(r)}_map_sklearn", lambda r: f"replicates_{best_layer(r)}"
    )
    few = [_fixed(_images(k), "low-shot", f"k{k}_map_sklearn", f"replicates_k{k}") for k in SIZES]
    return [*layers, best, *few, _fixed("k-NN", "knn", "map_sklearn", None)]


def _fixed(heading: str, task: str, metric: str, replicates: str | None) -> Column:
    return Column(heading, task, lambda _: metric, lambda _: replicates)


def _images(k: int) -> str:
    return "1 image" if k == 1 else f"{k} images"


def best_layer(result: Result) -> str:
    """The layer of an svm result that is best by cross-validation; a descriptor's only one."""
    return svm.best_layer(result["metrics"])


def report(results: Path, *, recipe: str | None, style: Format) -> str:
    """The tables in `style`, ending in a newline; csv and json: a record for each row and column.

    Raises Missing when there is no result to print.
    """
    chosen = sections(of_table("probes", read_results(results, recipe=recipe or "*")))
    if not chosen:
        raise Missing(
            f"{results}: no probes{f' of recipe {recipe}' if recipe else ''}: run `bench transfer --task probes`"
        )
    if style == "markdown":
        return "\n".join(map(markdown, chosen))
    if style == "latex":
        return "\n".join(frame(section, main()).to_latex(index=False, escape=True) for section in chosen)
    records = [record for section in chosen for record in _records(section)]
    if style == "json":
        return json.dumps(records, indent=1, ensure_ascii=False) + "\n"
    return pd.DataFrame(records).to_csv(index=False)


def main() -> list[Column]:
    """The columns of the first table."""
    hidden = {_images(k) for k in SIZES if k not in SHOWN}
    return [column for column in columns() if column.heading not in hidden]


def markdown(section: Section) -> str:
    """One section: a heading, the table, all sizes of low-shot, the notes."""
    few = [column for column in columns() if column.task == "low-shot"]
    lines = [
        f"## Frozen features, recipe `{section.recipe}`",
        "",
        f"mAP in percent: mean ± standard deviation over seeds (number of seeds) [{LEVEL}% bootstrap interval over the "
        f"test images, {RESAMPLES} resamplings]. Data: {data_line(section)}.",
        "",
        frame(section, main()).to_markdown(index=False, disable_numparse=True),
        "",
    ]
    if "low-shot" in section.data():
        lines += ["Linear SVMs on the last layer, by the number of images a class:", ""]
        lines += [frame(section, few).to_markdown(index=False, disable_numparse=True), ""]
    control = control_lines(section.results, [task for task in tasks("probes") if task in section.data()])
    return "\n".join([*lines, f"- {control}.", *(f"- {note}" for note in [LETTERS, *notes(section)]), ""])


def frame(section: Section, shown: Sequence[Column]) -> pd.DataFrame:
    """A section's rows under some columns, and chance; columns without any result are left out."""
    shown = [column for column in shown if column.task in section.data()]
    found = measured(section)
    cells = {c.heading: column_cells(found, c) for c in shown}
    table = [
        {"Method": row.name, "Supervision": supervision(row)} | {name: own[i] for name, own in cells.items()}
        for i, row in enumerate(found)
    ]
    chance = {"Method": "(chance)", "Supervision": NONE} | {c.heading: chance_text(section, c.task) for c in shown}
    return pd.DataFrame([*table, chance])


def measured(section: Section) -> list[Measured]:
    """The rows that have results, in Table 2's order; descriptors, which have no row there, come last."""
    return [row for row in rows(section) if row.results]


def column_cells(found: Sequence[Measured], column: Column) -> list[str]:
    """Row by row a column's cells: "59.4 ± 0.1 (5) [55.0, 63.9] a"."""
    kept = {i: one for i, row in enumerate(found) if (one := score(row, column))}
    marks = dict(zip(kept, letters([one.replicates for one in kept.values()]), strict=True))
    return [_cell(kept[i], column, marks[i]) if i in kept else NONE for i in range(len(found))]


def _cell(found: Score, column: Column, mark: str) -> str:
    text = f"{spread(found.values)} [{found.low:.1f}, {found.high:.1f}]{f' {mark}' if mark else ''}"
    return f"{found.layers}: {text}" if column.heading == "Best layer" else text


def score(row: Measured, column: Column) -> Score | None:
    """What the row's results say of the column; None where none has a number for it: a descriptor has no conv1."""
    of_task = [result for result in row.results if result["task"] == column.task]
    own = [result for result in of_task if column.metric(result) in result["metrics"]]
    if not own:
        return None
    layers = {best_layer(result) for result in own} if column.heading == "Best layer" else {column.heading}
    values = [100 * result["metrics"][column.metric(result)] for result in own]
    kept = _replicates(own, column)
    return Score(values, *interval(kept), "/".join(sorted(layers)), kept)


def _replicates(own: Sequence[Result], column: Column) -> NDArray[np.float64]:
    """As benchmarks.bootstrap has it: replicates shifted onto the score, averaged over seeds."""
    if column.replicates(own[0]) is None:
        return bootstrap.replicates(own)
    kept = [_kept(result, str(column.replicates(result)), column.metric(result)) for result in own]
    return np.asarray(np.mean(kept, axis=0))


def _kept(result: Result, name: str, metric: str) -> NDArray[np.float64]:
    """The replicates that a result keeps, in percent, with the score as their mean."""
    try:
        values = 100 * unpack(unpacked(result["per_image"])[name])
        if values.shape != (RESAMPLES,):
            raise ValueError(f"{values.shape} replicates, not {RESAMPLES}")
    except (KeyError, ValueError) as error:
        row = f"{result['method']} {result['variant']}".strip()
        raise Failed(
            f"{row}, {result['task']}, seed {result['seed']}: its replicates cannot be read ({error}): "
            "delete the result and run `bench transfer` again"
        ) from error
    return np.asarray(values - np.nanmean(values) + 100 * result["metrics"][metric])


def chance_text(section: Section, task: str) -> str:
    """ "8.1 ± 0.5": of random rankings of the test labels."""
    mean, deviation = chances(section, task)
    return f"{mean:.1f} ± {deviation:.1f}"


def chances(section: Section, task: str) -> tuple[float, float]:
    """Their mean and standard deviation, in percent."""
    metric = f"chance_{TASKS[task].metric}"
    metrics = [result["metrics"] for result in section.results if result["task"] == task]
    mean, deviation = (100 * float(np.mean([m[f"{metric}{end}"] for m in metrics])) for end in ("", "_spread"))
    return mean, deviation


def data_line(section: Section) -> str:
    """Of all tasks at once where they agree, as they do unless a recipe changed."""
    data = section.data()
    return next(iter(data.values())) if len(set(data.values())) == 1 else "; ".join(f"{t} {d}" for t, d in data.items())


def _records(section: Section) -> Iterator[dict[str, Any]]:
    """One for each row and column with a result, and one of chance a task."""
    for row in measured(section):
        yield from records(section, row)
    for task in (task for task in tasks("probes") if task in section.data()):
        yield chance_record(section, task)


def records(section: Section, row: Measured) -> Iterator[dict[str, Any]]:
    """One for each column with a result: mean, deviation over seeds, interval."""
    for column in columns():
        if found := score(row, column):
            numbers = (found.mean, found.deviation, len(found.values), found.low, found.high)
            yield _record(section, row.name, column.task, column.heading, numbers)


def chance_record(section: Section, task: str) -> dict[str, Any]:
    """Of random rankings of the test labels."""
    return _record(section, "(chance)", task, "", (*chances(section, task), None, None, None))


def _record(section: Section, row: str, task: str, heading: str, numbers: Sequence[float | None]) -> dict[str, Any]:
    told = {"Recipe": section.recipe, "Data": data_line(section), "Row": row, "Task": task, "Column": heading}
    rounded = [None if number is None else round(number, 4) for number in numbers]
    return told | dict(zip(("Mean", "Deviation", "Seeds", "Low", "High"), rounded, strict=True))

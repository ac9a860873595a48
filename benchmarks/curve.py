"""svm mAP by layer against iterations of pre-training: a table of each training, and what happened in its layers."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from benchmarks.bootstrap import LEVEL, RESAMPLES
from benchmarks.controls import references
from benchmarks.probes import Column, chance_record, chance_text, columns, data_line, records, score
from benchmarks.published import NONE
from benchmarks.results import read_results
from benchmarks.rows import Measured
from benchmarks.sections import Section, saved_on_the_way, sections
from benchmarks.trainings import TASK, Provenance, Training, trainings
from pretrain.files import Missing
from transfer.probes.features import LAYERS

Style = Literal["markdown", "csv", "json"]
STATISTICS = {  # of pretrain.layers: what they are called, and how they are printed
    "between_images": ("variance between images", "{:.1%}"),
    "dead": ("dead channels", "{:.1%}"),
    "constant": ("channels never zero", "{:.1%}"),
    "gradient": ("gradient / weights", "{:.1e}"),
}
COUNTS = ("Iterations", "Images", "Seeds")


@dataclass(frozen=True)
class Curves:
    """The trainings of one recipe and one set of data, and the rows that are there to compare them with."""

    section: Section
    trainings: list[Training]
    references: list[Measured]


def read(results: Path, *, recipe: str, saved: Sequence[Provenance] = ()) -> list[Curves]:
    """The trainings whose encoders on the way have results of `recipe`; `saved`: only those of these encoders.

    Raises Missing when there are none.
    """
    own = [result for result in read_results(results, recipe=recipe) if result["task"] == TASK]
    found = []
    for section in sections(own, on_the_way=True):
        ends = [r for r in section.results if not saved_on_the_way(r["encoder"]["provenance"])]
        beside = [row for row in references(ends, TASK) if row]
        if chosen := trainings(section, saved):
            found.append(Curves(section, chosen, beside))
    if not found:
        raise Missing(
            f"{results}: no encoders on the way with recipe {recipe}: run `bench pretrain --save-at 0 300 1000`, "
            f"then `bench curve RUN --recipe {recipe}`"
        )
    return found


def report(curves: Sequence[Curves], *, style: Style, layers: bool = False) -> str:
    """The tables in `style`, ending in a newline. `layers` adds what happened in them; in csv and json that alone.

    csv and json: a record for each point and column, or for each point and layer.
    """
    if style == "markdown":
        return "\n".join(markdown(one, layers=layers) for one in curves)
    made = [record for one in curves for record in (_layer_records(one) if layers else _records(one))]
    if style == "json":
        return json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    table = pd.DataFrame(made)
    return table.astype({name: "Int64" for name in COUNTS if name in table}).to_csv(index=False)


def shown() -> list[Column]:
    """The columns of a curve: conv1 … pool5, best layer."""
    return [column for column in columns() if column.task == TASK]


def markdown(curves: Curves, *, layers: bool) -> str:
    """A heading, what the numbers are, and a table or two of each training."""
    section = curves.section
    lines = [
        f"## Features on the way, recipe `{section.recipe}`",
        "",
        "mAP in percent of linear SVMs on each frozen layer, by iterations of pre-training; mean over seeds. In square "
        f"brackets: {LEVEL}% bootstrap interval over the test images ({RESAMPLES} resamplings). Best layer: by "
        "cross-validation on the training images. Budget: images seen, as a share of those of the method's `paper` "
        f"budget. Data: {data_line(section)}.",
        "",
        *([LAYERS_TOLD, ""] if layers else []),
    ]
    for training in curves.trainings:
        lines += [f"### {training.name}: {training.told}", ""]
        lines += [frame(curves, training).to_markdown(index=False, disable_numparse=True), ""]
        if layers and training.layers:
            lines += [layers_frame(training).to_markdown(index=False, disable_numparse=True), ""]
    return "\n".join(lines)


LAYERS_TOLD = (
    "Layers: on a batch of the images of pre-training. Variance between images: the share of the variance behind the "
    "ReLU that lies between images; the rest is the same for every image. Dead channels: zero everywhere; channels "
    "never zero: their ReLU does nothing. Gradient / weights: root mean squares, of the step before."
)


def frame(curves: Curves, training: Training) -> pd.DataFrame:
    """A row a point, from the untrained start on; then ImageNet's and random's, where they are there, and chance."""
    made = []
    for iterations, own in training.points.items():
        label = f"{iterations:,}" if iterations else "0 (untrained start)"
        seen = {
            "Iterations": label,
            "Images": f"{training.images(iterations):,}",
            "Budget": _share(training, iterations),
        }
        made.append(seen | _cells(Measured(training.name, None, own)))
    apart = {"Images": NONE, "Budget": NONE}
    made += [{"Iterations": row.name} | apart | _cells(row) for row in curves.references]
    chance = {layer: chance_text(curves.section, TASK) for layer in LAYERS}
    return pd.DataFrame([*made, {"Iterations": "(chance)"} | apart | chance | {"Best layer": NONE}])


def _share(training: Training, iterations: int) -> str:
    share = training.share(iterations)
    return NONE if share is None else f"{100 * share:.3g}%"


def _cells(row: Measured) -> dict[str, str]:
    told = {}
    for column in shown():
        if found := score(row, column):
            told[column.heading] = f"{found.mean:.1f}"
            if column.heading == LAYERS[-1]:
                told[column.heading] += f" [{found.low:.1f}, {found.high:.1f}]"
            elif column.heading not in LAYERS:
                told[column.heading] = f"{found.layers}: {found.mean:.1f}"
    return {column.heading: told.get(column.heading, NONE) for column in shown()}


def layers_frame(training: Training) -> pd.DataFrame:
    """What pretrain.layers recorded: a row for each statistic and encoder, in time's order; a column a layer."""
    made = []
    for statistic, (name, form) in STATISTICS.items():
        for iterations, found in training.layers.items():
            values = {layer: found[layer].get(statistic) for layer in found}
            cells = {layer: NONE if value is None else form.format(value) for layer, value in values.items()}
            made.append({"In each layer": name, "Iterations": f"{iterations:,}"} | cells)
    return pd.DataFrame(made)


def _records(curves: Curves) -> Iterator[dict[str, Any]]:
    """One for each point and column; those of the rows beside it, and chance, have no iterations."""
    nothing = {"Iterations": None, "Images": None, "Budget": None}
    for training in curves.trainings:
        for iterations, own in training.points.items():
            share = training.share(iterations)
            seen = {"Iterations": iterations, "Images": training.images(iterations), "Budget": share}
            for record in records(curves.section, Measured(training.name, None, own)):
                yield record | seen | {"Training": training.told}
    for row in curves.references:
        for record in records(curves.section, row):
            yield record | nothing | {"Training": None}
    yield chance_record(curves.section, TASK) | nothing | {"Training": None}


def _layer_records(curves: Curves) -> Iterator[dict[str, Any]]:
    for training in curves.trainings:
        for iterations, layers in training.layers.items():
            for layer, found in layers.items():
                yield {
                    "Row": training.name,
                    "Training": training.told,
                    "Iterations": iterations,
                    "Layer": layer,
                } | found

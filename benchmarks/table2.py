"""Table 2 of the paper, ours beside the published numbers: a pivot of the result files.

Rows of different recipes, or of different data, never share a table. Only results of recipe
`paper` on the full official splits are set beside the published numbers.
"""

import json
import re
from pathlib import Path
from typing import Literal

import pandas as pd

from benchmarks import per_class
from benchmarks.bootstrap import LEVEL, RESAMPLES
from benchmarks.controls import control_lines
from benchmarks.published import NONE, successors_markdown, table2_markdown
from benchmarks.results import Result, read_results
from benchmarks.rows import Measured, cell, comparable, hardware, known_rows, marks, rows, spread, supervision, time
from benchmarks.sections import Section, of_table, sections
from pretrain import row_name
from pretrain.alexnet import CAFFENET, described
from pretrain.files import Missing, Usage
from transfer import TASKS, tasks

Format = Literal["markdown", "csv", "latex", "json"]


def report(results: Path, *, recipe: str | None, style: Format, successors: bool = False, long: bool = False) -> str:
    """The tables in `style`, ending in a newline; in Markdown the published ones too.

    `long` adds the classes' scores; in csv and json these alone, a record each. Raises Missing when
    there is no result to print, Usage when the style has no place for what is asked for.
    """
    if successors and style != "markdown":
        raise Usage(f"--with successors: published rows are printed in markdown only, not in {style}")
    if long and style == "latex":
        raise Usage("--long: the classes' scores are printed in markdown, csv and json, not in latex")
    chosen = sections(of_table("table2", read_results(results, recipe=recipe or "*")))
    if not chosen:
        raise Missing(
            f"{results}: no results{f' of recipe {recipe}' if recipe else ''}: run `bench transfer --task all`"
        )
    if style == "markdown":
        own = [text for s in chosen for text in (markdown(s), *([per_class.markdown(s)] if long else []))]
        return "\n".join([*own, table2_markdown(), *([successors_markdown()] if successors else [])])
    records = [record for s in chosen for record in (per_class.records(s) if long else _records(s))]
    if style == "json":
        return json.dumps(records, indent=1, ensure_ascii=False) + "\n"
    table = pd.DataFrame(records)
    return table.to_csv(index=False) if style == "csv" else str(table.to_latex(index=False, escape=True))


def _records(section: Section) -> list[dict[str, str]]:
    """The rows, each with what is true of the whole table, so that it stands for itself."""
    table = frame(section).assign(Recipe=section.recipe, Data=_data(section), Control=_control(section))
    return [{str(key): value for key, value in row.items()} for row in table.to_dict(orient="records")]


def frame(section: Section) -> pd.DataFrame:
    """A section as the paper's six columns and the hardware; the paper's seven rows keep their place."""
    last = {"Method": "(chance)", "Supervision": NONE, "Pre-training time": NONE, "Hardware": NONE}
    last |= {column: chance(section, task) for task, column in columns().items()}
    measured = rows(section)
    letters = {task: marks(measured, task) for task in columns()}
    told = [_cells(row, {task: letters[task][i] for task in letters}) for i, row in enumerate(measured)]
    return pd.DataFrame([*told, last])


def columns() -> dict[str, str]:
    """Task → the heading of its column."""
    return {task: task.capitalize() for task in tasks("table2")}


def _cells(row: Measured, letters: dict[str, str]) -> dict[str, str]:
    told = {"Method": row.name, "Supervision": supervision(row), "Pre-training time": time(row)}
    cells = {column: cell(row, task, mark=letters[task]) for task, column in columns().items()}
    return told | {"Hardware": hardware(row)} | cells


def chance(section: Section, task: str) -> str:
    """ "8.1 ± 0.5" over those results that say the spread, and without it where none does, as older ones."""
    name, found = f"chance_{TASKS[task].metric}", [r["metrics"] for r in section.results if r["task"] == task]
    spreads = [100 * metrics[f"{name}_spread"] for metrics in found if f"{name}_spread" in metrics]
    values = [100 * metrics[name] for metrics in found if f"{name}_spread" in metrics or not spreads]
    text = f"{sum(values) / len(values):.1f}" if values else NONE
    return text + (f" ± {sum(spreads) / len(spreads):.1f}" if spreads else "")


def markdown(section: Section) -> str:
    """One section: a heading, what it is, the table, the conditions."""
    known = known_rows()
    full = any(comparable(result, known.get(result["method"])) for result in section.results)
    what = "ours / published, where the whole was done" if full else "not comparable with the published numbers"
    lettered = any(len([row for row in rows(section) if row.of(task)]) > 1 for task in columns())
    lines = [
        f"## Table 2, recipe `{section.recipe}` ({what})",
        "",
        f"Percent: mean ± standard deviation over seeds (number of seeds) [{LEVEL}% bootstrap interval over the test "
        f"images, {RESAMPLES} resamplings]{' letters' if lettered else ''}. Data: {_data(section)}.",
        "",
        *([LETTERS, ""] if lettered else []),
        frame(section).to_markdown(index=False, disable_numparse=True),
        "",
        f"- {_control(section)}.",
        *(f"- {line}" for line in _conditions(section)),
        "",
    ]
    return "\n".join(lines)


LETTERS = (
    f"Letters: rows of a column that share one cannot be told apart at {100 - LEVEL}%; `a` is the best group. What is "
    "resampled is the test images, in the same way for all rows, each row being the mean over its seeds (paired "
    "bootstrap, Holm's correction over all pairs of the column). Training seeds are not resampled: what another "
    "training run would have given is in no interval and no letter; see the spread over seeds."
)


def _control(section: Section) -> str:
    return control_lines(section.results, [task for task in columns() if task in section.data()])


def _data(section: Section) -> str:
    """ "classification VOC trainval → test, 5011 + 4952 images; …" """
    return "; ".join(f"{task} {data}" for task, data in section.data().items())


def _conditions(section: Section) -> list[str]:
    machines = sorted({r["hardware"] for r in section.results})
    commits = sorted({r["commit"][:10] + (" with local changes" if r["dirty"] else "") for r in section.results})
    metrics = "; ".join(f"{task}: {TASKS[task].metric}, {TASKS[task].split}" for task in tasks("table2"))
    sources = sorted({f"{k.capitalize()}: {v}." for r in section.results for k, v in r["data"]["sources"].items()})
    named = sorted({(_path_name(r), _origin(r)) for r in section.results})
    origins = [f"{name}: {origin}." for name, origin in named if origin]
    heads = [line for line in map(_held_out, rows(section)) if line]
    code = f"Transfer on: {'; '.join(machines)}. Code: {', '.join(commits)}."
    return [f"Metrics: {metrics}.", *sources, *origins, *heads, code]


def _origin(result: Result) -> str:
    """What a row's encoder was trained on or imported from, and its trunk where it is not a CaffeNet."""
    provenance, trunk = result["encoder"]["provenance"], described(result["encoder"]["architecture"])
    source, dataset, rescaled = (provenance.get(key) or {} for key in ("source", "dataset", "rescaled"))
    told = [f"imported from {source['file']}"] if source else []
    verb = "pre-trained" if provenance.get("iterations") else "initialised"
    told += [f"{verb} on {dataset['images']:,} images ({dataset['name']})"] if dataset else []
    told += [f"rescaled on {rescaled['dataset']['name']}"] if rescaled else []
    return ", ".join(told + ([str(trunk)] if trunk != CAFFENET else []))


def _held_out(row: Measured) -> str:
    """How a row's heads scored on images kept back: "name: held-out top-1 31.0 (chance 10.0), …", over its encoders.

    Nothing for a rescaled row: the head belonged to the encoder before the rescaling.
    """
    encoders = {result["encoder"]["sha256"]: result["encoder"]["provenance"] for result in row.results}
    found = [p["held_out"] for p in encoders.values() if p.get("held_out") and not p.get("rescaled")]
    told = []
    for key in sorted({key for scores in found for key in scores if not key.startswith("chance_")}):
        values, chance = ([100 * scores[k] for scores in found if k in scores] for k in (key, f"chance_{key}"))
        name = re.sub(r"^top(\d+)$", r"top-\1", key).replace("_", " ")
        told.append(f"{name} {spread(values) if len(values) > 1 else f'{values[0]:.1f}'}")
        told[-1] += f" (chance {sum(chance) / len(chance):.1f})" if chance else ""
    return f"{_path_name(row.results[0])}: held-out {', '.join(told)}." if told else ""


def _path_name(result: Result) -> str:
    return row_name(result["method"], result["variant"])

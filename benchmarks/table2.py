"""Table 2 of the paper, ours beside the published numbers: a pivot of the result files.

Rows of different recipes, or of different data, never share a table. Only results of recipe
`paper` on the full official splits are set beside the published numbers.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from benchmarks.bootstrap import LEVEL, RESAMPLES, interval, replicates
from benchmarks.published import NONE, Row, published, successors_markdown, table2_markdown
from benchmarks.results import Result, data_identity, read_results
from pretrain import row_name
from pretrain.alexnet import CAFFENET, described
from pretrain.files import Missing, Usage
from pretrain.progress import log
from transfer import TASKS

Format = Literal["markdown", "csv", "latex", "json"]
ORDER = ("paper", "quick", "tiny")  # of the sections; variants ("paper-40k") follow their recipe
FULL = {  # the official splits, without which nothing is set beside a published number
    "classification": {"train": 5011, "test": 4952},
    "detection": {"train": 5011, "test": 4952},
    "segmentation": {"train": 8498, "test": 736},
}


def columns() -> dict[str, str]:
    """Task → the heading of its column."""
    return {task: task.capitalize() for task in TASKS}


@dataclass(frozen=True)
class Section:
    """One table: results of one recipe and, column by column, of one set of data."""

    recipe: str
    results: list[Result]


def sections(results: Iterable[Result]) -> list[Section]:
    """Split results so that a column of a section holds one recipe and one set of data."""
    found, fresh = [], current(results)
    recipes = {result["recipe"]["name"] for result in fresh}
    for recipe in sorted(recipes, key=lambda name: ([name.split("-")[0] != first for first in ORDER], name)):
        own = [result for result in fresh if result["recipe"]["name"] == recipe]
        ranks = {task: _ranks(r for r in own if r["task"] == task) for task in TASKS}
        for rank in range(max(map(len, ranks.values()))):
            chosen = [r for r in own if ranks[r["task"]].get(data_identity(r)) == rank]
            found += [Section(recipe, chosen)] if chosen else []
    return found


def current(results: Iterable[Result]) -> list[Result]:
    """Those of a recipe that has not changed since; the others are stale: left out, and said so on stderr."""
    fresh, stale = [], 0
    for result in results:
        recipe = TASKS[result["task"]].load().RECIPES.get(result["recipe"]["name"])
        known = recipe is not None and recipe.sha256 == result["recipe"]["sha256"]
        fresh += [result] if known else []
        stale += not known
    if stale:
        log(f"{stale} results left out: their recipe has changed since; `bench transfer` computes them again")
    return fresh


def _ranks(results: Iterable[Result]) -> dict[str, int]:
    """Data identity → 0 for the one with the most results, 1 for the next, …"""
    counts = Counter(map(data_identity, results))
    return {data: rank for rank, (data, _) in enumerate(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))}


def comparable(result: Result, row: Row | None) -> bool:
    """Whether a result may be set beside the number that `row` publishes for its task.

    That takes the whole protocol on the whole official splits, the encoder that the row stands for, on
    the trunk it stands for, and its pre-training in full, unless the weights are its authors' own.
    """
    if row is None or row.get(result["task"]) is None or result["variant"] not in row["variants"]:
        return False
    provenance, data = result["encoder"]["provenance"], result["data"]
    trunk = described(result["encoder"]["architecture"]) == CAFFENET or row.get("trunk") == "any"
    trained = "source" in provenance or (provenance.get("iterations") or 0) >= row["iterations"]
    whole = data["name"] == "VOC" and data["images"] == FULL.get(result["task"])
    return result["recipe"]["name"] == "paper" and whole and trunk and trained


def frame(section: Section) -> pd.DataFrame:
    """A section as the paper's six columns; the seven rows of the paper keep their place, measured or not."""
    paper, known = published("table2"), _known()
    groups: dict[tuple[int, str, str], list[Result]] = {}
    for result in section.results:
        place = list(known).index(result["method"]) if result["method"] in known else len(known)
        groups.setdefault((place, _name(result, known), budget(result)), []).append(result)
    for place, row in enumerate(paper):
        if not any(key[0] == place for key in groups):
            groups[place, row["name"], ""] = []
    rows = [_row(group, name, known) for (_, name, _), group in sorted(groups.items())]
    chance = {column: _chance(section, task) for task, column in columns().items()}
    return pd.DataFrame([*rows, {"Method": "(chance)", "Supervision": NONE, "Pre-training time": NONE} | chance])


def _known() -> dict[str, Row]:
    """Method → its published row."""
    return {row["method"]: row for row in (*published("table2"), *published("extra"))}


def _name(result: Result, known: dict[str, Row]) -> str:
    method, variant = result["method"], result["variant"]
    name = known[method]["name"] if method in known else row_name(method, "")
    return f"{name} ({variant})" if variant else str(name)


def budget(result: Result) -> str:
    """What must agree for two results to be seeds of one row: all of the pre-training but its seed."""
    provenance = result["encoder"]["provenance"]
    keys = ["dataset", "shapes", "mask", "label", "source", "iterations"]
    keys += ["batch", "rate", "loss"] if provenance.get("iterations") else []
    rescaled = (provenance.get("rescaled") or {}).get("dataset")
    return json.dumps([rescaled, *(provenance.get(key) for key in keys)], sort_keys=True)


def _row(group: list[Result], name: str, known: dict[str, Row]) -> dict[str, str]:
    row = known.get(group[0]["method"]) if group else next(r for r in known.values() if r["name"] == name)
    supervision = row["supervision"] if row else group[0]["encoder"]["provenance"]["supervision"]
    cells = {}
    for task, column in columns().items():
        own = [r for r in group if r["task"] == task]
        cells[column] = spread([100 * r["metrics"][TASKS[task].metric] for r in own])
        if own:
            cells[column] += " [{:.1f}, {:.1f}]".format(*interval(replicates(own)))
        if row and own and all(comparable(result, row) for result in own):
            cells[column] += f" / {row[task]:.1f}"
    return {"Method": name, "Supervision": supervision, "Pre-training time": _time(group)} | cells


def spread(values: Sequence[float]) -> str:
    """Percentages as "mean ± standard deviation (n)"; the deviation is the sample's, so n = 1 has none."""
    if not values:
        return NONE
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.1f} (1)"
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:.1f} ± {deviation:.1f} ({len(values)})"


def _time(group: list[Result]) -> str:
    if not group:
        return NONE
    provenances = [result["encoder"]["provenance"] for result in group]
    iterations, seconds = provenances[0].get("iterations"), max(p.get("seconds") or 0.0 for p in provenances)
    if "source" in provenances[0]:
        return "imported"
    if not iterations and not seconds:
        return "none"
    time = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min" if seconds >= 60 else "< 1 min"
    return f"{time} ({iterations:,} it.)" if iterations else time


def _chance(section: Section, task: str) -> str:
    values = [100 * r["metrics"][f"chance_{TASKS[task].metric}"] for r in section.results if r["task"] == task]
    return f"{sum(values) / len(values):.1f}" if values else NONE


def report(results: Path, *, recipe: str | None, style: Format, successors: bool = False) -> str:
    """The tables in `style`, ending in a newline; in Markdown the published ones too.

    Raises Missing when there is no result to print, Usage when successors are asked for elsewhere.
    """
    if successors and style != "markdown":
        raise Usage(f"--with successors: published rows are printed in markdown only, not in {style}")
    chosen = [s for s in sections(read_results(results)) if recipe in (None, s.recipe)]
    if not chosen:
        raise Missing(
            f"{results}: no results{f' of recipe {recipe}' if recipe else ''}: run `bench transfer --task all`"
        )
    if style == "markdown":
        return "\n".join([*map(markdown, chosen), table2_markdown(), *([successors_markdown()] if successors else [])])
    table = pd.concat([frame(s).assign(Recipe=s.recipe, Data=_data(s)) for s in chosen], ignore_index=True)
    if style == "csv":
        return table.to_csv(index=False)
    if style == "latex":
        return str(table.to_latex(index=False, escape=True))
    return json.dumps(table.to_dict(orient="records"), indent=1, ensure_ascii=False) + "\n"


def markdown(section: Section) -> str:
    """One section: a heading, what it is, the table, the conditions."""
    known = _known()
    full = any(comparable(result, known.get(result["method"])) for result in section.results)
    what = "ours / published, where the whole was done" if full else "not comparable with the published numbers"
    lines = [
        f"## Table 2, recipe `{section.recipe}` ({what})",
        "",
        f"Percent: mean ± standard deviation over seeds (number of seeds) [{LEVEL}% bootstrap interval over the test "
        f"images, {RESAMPLES} resamplings]. Data: {_data(section)}.",
        "",
        frame(section).to_markdown(index=False, disable_numparse=True),
        "",
        *(f"- {line}" for line in _conditions(section)),
        "",
    ]
    return "\n".join(lines)


def _data(section: Section) -> str:
    """ "classification VOC trainval → test, 5011 + 4952 images; …" """
    described = {}
    for result in section.results:
        data = result["data"]
        counts = f"{data['images']['train']} + {data['images']['test']} images"
        described[result["task"]] = f"{result['task']} {data['name']} {data['split']}, {counts}"
    return "; ".join(described[task] for task in TASKS if task in described)


def _conditions(section: Section) -> list[str]:
    hardware = sorted({r["hardware"] for r in section.results})
    commits = sorted({r["commit"][:10] + (" with local changes" if r["dirty"] else "") for r in section.results})
    metrics = "; ".join(f"{task}: {TASKS[task].metric}, {TASKS[task].split}" for task in TASKS)
    sources = sorted({f"{k.capitalize()}: {v}." for r in section.results for k, v in r["data"]["sources"].items()})
    rows = sorted({(row_name(r["method"], r["variant"]), _origin(r)) for r in section.results})
    origins = [f"{name}: {origin}." for name, origin in rows if origin]
    code = f"Transfer on: {'; '.join(hardware)}. Code: {', '.join(commits)}."
    return [f"Metrics: {metrics}.", *sources, *origins, code]


def _origin(result: Result) -> str:
    """What a row's encoder was trained on or imported from, and its trunk where it is not a CaffeNet."""
    provenance, trunk = result["encoder"]["provenance"], described(result["encoder"]["architecture"])
    source, dataset, rescaled = (provenance.get(key) or {} for key in ("source", "dataset", "rescaled"))
    told = [f"imported from {source['file']}"] if source else []
    verb = "pre-trained" if provenance.get("iterations") else "initialised"
    told += [f"{verb} on {dataset['images']:,} images ({dataset['name']})"] if dataset else []
    told += [f"rescaled on {rescaled['dataset']['name']}"] if rescaled else []
    return ", ".join(told + ([str(trunk)] if trunk != CAFFENET else []))

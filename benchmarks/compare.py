"""Does row A beat row B? A paired bootstrap over the test images, task by task."""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.bootstrap import LEVEL, RESAMPLES, interval, replicates
from benchmarks.published import NONE
from benchmarks.results import Result, data_identity, read_results
from benchmarks.rows import budget
from benchmarks.sections import current, of_table
from benchmarks.sound import sound
from pretrain import row_name
from pretrain.files import Failed, Missing, Usage
from transfer import TASKS


def compare(results: Path, first: str, second: str, *, recipe: str | None) -> str:
    """Markdown: both scores, their difference, its interval and the answer, for every recipe and task both have.

    Row names are those of the folders ("context-random-region"). Raises Missing when the two share no
    task of a recipe, and Failed when they were scored on different data.
    """
    if first == second:
        raise Usage(f"{first} against itself: name two rows")
    cells: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for result in sound(current(of_table("table2", _named(results, first, second, recipe=recipe)))):
        name = row_name(result["method"], result["variant"])
        cells.setdefault((result["recipe"]["name"], result["task"]), {}).setdefault(name, []).append(result)
    shared = {key: rows for key, rows in cells.items() if {first, second} == set(rows)}
    if not shared:
        raise Missing(f"{results}: no recipe and task with results of both {first} and {second}: run `bench transfer`")
    text = []
    for name in sorted({recipe for recipe, _ in shared}):
        rows = [
            _row(task, *(shared[name, task][k] for k in (first, second))) for task in TASKS if (name, task) in shared
        ]
        heads = {"task": "Task", "a": first, "b": second, "by": "Difference", "interval": f"{LEVEL}% interval"}
        heads |= {"share": f"{first} ahead", "answer": f"Does {first} beat {second}?"}
        table = pd.DataFrame(rows).rename(columns=heads).to_markdown(index=False, disable_numparse=True)
        text += [f"## {first} against {second}, recipe `{name}`", "", table, "", REMARK, ""]
    return "\n".join(text)


def _named(results: Path, *rows: str, recipe: str | None) -> list[Result]:
    """The results of these rows, of one recipe or of all."""
    found = read_results(results, recipe=recipe or "*")
    return [result for result in found if row_name(result["method"], result["variant"]) in rows]


REMARK = (
    f"Percent, means over seeds (number of seeds). Paired bootstrap: {RESAMPLES} resamplings of the test images, the "
    "same for both; the answer is yes or no where the interval leaves zero out. That is one comparison; the letters of "
    "`bench table2` are corrected for all pairs of a column. Training seeds are not resampled: what another training "
    "run would have given is not in it; see the spread over seeds."
)


def _row(task: str, first: list[Result], second: list[Result]) -> dict[str, str]:
    if len(set(map(data_identity, (*first, *second)))) > 1:
        raise Failed(f"{task}: the two rows were scored on different data: run `bench transfer` for both on the same")
    for rows in (first, second):
        if len(set(map(budget, rows))) > 1:
            name = row_name(rows[0]["method"], rows[0]["variant"])
            raise Failed(f"{task}: the seeds of {name} differ in their pre-training: tell them apart by --label")
    metric = TASKS[task].metric
    means = [100 * float(np.mean([r["metrics"][metric] for r in rows])) for rows in (first, second)]
    gaps = replicates(first) - replicates(second)
    low, high = interval(gaps)
    return {
        "task": task,
        "a": f"{means[0]:.1f} ({len(first)})",
        "b": f"{means[1]:.1f} ({len(second)})",
        "by": f"{means[0] - means[1]:+.1f}",
        "interval": f"[{low:+.1f}, {high:+.1f}]",
        "share": f"{100 * np.mean(gaps[np.isfinite(gaps)] > 0):.0f}%" if np.isfinite(gaps).any() else NONE,
        "answer": "yes" if low > 0 else "no, it is behind" if high < 0 else "not significant",
    }

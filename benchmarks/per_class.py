"""The scores behind the table's cells, class by class: `bench table2 --long`."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from benchmarks.published import NONE
from benchmarks.results import Result
from benchmarks.rows import Measured, rows
from benchmarks.sections import Section
from transfer import TASKS


def records(section: Section) -> list[dict[str, Any]]:
    """One record for each task, row and class: the mean over seeds in percent, None where no seed has one."""
    found = []
    for task, data in section.data().items():
        told = {"Recipe": section.recipe, "Data": data, "Task": task}
        for title, own in _titled(rows(section), task):
            for name in _classes(section, task):
                mean, seeds = _mean(own, name)
                found.append({**told, "Row": title, "Class": name, "Mean": mean, "Seeds": seeds})
    return found


def markdown(section: Section) -> str:
    """One table for each task: the rows of the section that have a score, the classes as columns.

    In this direction because names of rows are long and those of classes short.
    """
    lines = []
    for task in section.data():
        table = []
        for title, own in _titled(rows(section), task):
            means = {name: _mean(own, name)[0] for name in _classes(section, task)}
            cells = {name: NONE if mean is None else f"{mean:.1f}" for name, mean in means.items()}
            table.append({"Method": title} | cells)
        lines += [f"### {task.capitalize()} by class, recipe `{section.recipe}`", ""]
        lines += [f"Percent, means over seeds; a row's mean is its {TASKS[task].metric}.", ""]
        lines += [pd.DataFrame(table).to_markdown(index=False, disable_numparse=True), ""]
    return "\n".join(lines)


def _titled(measured: Sequence[Measured], task: str) -> list[tuple[str, list[Result]]]:
    """The rows with results of `task`: (name, results); where rows share a name, the table's second is "… #2"."""
    seen, found = Counter[str](), []
    for row in measured:
        seen[row.name] += 1
        own = [result for result in row.results if result["task"] == task]
        title = row.name if seen[row.name] == 1 else f"{row.name} #{seen[row.name]}"
        found += [(title, own)] if own else []
    return found


def _classes(section: Section, task: str) -> list[str]:
    return sorted({name for result in section.results if result["task"] == task for name in result["per_class"]})


def _mean(results: Sequence[Result], name: str) -> tuple[float | None, int]:
    """The mean over those of the seeds that have a score of the class, in percent, and their number."""
    values = [100 * result["per_class"][name] for result in results if result["per_class"].get(name) is not None]
    return (round(sum(values) / len(values), 4) if values else None), len(values)

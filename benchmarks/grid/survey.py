"""What of a grid is done, stale and missing, before anything starts."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.grid.cells import Cell, State, cells
from benchmarks.grid.encoders import AnyEncoder, Given, Places, Rescaling, Training
from benchmarks.grid.plan import Plan
from benchmarks.published import NONE


@dataclass(frozen=True)
class Row:
    """An encoder of the grid, its file if it is there, and its cells with what is known of each."""

    encoder: AnyEncoder
    file: Path | None
    cells: dict[Cell, State]

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return set(self.cells.values()) == {"done"}


def survey(plan: Plan, places: Places) -> list[Row]:
    """Look at every cell, in the plan's order."""
    found: dict[AnyEncoder, list[Cell]] = {}
    for cell in cells(plan, places):
        found.setdefault(cell.encoder, []).append(cell)
    rows = []
    for encoder, own in found.items():
        file = encoder.file()
        rows.append(Row(encoder, file, {cell: cell.state(file, *plan.read[cell.task]) for cell in own}))
    return rows


def encoders(rows: list[Row]) -> list[Training | Rescaling]:
    """What has to be trained or rescaled for the cells that are not done, in an order in which it can be."""
    found: dict[Training | Rescaling, None] = {}
    for row in rows:
        if row.file is None and not row.done:
            for encoder in _line(row.encoder):
                if encoder.file() is None:
                    found[encoder] = None
    return list(found)


def _line(encoder: AnyEncoder) -> list[Training | Rescaling]:
    """An encoder that can be made, behind the one that it is made of."""
    if isinstance(encoder, Given):
        return []
    return [*_line(encoder.source), encoder] if isinstance(encoder, Rescaling) else [encoder]


def table(plan: Plan, rows: list[Row]) -> str:
    """What --dry-run prints: a row for each encoder, a column for each task, and the sums."""
    wanted = encoders(rows)
    lines = []
    for row in rows:
        made = "given" if isinstance(row.encoder, Given) else "done" if row.file else "not needed"
        line = {"Row": row.encoder.row, "Encoder": "missing" if row.encoder in wanted else made}
        for task in plan.read:
            line[task.capitalize()] = _counted([s for cell, s in row.cells.items() if cell.task == task])
        lines.append(line)
    states = Counter(state for row in rows for state in row.cells.values())
    counted = ", ".join(f"{states[state]} {state}" for state in ("done", "stale", "missing"))
    return (
        f"{plan.file}: recipe {plan.recipe}, data {plan.data}, seeds {', '.join(map(str, plan.seeds))}\n\n"
        f"{pd.DataFrame(lines).to_markdown(index=False)}\n\n"
        f"{sum(states.values())} cells: {counted}; encoders to make: {len(wanted)}\n"
    )


def _counted(states: list[State]) -> str:
    """ "done", or "1 done, 2 missing" where seeds differ; "–" where the plan has no such cell."""
    counts = Counter(states)
    if len(counts) == 1:
        return states[0]
    return ", ".join(f"{number} {state}" for state, number in counts.items()) or NONE

"""Other people's numbers, as they were printed (published.yaml)."""

from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
import yaml

NONE = "–"
Row = dict[str, Any]


@cache
def published(part: str) -> list[Row]:
    """The rows of one part of published.yaml: table1, table2, extra or successors."""
    text = files("benchmarks").joinpath("published.yaml").read_text(encoding="utf-8")
    rows: list[Row] = yaml.safe_load(text)[part]
    return rows


def table2_markdown() -> str:
    """Table 2 of the paper."""
    headings = {"name": "Method", "supervision": "Supervision", "time": "Pre-training time"}
    headings |= {task: task.capitalize() for task in ("classification", "detection", "segmentation")}
    rows = [{c: _cell(row[k]) for k, c in headings.items()} for row in published("table2")]
    return _section("Table 2 as published (Pathak et al., CVPR 2016)", "", rows)


def successors_markdown() -> str:
    """What later papers print in the same three columns; numbers nobody here has verified are in brackets."""
    headings = {"method": "Method", "year": "Year", "classification": "Classification (all)"}
    headings |= {"fc68": "Classification (fc6-8)", "detection": "Detection", "segmentation": "Segmentation"}
    headings |= {"notes": "Notes", "source": "Source"}
    rows = []
    for row in published("successors"):
        seen = row["verified"] if isinstance(row["verified"], list) else list(headings) if row["verified"] else []
        cells = {key: _cell(row[key]) for key in headings}
        doubted = [k for k in ("classification", "fc68", "detection", "segmentation") if k not in seen and row[k]]
        rows.append({headings[k]: f"({cell})" if k in doubted else cell for k, cell in cells.items()})
    remark = (
        "As their papers and repositories print them. Networks, schedules and inputs differ from row to row, so gaps "
        "of a point or two mean little. In brackets: from memory of the literature, not verified."
    )
    return _section("Successors, as published", remark, rows)


def _cell(value: Any) -> str:
    return NONE if value is None else str(value)


def _section(heading: str, remark: str, rows: list[dict[str, str]]) -> str:
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    return "\n".join([f"## {heading}", "", *([remark, ""] if remark else []), table, ""])

"""What the controls of a table showed: features that are known to be good against random filters.

A recipe that cannot tell ImageNet's features from random ones measures something else, and differences
between other rows may then say nothing about features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.bootstrap import interval, replicates
from benchmarks.results import Result
from benchmarks.rows import Measured, rows
from benchmarks.sections import Section

LABELS = "1000 class labels"  # what they say of their supervision
MAY = "may say nothing about features"
NONE = f"no positive control among these results: differences {MAY}"


@dataclass(frozen=True)
class Shown:
    """One column: which rows, and by how many points (with its interval) the first is ahead of random filters."""

    pair: str
    difference: float
    low: float
    high: float

    @property
    def blind(self) -> bool:
        """Whether the interval does not lie above zero."""
        return not self.low > 0

    def __str__(self) -> str:
        """ "+35 [31, 39]", or "+4.2 [1.0, 7.5]" where one decimal is not noise."""
        numbers = (self.difference, self.low, self.high)
        form = ".0f" if min(map(abs, numbers)) >= 10 else ".1f"
        first, low, high = (f"{number:{sign}{form}}" for number, sign in zip(numbers, ("+", "", ""), strict=True))
        return f"{first} [{low}, {high}]".replace("-", "−")


def control_line(results: Sequence[Result], task: str) -> str:
    """ "positive control: ImageNet (torchvision) − random: +35 [31, 39]", or that there is none, or that it is blind.

    `results`: those of one section, whose columns have one recipe and one set of data. The interval is
    that of a paired bootstrap over the test images, of means over seeds.
    """
    if (shown := control(results, task)) is None:
        return NONE
    blind = f"; blind: differences in this column {MAY}" if shown.blind else ""
    return f"positive control: {shown.pair}: {shown}{blind}"


def control_lines(results: Sequence[Result], tasks: Sequence[str]) -> str:
    """The same of several columns in one line: "…: +35 [31, 39] in classification, +8.0 [5.1, 11.0] in detection"."""
    shown = {task: control(results, task) for task in tasks}
    pairs: dict[str, list[str]] = {}
    for task, one in shown.items():
        if one:
            pairs.setdefault(one.pair, []).append(f"{one} in {task}")
    if not pairs:
        return NONE
    told = "; ".join(f"{pair}: {', '.join(numbers)}" for pair, numbers in pairs.items())
    doubted = {
        "blind": [t for t, one in shown.items() if one and one.blind],
        "none": [t for t in tasks if not shown[t]],
    }
    doubts = [f"{word} in {' and '.join(found)}" for word, found in doubted.items() if found]
    return f"positive control: {told}" + (f"; {', '.join(doubts)}: differences there {MAY}" if doubts else "")


def control(results: Sequence[Result], task: str) -> Shown | None:
    """The row of ImageNet's labels, not rescaled, less that of `random`; None without one of them in this task.

    Of several such rows: imported weights before those trained here, then the longer training.
    """
    positive, negative = references(results, task)
    if not positive or not negative:
        return None
    gaps = replicates(positive.results) - replicates(negative.results)
    return Shown(f"{positive.name} − random", float(np.nanmean(gaps)), *interval(gaps))


def references(results: Sequence[Result], task: str) -> tuple[Measured | None, Measured | None]:
    """The row of ImageNet's labels and that of random filters, neither rescaled; None for one that is not there."""
    own = [result for result in results if result["task"] == task and result["variant"].split("-")[-1] != "rescaled"]
    positive = _seeds([result for result in own if imagenet(result)])
    return positive, _seeds([result for result in own if (result["method"], result["variant"]) == ("random", "")])


def imagenet(result: Result) -> bool:
    """Whether its encoder learned from a thousand classes' labels, by its own word, or is an import called so."""
    provenance = result["encoder"]["provenance"]
    imported = "source" in provenance
    if not imported and provenance.get("iterations") == 0:
        return False
    return provenance.get("supervision") == LABELS or (imported and result["method"] == "imagenet")


def _seeds(results: Sequence[Result]) -> Measured | None:
    """One row of those that the results make."""
    found = [row for row in rows(Section("", list(results))) if row.results]
    return min(found, key=_precedence, default=None)


def _precedence(row: Measured) -> tuple[bool, int]:
    provenance = row.provenances()[0]
    return "source" not in provenance, -(provenance.get("iterations") or 0)

"""The rows of a table: which results make one, what it is called, and what stands in its cells."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.bootstrap import interval, replicates
from benchmarks.letters import letters
from benchmarks.published import NONE, Row, published
from benchmarks.results import Result
from benchmarks.sections import Section
from pretrain import ADAM, method_module, row_name
from pretrain.alexnet import CAFFENET, described
from transfer import TASKS

FULL = {  # the official splits, without which nothing is set beside a published number
    "classification": {"train": 5011, "test": 4952},
    "detection": {"train": 5011, "test": 4952},
    "segmentation": {"train": 8498, "test": 736},
}


@dataclass(frozen=True)
class Measured:
    """One row: its name, the published row of its method, if any, and its results: seeds and tasks of one budget."""

    name: str
    published: Row | None
    results: list[Result]

    def provenances(self) -> list[dict[str, Any]]:
        """What its encoders say of themselves, result by result."""
        return [result["encoder"]["provenance"] for result in self.results]

    def of(self, task: str) -> list[Result]:
        """Its results of one task."""
        return [result for result in self.results if result["task"] == task]


def rows(section: Section) -> list[Measured]:
    """The paper's seven rows in their order, measured or not, then the extras, then new methods by name.

    Of one method, what the paper's row is called after stands before the rest ("ImageNet" before other labels), and
    variants by name, each raw before rescaled.
    """
    known = known_rows()
    groups: dict[tuple[int, str, bool, str, bool, str], list[Result]] = {}
    for result in section.results:
        method, raw = result["method"], _raw(result["variant"])
        place = list(known).index(method) if method in known else len(known)
        key = (place, method, _otherwise(result, known), raw, raw != result["variant"], budget(result))
        groups.setdefault(key, []).append(result)
    found = {key: Measured(_name(group[0], known), known.get(key[1]), group) for key, group in groups.items()}
    for place, row in enumerate(published("table2")):
        if not any(key[0] == place and one.name.startswith(row["name"]) for key, one in found.items()):
            found[place, row["method"], False, "", False, ""] = Measured(row["name"], row, [])
    return [found[key] for key in sorted(found)]


def known_rows() -> dict[str, Row]:
    """Method → its published row."""
    return {row["method"]: row for row in (*published("table2"), *published("extra"))}


def _raw(variant: str) -> str:
    """A variant without the rescaling."""
    return re.sub(r"(^|-)rescaled$", "", variant)


def _otherwise(result: Result, known: dict[str, Row]) -> bool:
    """Whether the name of the published row says what this one was not: other labels are not "ImageNet"."""
    row, said = known.get(result["method"], {}), result["encoder"]["provenance"].get("supervision")
    return "otherwise" in row and _raw(result["variant"]) not in row["variants"] and said != row["supervision"]


def _name(result: Result, known: dict[str, Row]) -> str:
    method, variant = result["method"], result["variant"]
    name = known.get(method, {"name": row_name(method, "")})["otherwise" if _otherwise(result, known) else "name"]
    return f"{name} ({variant})" if variant else str(name)


def budget(result: Result) -> str:
    """What must agree for two results to be seeds of one row: all of the pre-training but its seed."""
    provenance = result["encoder"]["provenance"]
    keys = ["dataset", "shapes", "mask", "label", "source", "iterations"]
    keys += ["batch", "rate", "loss"] if provenance.get("iterations") else []
    rescaled = (provenance.get("rescaled") or {}).get("dataset")
    told = [provenance.get(key) for key in (*keys, "supervision")]
    # Older encoders lack these: trained by Adam, uncalibrated, on the data that the row stands for, by a first version.
    solver = (provenance.get("solver") or {}).get("name", "adam")
    told += [solver, provenance.get("calibrate") or False, provenance.get("data") or "", provenance.get("version") or 1]
    told += _how(provenance)
    return json.dumps([rescaled, *told], sort_keys=True)


def _how(provenance: dict[str, Any]) -> list[str]:
    """Precision and start of the pre-training; older encoders, and imported ones, are PLAIN."""
    return [provenance.get("precision") or PLAIN[0], provenance.get("start") or PLAIN[1]]


PLAIN = ["fp32", ""]


def comparable(result: Result, row: Row | None) -> bool:
    """Whether a result may be set beside the number that `row` publishes for its task.

    That takes the whole protocol on the whole official splits, the encoder that the row stands for, on
    the trunk it stands for, and its pre-training in full, unless there is none or the weights are its authors' own;
    nothing of it in another precision or from another start.
    """
    if row is None or row.get(result["task"]) is None or result["variant"] not in row["variants"]:
        return False
    provenance, data = result["encoder"]["provenance"], result["data"]
    found = described(result["encoder"]["architecture"])
    trunk = replace(found, pad_value=CAFFENET.pad_value) == CAFFENET or row.get("trunk") == "any"
    trained = "source" in provenance or not row["iterations"] or _in_full(provenance, row)
    whole = data["name"] == "VOC" and data["images"] == FULL.get(result["task"])
    return result["recipe"]["name"] == "paper" and whole and trunk and trained and _how(provenance) == PLAIN


def _in_full(provenance: dict[str, Any], row: Row) -> bool:
    """Whether an encoder was trained as its method's defaults say, for as many iterations as the published one."""
    recipe = asdict(method_module(row["method"]).defaults(provenance.get("mask")))
    said = {"solver": asdict(ADAM), "calibrate": False} | provenance  # see budget()
    same = all(said.get(key) == recipe[key] for key in ("solver", "batch", "rate", "calibrate"))
    return same and (provenance.get("iterations") or 0) >= row["iterations"]


def marks(measured: Sequence[Measured], task: str) -> list[str]:
    """Row by row the letters of one column: rows that share one cannot be told apart; "" without a result."""
    found = iter(letters([replicates(row.of(task)) for row in measured if row.of(task)]))
    return [next(found) if row.of(task) else "" for row in measured]


def cell(row: Measured, task: str, *, mark: str = "") -> str:
    """ "50.0 ± 0.5 (2) [48.2, 51.9] ab", and behind a stroke the published number where it may stand there."""
    own = row.of(task)
    text = spread([100 * result["metrics"][TASKS[task].metric] for result in own])
    if own:
        text += " [{:.1f}, {:.1f}]".format(*interval(replicates(own))) + (f" {mark}" if mark else "")
    if row.published and own and all(comparable(result, row.published) for result in own):
        text += f" / {row.published[task]:.1f}"
    return text


def spread(values: Sequence[float]) -> str:
    """Percentages as "mean ± standard deviation (n)"; the deviation is the sample's, so n = 1 has none."""
    if not values:
        return NONE
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.1f} (1)"
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:.1f} ± {deviation:.1f} ({len(values)})"


def supervision(row: Measured) -> str:
    """The encoder's own word; the paper's only under the paper's name, and where the encoder says nothing.

    A row that is trained was supervised by nothing where it was trained for no iteration.
    """
    trains = row.published and row.published["iterations"]
    if trains and any(p.get("iterations") == 0 and "source" not in p for p in row.provenances()):
        return "initialization"
    said = next((p["supervision"] for p in row.provenances() if p.get("supervision")), None)
    named = row.published and row.name.startswith(row.published["name"])
    return str(said or (row.published["supervision"] if row.published and named else NONE))


def time(row: Measured) -> str:
    """ "39 min (500 it.)": the longest of its seeds."""
    provenances = row.provenances()
    if not provenances:
        return NONE
    iterations, seconds = provenances[0].get("iterations"), max(p.get("seconds") or 0.0 for p in provenances)
    if "source" in provenances[0]:
        return "imported"
    if not iterations and not seconds:
        return "none"
    text = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min" if seconds >= 60 else "< 1 min"
    return f"{text} ({iterations:,} it.)" if iterations else text


def hardware(row: Measured) -> str:
    """What the time was measured on, in short; several joined."""
    timed = [p for p in row.provenances() if "source" not in p and (p.get("iterations") or p.get("seconds"))]
    return "; ".join(sorted({_short(p) for p in timed if p.get("hardware")})) or NONE


def _short(provenance: dict[str, Any]) -> str:
    """ "NVIDIA H100 80GB HBM3" → "H100 80GB HBM3", "AMD EPYC, 1 threads of 2 cores" → "AMD EPYC, 1 thread"."""
    text = re.sub(r"^NVIDIA |\((R|TM)\)| CPU @ [\d.]+GHz| \d+-Core Processor", "", provenance["hardware"])
    text = re.sub(r"(\d+) threads of \d+ cores$", r"\1 threads", text)
    text = re.sub(r"\b1 threads$", "1 thread", text)
    processes = provenance.get("processes") or 1
    return f"{processes} × {text}" if processes > 1 else text

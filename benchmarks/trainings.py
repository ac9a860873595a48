"""Pre-trainings point by point: the encoders that one saved on its way and in the end, and how they are scored."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import Result
from benchmarks.rows import budget, rows
from benchmarks.run import check_recipe, transfer
from benchmarks.sections import Section
from pretrain import METHODS, method_module, row_name
from pretrain.alexnet import Encoder, read_encoder
from pretrain.files import Missing, Usage

TASK = "svm"
Provenance = dict[str, Any]
Layers = dict[str, dict[str, float | None]]  # as pretrain.layers has them


@dataclass(frozen=True)
class Training:
    """One pre-training. `points`: iterations → results, one a seed; `layers`: iterations → what was recorded then."""

    name: str
    provenance: Provenance  # what its encoders have in common; "iterations" are those of the whole
    points: dict[int, list[Result]]
    layers: dict[int, Layers]

    def images(self, iterations: int) -> int:
        """How many it has seen by then."""
        return iterations * int(self.provenance["batch"])

    def share(self, iterations: int) -> float | None:
        """The same as a share of the budget `paper` of its method; None where there is no such method or budget."""
        if self.provenance["method"] not in METHODS:
            return None
        whole = method_module(self.provenance["method"]).defaults(self.provenance.get("mask"))
        total = whole.iterations * whole.batch
        return self.images(iterations) / total if total else None

    @property
    def told(self) -> str:
        """ "5,000 iterations of 64 images, adam, rate 0.0001, bf16"."""
        said = self.provenance
        solver = (said.get("solver") or {}).get("name", "adam")
        told = f"{said['iterations']:,} iterations of {said['batch']} images, {solver}, rate {said['rate']:g}"
        return f"{told}, {said.get('precision') or 'fp32'}"


def trainings(section: Section, saved: Sequence[Provenance] = ()) -> list[Training]:
    """Those with a result of an encoder on the way, in Table 2's order; `saved`: only those of these encoders.

    The encoder saved on the way in the last iteration is the final one: one point, of the final one's results.
    """
    groups: dict[str, list[Result]] = {}
    for result in section.results:
        groups.setdefault(training_key(_provenance(result)), []).append(result)
    wanted = {training_key(provenance) for provenance in saved} or set(groups)
    ends = [_ended(own[0]) for key, own in groups.items() if key in wanted and any(map(_on_the_way, own))]
    found = []
    for row in rows(Section(section.recipe, ends)):
        for end in row.results:  # one, or none: the rows of the paper that were not measured
            key = training_key(_provenance(end))
            own = groups[key]
            told = [*map(_provenance, own), *(p for p in saved if training_key(p) == key)]
            layers = {p["iterations"]: p["layers"] for p in told if p.get("layers")}
            found.append(Training(row.name, _provenance(end), _points(own), dict(sorted(layers.items()))))
    return found


def training_key(provenance: Provenance) -> str:
    """What the encoders of one training agree in."""
    end = ended(provenance)
    return f"{row_name(end['method'], end['variant'])} {budget({'encoder': {'provenance': end}})}"


def ended(provenance: Provenance) -> Provenance:
    """What the last encoder of the same training says of itself: an encoder on the way less its "at-300"."""
    if provenance.get("of_iterations") is None:
        return provenance
    at = rf"at-{provenance['iterations']}"

    def without(text: str) -> str:
        return re.sub(rf"^{at}(-|$)|-{at}(?=-|$)", "", text)

    names = {key: without(provenance.get(key) or "") for key in ("variant", "label")}
    return provenance | names | {"iterations": provenance["of_iterations"]}


def _ended(result: Result) -> Result:
    end = ended(_provenance(result))
    return result | {"variant": end["variant"], "encoder": result["encoder"] | {"provenance": end}}


def _provenance(result: Result) -> Provenance:
    return dict(result["encoder"]["provenance"])


def _on_the_way(result: Result) -> bool:
    return _provenance(result).get("of_iterations") is not None


def _points(own: Iterable[Result]) -> dict[int, list[Result]]:
    found: dict[int, list[Result]] = {}
    for result in sorted(own, key=_on_the_way):  # final ones first
        point = found.setdefault(_provenance(result)["iterations"], [])
        if not point or _on_the_way(point[0]) == _on_the_way(result):
            point.append(result)
    return dict(sorted(found.items()))


# ---- runs ----


def score(
    given: Sequence[str], *, recipe: str, data: Path, seeds: Sequence[int], results: Path, runs: Path,
    device: torch.device,
) -> list[Provenance]:  # fmt: skip
    """Score each encoder of the runs, those on the way and the final one; return what each says of itself.

    A run is the folder of a pre-training, by its path or by its name below `runs`/pretrain, with or without its digest.
    Raises Missing or Usage, before anything is scored, when a run is not there or saved nothing on the way.
    """
    check_recipe(recipe, [TASK])
    found = [encoder for name in given for encoder in encoders(find_run(name, runs))]
    for encoder in found:
        if encoder.provenance.get("of_iterations") == encoder.provenance["iterations"]:
            continue  # the final one, by another name
        for seed in seeds:
            transfer(
                encoder, tasks=[TASK], recipe=recipe, data=data, seed=seed, results=results, runs=runs, device=device
            )
    return [encoder.provenance for encoder in found]


def find_run(name: str, runs: Path) -> Path:
    """The folder of a pre-training. Raises Missing when there is none, Usage when there are several."""
    below = runs / "pretrain"
    for folder in (Path(name), below / name):
        if folder.is_dir():
            return folder
    named = re.compile(rf"{re.escape(name)}-[0-9a-f]{{8}}")
    found = sorted(path for path in below.glob("*") if named.fullmatch(path.name))
    if len(found) > 1:
        raise Usage(f"{name}: {len(found)} runs of this name: give {' or '.join(path.name for path in found)}")
    if not found:
        raise Missing(f"{name}: no such run, nor in {below}: give the folder of a pre-training")
    return found[0]


def encoders(run: Path) -> list[Encoder]:
    """Those that a pre-training saved on its way, in their order, and the final one if it is there."""
    saved = [read_encoder(path) for path in sorted(run.glob("encoder-*.safetensors"))]
    if not saved:
        raise Missing(f"{run}: no encoders on the way: train again, with `bench pretrain --save-at 0 300 1000`")
    for encoder in saved:
        if not isinstance(encoder.provenance.get("of_iterations"), int):
            raise Usage(
                f"{encoder.path}: not saved on the way by `bench pretrain --save-at`: take it out of the folder"
            )
    final = run / "encoder.safetensors"
    return [*saved, read_encoder(final)] if final.is_file() else saved

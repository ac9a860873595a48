"""The methods of a plan, one by one: what is written, and what it comes to once the data is known."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import commands
from benchmarks.grid.encoders import DESCRIBED
from benchmarks.grid.lines import Value
from pretrain import METHODS, PRECISIONS, Folders, method_module, row_name
from pretrain.alexnet import read_encoder
from pretrain.files import Failed, Missing
from pretrain.images import find_all
from pretrain.masks import mask_files
from pretrain.train import Config, configure
from transfer.probes.descriptors import DESCRIPTORS
from transfer.voc import find_devkit

VARIANTS = ("raw", "rescaled")
KINDS = ("images", "videos", "shapes")
BUDGET = ("mask", "loss", "iterations", "batch", "rate", "budget", "seed", "label", "precision", "start")
KEYS = ("method", *BUDGET, *KINDS, "encoder", "features", "variants", "tasks")
LABEL = r"[A-Za-z0-9_.+-]{0,100}"
Read = TypeVar("Read")


@dataclass(frozen=True)
class Entry:
    """What to train, on what; or an encoder's file. Which variants of it are rows, their names, their tasks."""

    source: Config | Path
    folders: Folders
    stills: tuple[Path, ...]  # the images that the rescaled variant is balanced on
    variants: tuple[str, ...]
    tasks: tuple[str, ...]
    row: str

    def rows(self) -> list[str]:
        """The names of its rows."""
        return [self.row if variant == "raw" else f"{self.row}-rescaled" for variant in self.variants]

    def makes(self) -> dict[str, object]:
        """The names of the encoders that are made for it → all that decides what these are."""
        raw = self.source, self.folders
        made: dict[str, object] = {} if isinstance(self.source, Path) else {self.row: raw}
        return made | ({f"{self.row}-rescaled": (*raw, self.stills)} if "rescaled" in self.variants else {})


@dataclass(frozen=True)
class Written:
    """A method as it is written, keys and types checked, nothing looked for yet."""

    value: Value
    method: str
    options: dict[str, Any]
    folders: dict[str, list[Value]]
    stills: list[Value]
    encoder: Value | None
    variants: tuple[str, ...]
    tasks: tuple[str, ...]
    features: str | None = None


def read_method(value: Value, above: dict[str, Value], tasks: tuple[str, ...]) -> Written:
    """One of the plan's methods; folders, variants and tasks that it does not name are those `above` it.

    One that names videos is not trained on the images above it, which it is still rescaled on.
    """
    said = value.fields(KEYS)
    folders = {kind: (said.get(kind) or above[kind]).entries() for kind in KINDS if kind in {*said, *above}}
    stills = folders.get("images", [])
    if "videos" in said and "images" not in said:
        folders.pop("images", None)
    variants = said.get("variants") or above.get("variants")
    chosen = once(variants, lambda v: v.choice(VARIANTS)) if variants else ("raw",)
    own = once(said["tasks"], lambda v: v.choice(tasks)) if "tasks" in said else tasks
    encoder = said.get("encoder")
    if features := said.get("features"):
        return _described(value, features, said, own)
    if encoder and (other := [key for key in said if key not in ("encoder", "variants", "tasks", "images")]):
        raise said[other[0]].wrong("an encoder file is not trained: leave this out")
    method = "" if encoder else said["method"].choice(METHODS) if "method" in said else value.key
    if not encoder and method not in METHODS:
        raise value.wrong(f"no method of this name: give it a `method`, one of {', '.join(METHODS)}, or an `encoder`")
    return Written(value, method, _options(method, said), folders, stills, encoder, chosen, own)


def _described(value: Value, features: Value, said: dict[str, Value], own: tuple[str, ...]) -> Written:
    """A descriptor in an encoder's place, for probes alone."""
    if other := [key for key in said if key not in ("features", "tasks")]:
        raise said[other[0]].wrong("features are not trained: leave this out")
    name = features.choice(DESCRIPTORS)
    with at(features):
        commands.check_probes(own, f"features: {name}")
    return Written(value, "", {}, {}, [], None, ("raw",), own, features=name)


def once(value: Value, read: Callable[[Value], Read]) -> tuple[Read, ...]:
    """The entries of a list, each as `read` has it, that names nothing twice."""
    found: dict[Read, None] = {}
    for entry in value.entries():
        if (said := read(entry)) in found:
            raise entry.wrong(f"{said} is given twice")
        found[said] = None
    return tuple(found)


def _options(method: str, said: dict[str, Value]) -> dict[str, Any]:
    """What `configure` is given of it."""
    found: dict[str, Any] = {}
    for key, value in said.items():
        if key == "mask":
            masks = method_module(method).MASKS
            if not masks:
                raise value.wrong(f"method {method} takes no mask")
            found[key] = value.choice(masks)
        elif key == "loss":
            found[key] = value.choice(("l2", "l1"))
        elif key in ("iterations", "seed"):
            found[key] = value.whole()
        elif key == "batch":
            found[key] = value.whole(least=1)
        elif key == "rate":
            found[key] = value.rate()
        elif key == "budget":
            found[key] = value.choice(("tiny", "paper"))
        elif key == "precision":
            found[key] = value.choice(PRECISIONS)
        elif key == "start":
            starts = method_module(method).STARTS
            if not starts:
                raise value.wrong(f"method {method} has one start")
            found[key] = value.choice(starts)
        elif key == "label":
            found[key] = value.matching(LABEL, "a label (letters, digits, '_', '.', '+', '-')")
    return found


def resolve(written: Written, data: Path, *, embedded: bool) -> Entry:
    """Look for what a method needs; `embedded`: what it does not name is taken from the embedded data.

    Raises Missing or Usage, naming the line, when it is not there or does not fit.
    """
    if written.features:
        file = Path(DESCRIBED + written.features)
        return Entry(file, Folders(), (), written.variants, written.tasks, written.features)
    folders = {kind: tuple(_folder(value, data) for value in values) for kind, values in written.folders.items()}
    tiny = embedded and not (folders.get("images") or folders.get("videos"))
    given = commands.embedded(written.method) if tiny and written.method else Folders(**folders)
    if not given.shapes and (voc := find_devkit(data) / "VOC2012").is_dir():
        given = replace(given, shapes=(voc,))
    stills = (commands.TINY / "images",) if tiny else tuple(_folder(value, data) for value in written.stills)
    if "rescaled" in written.variants and not stills:
        raise written.value.wrong("the rescaled variant is balanced on images: name a folder of images")
    with at(written.value):
        if "rescaled" in written.variants:
            find_all(stills)
        if written.encoder:
            file = written.encoder.path()
            provenance = read_encoder(file).provenance
            row = row_name(provenance["method"], provenance["variant"])
            return Entry(file, given, stills, written.variants, written.tasks, row)
        options = {"budget": "tiny" if tiny else "paper"} | written.options
        config = configure(written.method, folders=given, **options)
        if config.mask == "random-region":
            mask_files(given.shapes)
        return Entry(config, given, stills, written.variants, written.tasks, config.name)


def _folder(value: Value, data: Path) -> Path:
    folder = data / value.path()  # an absolute one stays as it is
    if not folder.is_dir():
        raise value.wrong(f"{folder}: no such folder", kind=Missing)
    return folder


@contextmanager
def at(value: Value | None) -> Iterator[None]:
    """Put a line, if one is to blame, before what fails; and the plan's keys for the options that the message names."""
    try:
        yield
    except Failed as error:
        if value is None or str(error).startswith(f"{value.file}:"):  # which has its line
            raise
        message = re.sub(rf"--({'|'.join(KEYS)})\b", r"`\1`", str(error))
        raise value.wrong(message, kind=type(error)) from error

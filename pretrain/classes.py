"""Folders of images → the class of each, and which lie in a split that is held out.

A class is a folder. Folders named after splits (train, val, test, in any case) are never classes: what lies
in train is trained on, in val held out, in test not looked at; anywhere else they are refused.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pretrain.files import Missing
from pretrain.images import Found
from pretrain.listing import HIDDEN, data_in, entries_of, printable, walk
from pretrain.pixels import SUFFIXES

Split = Literal["train", "val", "test"]
MORE = r")([-_. ]?(\d+|set|split|data|images?|imgs?))*"  # "train2017", "val_set", "validation-images"
SPLITS: dict[Split, re.Pattern[str]] = {
    "train": re.compile("(train|training" + MORE, re.IGNORECASE),
    "val": re.compile("(val|valid|validation|dev|eval" + MORE, re.IGNORECASE),
    "test": re.compile("(test|testing" + MORE, re.IGNORECASE),
}
# What may lie in a folder that is no class.
BESIDE = {HIDDEN, "without a suffix", "of .txt", "of .md", "of .json", "of .csv", "of .tsv", "of .xml", "of .mat"}


@dataclass(frozen=True)
class Sorted:
    """Images, and of each the name of its class and whether it is held out as validation."""

    images: Found
    names: tuple[str, ...]
    validation: tuple[bool, ...]


@cache
def split_of(name: str) -> Split | None:
    """The split that a folder of this name holds, or None."""
    return next((split for split, pattern in SPLITS.items() if pattern.fullmatch(name.strip())), None)


def sort_classes(found: Found, folders: Sequence[Path]) -> Sorted:
    """The images of class folders. Raises Missing, naming folder or image, where that is not what they are.

    That is: an image in no class folder; a split beside classes or inside one, or twice; a class folder of which
    no image can be used though something lies in it; two classes whose names differ in case alone.
    """
    holding: dict[Path, set[str]] = {folder: set() for folder in folders}
    for folder, path in found.files:
        if len(parts := path.relative_to(folder).parts) > 1:
            holding[folder].add(parts[0])
    layouts = {folder: _layout(folder, inside) for folder, inside in holding.items()}
    kept, names, validation = [], list[str](), list[bool]()
    untold: Counter[Path] = Counter()
    for folder, path in found.files:
        split, name = _place(folder, path, layouts[folder])
        if split == "test":
            untold[folder] += 1
            continue
        kept.append((folder, path))
        names.append(name)
        validation.append(split == "val")
    notes = [f"{printable(folder)}: not looked at: {count} images of a test split" for folder, count in untold.items()]
    notes += _check(names, validation, layouts)
    return Sorted(Found(tuple(kept), (*found.notes, *notes)), tuple(names), tuple(validation))


def _folders(folder: Path) -> list[Path]:
    return [path for path in data_in(entries_of(folder)) if path.is_dir()]


def _layout(folder: Path, holding: Collection[str]) -> dict[Path, Split]:
    """The folders that hold class folders, and which split each is: `folder` itself, or those in it.

    `holding`: the names of the folders in it in which there are images.
    """
    splits = {folder / name: split for name in sorted(holding) if (split := split_of(name))}
    others = sorted(name for name in holding if folder / name not in splits)
    if not splits:
        return {folder: "train"}
    if others:
        raise Missing(
            f"{printable(next(iter(splits)))}: a split's name beside other folders ({printable(others[0])}): "
            "give --images a folder of class folders alone or of split folders alone, or rename the class"
        )
    counts = Counter(splits.values())
    if counts["train"] != 1 or counts["val"] > 1:
        listed = ", ".join(printable(path.name) for path in splits)
        raise Missing(
            f"{printable(folder)}: images of splits {listed}: one train and at most one val are needed: "
            "give --images the folder of one, or rename a class"
        )
    return splits


def _place(folder: Path, path: Path, layout: dict[Path, Split]) -> tuple[Split, str]:
    """The split of an image, and its class."""
    parts = path.relative_to(folder).parts[:-1]
    split: Split = "train"
    if folder not in layout:
        split = layout.get(folder / parts[0], "train") if parts else "train"
        parts = parts[1:]
    if split == "test":
        return split, ""
    if not parts:
        raise Missing(
            f"{printable(path)}: in no class folder: give --images a folder with one folder a class, and nothing else"
        )
    if odd := next((part for part in parts if split_of(part)), None):
        raise Missing(
            f"{printable(path)}: {printable(odd)} is a split's name, below or instead of a class: "
            "give --images a folder with one folder a class, or rename the class"
        )
    return split, parts[0]


def _check(names: Sequence[str], validation: Sequence[bool], layouts: dict[Path, dict[Path, Split]]) -> Iterator[str]:
    """The lines to log about classes without images. Raises Missing where one is lost, or two are one."""
    alike = defaultdict[str, set[str]](set)
    for name in names:
        alike[unicodedata.normalize("NFC", name).casefold().strip()].add(name)
    if twins := next((sorted(same) for same in alike.values() if len(same) > 1), None):
        folder = printable(next(iter(layouts)))
        raise Missing(f"{folder}: classes {' and '.join(map(printable, twins))}: one or two? Rename one of them")
    trained = {name for name, aside in zip(names, validation, strict=True) if not aside}
    held = {name for name, aside in zip(names, validation, strict=True) if aside}
    for inside, split in ((inside, split) for layout in layouts.values() for inside, split in layout.items()):
        known = {"train": trained, "val": held, "test": None}[split]
        if known is not None:
            yield from (_lost(path) for path in _folders(inside) if path.name not in known)
    if held and (unscored := sorted(trained - held)):
        few = ", ".join(map(printable, unscored[:10]))
        yield f"{len(unscored)} of {len(trained)} classes have no image in val: {few}"


def _lost(folder: Path) -> str:
    """The line about a class folder without an image. Raises Missing when something lies in it."""
    inside = walk(folder, SUFFIXES)
    if inside.files and not folder.is_symlink():
        return f"{printable(folder)}: not looked at"  # of a VOC year's folder, whose lists say which images count
    if inside.files:
        raise Missing(f"{printable(folder)}: a link to a folder that is read elsewhere: remove one of the two")
    if set(inside.unread) - BESIDE:
        raise Missing(
            f"{printable(folder)}: no image of this class can be read ({inside.report()}): "
            "convert them, or remove the folder"
        )
    return f"{printable(folder)}: no image in it, so no class"

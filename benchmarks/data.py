"""VOC trees on disk: verify one, count it against the official splits, name it, cut a small one out of it.

A tree is DATA/VOCdevkit/VOC2007, DATA/VOCdevkit/VOC2012 and, where its maker gave it a name, DATA/dataset.json.
"""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TypeVar

import numpy as np

import transfer
from pretrain.files import Failed, Missing, Usage, sweep, temporary_name, write_error, write_text
from pretrain.listing import data_in, junk, read_text, walk
from pretrain.progress import log, progress
from pretrain.randomness import derived
from pretrain.workers import processes
from transfer import voc
from transfer.truth import Example, check_objects

T = TypeVar("T")
Lists = dict[str, list[str]]  # stem of a list's file ("train", "aeroplane_train") → the ids in it

# Images in the official releases (protocols 4.1, 5.1, 6.1), for the kinds of lists that the tasks read.
OFFICIAL = {
    ("VOC2007", "Main"): {"trainval": 5011, "test": 4952, "train": 2501, "val": 2510},
    ("VOC2012", "Segmentation"): {"train": 1464, "val": 1449, "seg11valid": 736},
}
SEG11VALID = "seg11valid"  # in no VOC archive: the FCN authors' list, shipped in transfer/
CUT = {"VOC2007": ("Main", ("train", "val", "test")), "VOC2012": ("Segmentation", ("train", "val"))}
# The rules on ids hold for these kinds. Layout and Action list objects: an image is there once per object.
KINDS = ("Main", "Segmentation")
FOLDERS = {"JPEGImages": ".jpg", "Annotations": ".xml", "SegmentationClass": ".png", "SegmentationObject": ".png"}


# ---- what there is ----


@dataclass(frozen=True)
class Split:
    """A split that the tasks read: how many images it lists, and how many of those have all their files."""

    year: str
    name: str
    official: int
    listed: int
    present: int

    @property
    def whole(self) -> bool:
        """All of the official images, with all their files."""
        return self.official == self.listed == self.present

    def __str__(self) -> str:
        lack = self.listed - self.present
        note = f"; {lack} without JPEG, XML or mask" if lack else ""
        return f"{self.year} {self.name}: {self.listed} of {self.official} images{note}"


def splits(data: Path) -> list[Split]:
    """The splits the tasks read, counted by looking for files and decoding none. A missing one lists 0 images."""
    devkit = voc.find_devkit(data)
    found = []
    for (name, kind), official in OFFICIAL.items():
        year = devkit / name
        lists = read_lists(year, kind)
        for split, count in official.items():
            ids = seg11valid(year) if split == SEG11VALID else lists.get(split, [])
            needs = [Files(year, image_id, annotated=True, masked=kind == "Segmentation") for image_id in ids]
            found.append(Split(name, split, count, len(ids), sum(all(map(Path.is_file, n.paths())) for n in needs)))
    return found


def complete(data: Path) -> list[str]:
    """One line per split the tasks read: the year, the split, how many of the official images are there."""
    return [str(split) for split in splits(data)]


def dataset_name(data: Path) -> str:
    """The name in `data`/dataset.json; without one, "VOC" for the whole official splits and "VOC part" for less.

    Raises Failed when dataset.json is broken.
    """
    given = _given_name(data)
    if given:
        return given
    found = splits(data)
    years = {split.year for split in found if split.listed} | {"VOC2007"}
    needed = [s for s in found if s.year in years and s.name != SEG11VALID]
    return "VOC" if all(split.whole for split in needed) else "VOC part"


def _given_name(data: Path) -> str | None:
    # --data may also name the VOCdevkit folder itself.
    inside = data.resolve().name == "VOCdevkit"
    path = (data.resolve().parent if inside else data) / "dataset.json"
    if not path.exists():
        return None
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise Failed(f'{path}: broken ({error}): it must hold {{"name": "…"}}: correct or delete it') from error
    name = content.get("name") if isinstance(content, dict) else None
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise Failed(f'{path}: no name in it: it must hold {{"name": "…"}}: correct or delete it')
    return name.strip()


def read_lists(year: Path, kind: str) -> Lists:
    """Every list of ImageSets/<kind>, in order of their names. Raises Failed, naming the one that cannot be read."""
    return {path.stem: [entry[0] for entry in voc.read_list(path)] for path in list_paths(year, kind)}


def list_paths(year: Path, kind: str) -> list[Path]:
    """Where the lists of ImageSets/<kind> lie; what systems and editors leave there is none."""
    return data_in((year / "ImageSets" / kind).glob("*.txt"))


def seg11valid(year: Path) -> list[str]:
    """The tree's own list, or what its val has of the shipped one."""
    lists = read_lists(year, "Segmentation")
    if SEG11VALID in lists:
        return lists[SEG11VALID]
    shipped = resources.files(transfer).joinpath(f"{SEG11VALID}.txt").read_text(encoding="utf-8").split()
    return sorted(set(shipped) & set(lists.get("val", [])))


# ---- check ----


def check(data: Path) -> list[str]:
    """Verify every list and every file it names, decoding all images and masks: one line per problem."""
    devkit = voc.find_devkit(data)
    problems: list[str] = []
    jobs: list[Files] = []
    for year in data_in(path.parent for path in devkit.glob("VOC20*/ImageSets")):
        unread = [line for kind in _kinds(year) for path in list_paths(year, kind) if (line := _unread(path))]
        if unread:  # nothing that is said of the others would be true
            problems += unread
            continue
        for kind in _kinds(year):
            problems += list_problems(year, kind)
        jobs += listed_files(year)
        report_unlisted(year)
    problems += _in_processes(file_problems, jobs)
    shown = mask_problems(devkit / "VOC2012") if (devkit / "VOC2012").is_dir() else []
    return problems + [line for line in shown if line not in problems]


def mask_problems(year: Path) -> list[str]:
    """Segmentation's splits of which no mask shows any object."""
    problems = []
    for path in list_paths(year, "Segmentation"):
        if path.stem in OFFICIAL[year.name, "Segmentation"]:
            try:
                ids = [entry[0] for entry in voc.read_list(path)]
                check_objects(
                    [Example(voc.image_path(year, i), voc.mask_path(year, i)) for i in ids] if ids else [], path
                )
            except Failed as error:
                problems.append(str(error))
    return problems


def _unread(path: Path) -> str:
    """Why a list cannot be read, or ""."""
    try:
        voc.read_list(path)
    except Failed as error:
        return str(error)
    return ""


def _kinds(year: Path) -> list[str]:
    """The folders in ImageSets, and those that must be there."""
    there = {path.name for path in data_in((year / "ImageSets").iterdir()) if path.is_dir()}
    return sorted(there | {kind for name, kind in OFFICIAL if name == year.name})


def report_unlisted(year: Path) -> None:
    """Count on stderr, by reason, what lies in the folders of a year and is not looked at."""
    listed = {files.image_id for files in listed_files(year)}
    for name, suffix in FOLDERS.items():
        if (year / name).is_dir():
            found = walk(year / name, (suffix,), deep=False)
            extra = sum(path.stem not in listed for path in found.files)
            reasons = [f"{extra} in no list"] * bool(extra) + [found.report()] * bool(found.unread)
            if reasons:
                log(f"{year / name}: not looked at: {', '.join(reasons)}")


def list_problems(year: Path, kind: str) -> list[str]:
    """What is wrong with the lists of ImageSets/<kind>."""
    folder = year / "ImageSets" / kind
    lists = read_lists(year, kind)
    needed = [split for split in OFFICIAL.get((year.name, kind), {}) if split != SEG11VALID]
    problems = [f"{folder / s}.txt: missing: take it from the official archive" for s in needed if s not in lists]
    problems += [f"{folder / stem}.txt: lists no image: restore or delete it" for stem, ids in lists.items() if not ids]
    if kind in KINDS:
        for stem, ids in lists.items():
            twice = [image_id for image_id, count in Counter(ids).items() if count > 1]
            problems += [f"{folder / stem}.txt: lists {_some(twice)} more than once: keep one line each"] * bool(twice)
        problems += split_problems(folder, lists) + class_problems(folder, lists)
    return problems


def split_problems(folder: Path, lists: Lists) -> list[str]:
    """trainval must be train and val together; what is tested on must not be trained on."""
    problems = []
    halves = [lists[split] for split in ("train", "val") if split in lists]
    odd = set(lists.get("trainval", [])) ^ set().union(*halves)
    if halves and "trainval" in lists and odd:
        problems.append(f"{folder}/trainval.txt: is not train.txt and val.txt together ({_some(odd)}): make it so")
    for test, training in (("val", ["train"]), (SEG11VALID, ["train"]), ("test", ["train", "val", "trainval"])):
        shared = set(lists.get(test, [])) & {image_id for split in training for image_id in lists.get(split, [])}
        if shared:
            names = " or ".join(f"{split}.txt" for split in training)
            problems.append(f"{folder}/{test}.txt: shares {_some(shared)} with {names}: list each in one of them")
    return problems


def class_problems(folder: Path, lists: Lists) -> list[str]:
    """A split's class lists, where it has any: all 20, each with the split's ids and a label of 1, 0 or -1."""
    problems = []
    for split in ("train", "val", "trainval", "test"):
        paths = {name: folder / f"{name}_{split}.txt" for name in voc.CLASSES}
        there = [path for path in paths.values() if path.stem in lists]
        if there:
            problems += [
                f"{p}: missing, though other classes have theirs: add it" for p in paths.values() if p not in there
            ]
        for path in there:
            odd = set(lists[path.stem]) ^ set(lists.get(split, []))
            if odd:
                problems.append(f"{path}: its ids are not those of {split}.txt ({_some(odd)}): list the same ids")
            bad = [entry[0] for entry in voc.read_list(path) if entry[-1] not in ("1", "0", "-1") or len(entry) < 2]
            if bad:
                problems.append(f"{path}: no label 1, 0 or -1 for {_some(bad)}: correct these lines")
    return problems


def _some(ids: Iterable[str]) -> str:
    """The first few of some ids."""
    ordered = sorted(ids)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


@dataclass(frozen=True)
class Files:
    """An image, and what must lie beside it."""

    year: Path
    image_id: str
    annotated: bool
    masked: bool

    def paths(self) -> list[Path]:
        """The files that must be there."""
        needs = {voc.image_path: True, voc.annotation_path: self.annotated, voc.mask_path: self.masked}
        return [path(self.year, self.image_id) for path, needed in needs.items() if needed]


def listed_files(year: Path) -> list[Files]:
    """What the lists of a year promise, by image. VOC never published the test annotations of later years."""
    ids, annotated, masked = set[str](), set[str](), set[str]()
    for kind in _kinds(year):
        for stem, listed in read_lists(year, kind).items():
            ids.update(listed)
            if year.name == "VOC2007" or stem.rpartition("_")[2] != "test":
                annotated.update(listed)
                masked.update(listed if kind == "Segmentation" else ())
    return [Files(year, i, annotated=i in annotated, masked=i in masked) for i in sorted(ids)]


def file_problems(files: Files) -> list[str]:
    """Decode an image, its annotation and its masks: what is wrong with them."""
    problems: list[str] = []
    image = _attempt(voc.read_image, voc.image_path(files.year, files.image_id), problems)
    size, annotation = None if image is None else image.shape[:2], None
    if files.annotated:
        path = voc.annotation_path(files.year, files.image_id)
        annotation = _attempt(voc.read_annotation, path, problems)
        said = (annotation.height, annotation.width) if annotation else None
        if said and size and said != size:
            problems.append(f"{path}: says {said}, its image is {size} (height, width): replace the wrong one")
        size = size or said
    if files.masked:
        path = voc.mask_path(files.year, files.image_id)
        classes = _attempt(partial(voc.read_mask, size=size), path, problems)
        shown = set() if classes is None else set(np.unique(classes).tolist()) - {0, voc.VOID}
        if shown and annotation and not shown & {label + 1 for label in annotation.labels.tolist()}:
            problems.append(f"{path}: shows no class that its annotation names: replace the mask by VOC's")
        instances = files.year / "SegmentationObject" / f"{files.image_id}.png"
        mask = _attempt(voc.read_image, instances, problems) if instances.exists() else None
        if mask is not None and size and mask.shape[:2] != size:
            problems.append(f"{instances}: is {mask.shape[:2]}, its image {size} (height, width): replace the mask")
    return problems


def _attempt(read: Callable[[Path], T], path: Path, problems: list[str]) -> T | None:
    try:
        return read(path)
    except Failed as error:
        problems.append(str(error))
    except Exception as error:  # damaged bytes can trip a decoder anywhere; the check must go on
        problems.append(f"{path}: cannot be read ({error!r}): replace the file")
    return None


def _in_processes(work: Callable[[Files], list[str]], jobs: Sequence[Files]) -> list[str]:
    """The lines that `work` finds for each of `jobs`, in their order."""
    with processes("check: a worker") as pool:
        found = progress(pool.map(work, jobs, chunksize=16), "check", total=len(jobs))
        return list(itertools.chain.from_iterable(found))


# ---- subset ----


def subset(source: Path, target: Path, *, images: int = 40, seed: int = 0) -> None:
    """Cut `images` images per split out of the VOCdevkit in `source`, with all their lists, into the folder `target`.

    Same seed, same images. They are chosen so that many classes appear in each split. `target` appears
    whole or not at all.
    """
    target = target.resolve()
    if images < 1:
        raise Usage(f"{images} images per split: ask for 1 or more")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Usage(f"{target}: already there, and not empty: give another folder, or delete it first")
    devkit = voc.find_devkit(source)
    chosen = {devkit / name: choose_year(devkit / name, images, seed) for name in CUT if (devkit / name).is_dir()}
    if not chosen:
        raise Missing(f"{devkit}: neither VOC2007 nor VOC2012 is here: give the folder that holds one of them")
    sweep(target)
    temporary = temporary_name(target)
    try:
        for year, by_split in chosen.items():
            copy_year(year, temporary / "VOCdevkit" / year.name, by_split)
        _write_name(temporary, source, chosen, seed)
        temporary.rename(target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def choose_year(year: Path, images: int, seed: int) -> dict[str, list[str]]:
    """The ids to keep of each split of a year."""
    kind, names = CUT[year.name]
    preferred = set(seg11valid(year))
    chosen = {}
    for split in names:
        ids = voc.image_set(year, kind, split)
        shuffled = sorted(set(ids), key=lambda image_id: derived(seed, year.name, split, image_id))
        # The val images of a subset lie in seg11valid, so that either list can be tested on.
        first = [i for i in shuffled if (year.name, split) == ("VOC2012", "val") and i in preferred]
        chosen[split] = choose(year, first, images)
        rest = [i for i in shuffled if i not in set(first)]
        chosen[split] += choose(year, rest, images - len(chosen[split]))
    return chosen


def choose(year: Path, ids: Sequence[str], images: int) -> list[str]:
    """At most `images` of `ids`: each time the first that shows the most (non-difficult) classes not yet shown."""
    if images < 1:
        return []
    annotations = {i: voc.read_annotation(voc.annotation_path(year, i)) for i in ids}
    classes = {i: set(a.labels[~a.difficult].tolist()) for i, a in annotations.items()}
    left = dict.fromkeys(ids)
    chosen: list[str] = []
    shown: set[int] = set()
    while left and len(chosen) < images:
        best = max(left, key=lambda i: len(classes[i] - shown))
        if classes[best] <= shown:
            return chosen + list(left)[: images - len(chosen)]
        chosen.append(best)
        shown |= classes[best]
        del left[best]
    return chosen


def copy_year(year: Path, target: Path, chosen: dict[str, list[str]]) -> None:
    """Copy the files of the chosen images, and of every list the lines about them. A list left empty is left out."""
    ids = {image_id for part in chosen.values() for image_id in part}
    for files in listed_files(year):
        if files.image_id in ids:
            masks = [year / kind / f"{files.image_id}.png" for kind in ("SegmentationClass", "SegmentationObject")]
            for path in {*files.paths(), *filter(Path.is_file, masks)}:
                _write(target / path.relative_to(year), _read(path))
    for path in data_in(year.glob("ImageSets/*/*.txt")):
        if junk(path.parent.name):
            continue
        lines = read_text(path).splitlines(keepends=True)
        kept = [line for line in lines if line.strip() and line.split()[0] in ids]
        if kept:
            _write(target / path.relative_to(year), "".join(kept).encode())
    # Without a list of its own, a tree is tested on all 736 images of the shipped one.
    scored = target / "ImageSets" / "Segmentation" / f"{SEG11VALID}.txt"
    kept_ids = [i for i in seg11valid(year) if i in ids]
    if year.name == "VOC2012" and kept_ids and not scored.exists():
        _write(scored, "".join(f"{i}\n" for i in kept_ids).encode())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Missing(f"{path}: not there, though an image set lists it: complete the data") from error
    except OSError as error:
        raise Failed(f"{path}: cannot be read ({error.strerror or error}): check its rights") from error


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_name(target: Path, source: Path, chosen: dict[Path, dict[str, list[str]]], seed: int) -> None:
    """dataset.json: the subset's name, which every result on it carries."""
    images = {f"{year.name} {split}": len(ids) for year, part in chosen.items() for split, ids in part.items()}
    counts = "+".join(map(str, images.values()))
    name = f"subset of {_given_name(source) or 'VOC'} ({counts} images, seed {seed})"
    content = {"name": name, "seed": seed, "images": images}
    write_text(target / "dataset.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")

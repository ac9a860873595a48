"""One annotation file of VOC, read strictly: what is said otherwise than VOC says it is an error, never a default."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from pretrain.files import read_bounded

Element = ElementTree.Element
MOST = 16 * 2**20  # bytes; VOC's longest is 20 kB
SIDES = 100_000  # pixels
FLAGS = ("difficult", "truncated", "occluded")
YES, NO = ("1", "1.0", "true", "t", "yes", "y", "on"), ("0", "0.0", "false", "f", "no", "n", "off")
IN_WORDS = re.compile(
    rb"<difficult>\s*(?!1\s*<)(" + b"|".join(map(re.escape, map(str.encode, YES))) + rb")\s*<", re.IGNORECASE
)
# What an annotation of VOC has; texts beside them are other tools' notes.
KNOWN = {"folder", "filename", "path", "database", "source", "owner", "size", "segmented", "object"}
BOXED = {"object", "bndbox"}  # an object must not be missed for how it is written
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Object:
    """A name, the four corners (1-based, inclusive) as written, and the flags."""

    name: str
    corners: list[float]
    difficult: bool
    truncated: bool


@dataclass(frozen=True)
class Parsed:
    """The size in pixels, and the objects in their order."""

    width: int
    height: int
    objects: list[Object]


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, *_: object) -> None:
        """Entities are declared here, and can unfold to gigabytes."""
        raise ValueError(f"it declares a document type (<!DOCTYPE {name[:40]}>), which VOC's files do not: remove it")


def read(path: Path) -> bytes:
    """The bytes of a file. Raises ValueError when they are too many, or the system's error in words."""
    try:
        return read_bounded(path, most=MOST)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error


def parse(content: bytes) -> Parsed:
    """Raise ValueError, LookupError or ElementTree.ParseError, saying what is wrong, when it is no annotation of VOC's.

    Boxes and names are not yet held against image and classes.
    """
    root = ElementTree.fromstring(content, parser=ElementTree.XMLParser(target=_Builder()))
    if root.tag != "annotation":
        raise ValueError(f"its root is <{_short(root.tag)}>, not VOC's <annotation>: another format")
    _check_schema(root)
    size = _one(root, "size")
    width, height = (_side(_text(size, side), side) for side in ("width", "height"))
    return Parsed(width, height, [_object(element) for element in root.findall("object")])


def _check_schema(root: Element) -> None:
    """Raise ValueError where there may be objects that VOC's readers do not see."""
    own = root.findall("object")
    seen = {id(element) for element in own} | {id(box) for element in own for box in element.iter("bndbox")}
    for element in root.iter():
        name = _local(element.tag)
        if id(element) not in seen and (name in BOXED or name == "objects"):
            raise ValueError(
                f"<{_short(element.tag)}> where VOC has <object> in <annotation> and <bndbox> in it: another format"
            )
    if not own:
        odd = [element.tag for element in root if _local(element.tag) not in KNOWN and len(element)]
        if odd:
            raise ValueError(f"no <object>, but <{_short(odd[0])}>: another format")


def _local(tag: object) -> str:
    """Without the namespace, in lower case."""
    return str(tag).rpartition("}")[2].lower()


def _short(tag: object) -> str:
    return str(tag)[:60]


def _object(element: Element) -> Object:
    flags = {name: flag(element, name) for name in FLAGS}
    box = _one(element, "bndbox")
    corners = [_corner(_text(box, corner), corner) for corner in CORNERS]
    return Object(_text(element, "name"), corners, flags["difficult"], flags["truncated"])


def flag(element: Element, name: str) -> bool:
    """Whether an object is difficult (truncated, occluded): VOC's 1 and 0, or the usual words; not said: no.

    Raises ValueError for what is neither yes nor no, an empty element too.
    """
    found = element.findall(name)
    if not found:
        return False
    word = _text(element, name).lower()
    if word not in YES + NO:
        raise ValueError(f"<{name}> is {word[:40]!r}, neither yes nor no: write 1 or 0")
    return word in YES


def _one(element: Element, name: str) -> Element:
    found = element.findall(name)
    if len(found) != 1:
        raise ValueError(f"{len(found) or 'no'} <{name}> in <{element.tag}>, where VOC has one")
    return found[0]


def _text(element: Element, name: str) -> str:
    return (_one(element, name).text or "").strip()


def _side(text: str, name: str) -> int:
    value = _number(text, name)
    if not value.is_integer() or not 1 <= value <= SIDES:
        raise ValueError(f"<{name}> is {text[:40]!r}, not a number of pixels")
    return int(value)


def _corner(text: str, name: str) -> float:
    value = _number(text, name)
    if not math.isfinite(value):
        raise ValueError(f"<{name}> is {text[:40]!r}, not a finite number")
    return value


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"<{name}> is {text[:40]!r}, not a number") from None

"""What an encoder file says of itself, checked in types, ranges and depth when it is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.files import Failed

LONGEST = 2**20  # bytes of the metadata; ours has under 10 KB
DEEPEST = 12  # containers within each other; ours has four
NAME = 200  # characters of a row's name, which is a folder's
LARGE = 2.0**53
REMEDY = "write encoders with `bench pretrain`, `bench import` or pretrain.alexnet.save_encoder"
NONE = "no provenance in its metadata, so its row has no name"

Check = Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _table(**fields: Check) -> Check:
    """A dict in which what is there of `fields` is as it should be."""
    return lambda value: isinstance(value, dict) and all(fields[key](value[key]) for key in fields if key in value)


def _each(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


# kind → the fields of that kind. Each may be None or missing: older encoders, and imported ones, lack some.
FIELDS: dict[str, dict[str, Check]] = {
    "a text": dict.fromkeys(
        ("label", "mask", "loss", "hardware", "data", "precision", "start", "commit", "compared"), _text
    ),
    "a whole number, 0 or more": dict.fromkeys(
        ("iterations", "of_iterations", "batch", "images_seen", "processes", "version", "seed"), _count
    ),
    "a number, 0 or more": dict.fromkeys(("rate", "seconds"), lambda value: _number(value) and value >= 0),
    "true or false": dict.fromkeys(("calibrate", "dirty"), lambda value: isinstance(value, bool)),
    "a table of numbers": {"held_out": _each(_number), "layers": _each(_each(lambda v: v is None or _number(v)))},
    "a table": {
        "dataset": _table(name=_text, images=_count, sha256=_text),
        "shapes": _table(),
        "source": _table(file=_text, sha256=_text),
        "solver": _table(name=_text),
        "rescaled": _table(source=_text, dataset=_table(name=_text, images=_count, sha256=_text)),
        "versions": _each(lambda value: value is None or _text(value)),
    },
}  # fmt: skip


def read_provenance(path: Path, text: str | None) -> dict[str, Any]:
    """The provenance that the metadata of the encoder file `path` holds as JSON.

    Raises Failed, naming the field, when there is none, when a field is of another type or range than ours, when a
    number is not finite, a text is no Unicode, or when it is nested too deeply or too long. Whether method and variant
    make a row's name is for those to ask who need one (pretrain.row_name).
    """
    if text is not None and len(text) > LONGEST:
        raise Failed(f"{path}: a provenance of {len(text):,} characters, more than {LONGEST:,}: {REMEDY}")
    try:
        said = json.loads(text or "")
        "".join(said[key] for key in ("method", "variant", "supervision"))
    except (KeyError, TypeError, ValueError, RecursionError):
        raise Failed(f"{path}: {NONE}: {REMEDY}") from None
    try:
        # the architecture is checked where it is understood, pretrain.alexnet.described
        _check_values({key: value for key, value in said.items() if key != "architecture"}, "provenance", 0)
        for kind, fields in FIELDS.items():
            for key, check in fields.items():
                if said.get(key) is not None and not check(said[key]):
                    raise ValueError(f"{key} is {repr(said[key])[:60]}, not {kind}")
        if len(said["method"]) + len(said["variant"]) > NAME:
            raise ValueError(f"method and variant have more than {NAME} characters")
    except ValueError as error:
        raise Failed(f"{path}: its provenance is damaged ({error}): {REMEDY}") from None
    return dict(said)


def _check_values(value: Any, place: str, depth: int) -> None:
    """Raise ValueError, naming the place, for a number or text that JSON can hold and we can not use."""
    if depth > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST}")
    if isinstance(value, str) and not _unicode(value):
        raise ValueError(f"{place} is no Unicode text")
    if isinstance(value, int | float) and not abs(value) <= LARGE:  # NaN too
        raise ValueError(f"{place} is out of range")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_values(key, place, depth + 1)
            _check_values(item, f"{place[:60]}.{key[:60]}".removeprefix("provenance."), depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_values(item, place, depth + 1)


def _unicode(text: str) -> bool:
    """Whether a text can be written: no lone surrogates, no control characters but line ends and tabs."""
    if any(ord(one) < 32 and one not in "\t\r\n" for one in text):
        return False
    return not any("\ud800" <= one <= "\udfff" for one in text)

"""The published weights files we know (weights.yaml), and `bench import`, which knows their preprocessing."""

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.published import published
from pretrain import METHODS, method_module, row_name
from pretrain.contents import head_of, mistaken
from pretrain.files import Failed, Missing, Usage, sha256, write_text
from pretrain.progress import log

if TYPE_CHECKING:
    from pretrain.foreign import Reading

ALGORITHMS = ("sha256", "sha1", "md5")
ARCHIVES = (".zip", ".tgz", ".tar.gz")  # the checksum is then the archive's, not that of what is in it


@dataclass(frozen=True)
class Known:
    """One entry of weights.yaml; see the words at its head."""

    name: str
    method: str
    title: str
    urls: tuple[str, ...]
    source: str
    remarks: str
    file: str = ""
    variant: str = ""
    supervision: str = ""
    importable: bool = True
    sha256: str = ""
    sha1: str = ""
    md5: str = ""
    order: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    norm: str | None = None

    def matches(self, path: Path) -> bool | None:
        """Whether the file at `path` has the known checksum; None when none is known."""
        return None if (sums := self._sums()) is None else digests(path, sums[0])[sums[0]].startswith(sums[1])

    @property
    def checksum(self) -> str:
        """The known checksum, whole or its first digits; "" when none is known."""
        return (self._sums() or ("", ""))[1]

    def _sums(self) -> tuple[str, str] | None:
        return next(((name, getattr(self, name)) for name in ALGORITHMS if getattr(self, name)), None)


@cache
def known_files() -> dict[str, Known]:
    """name → Known, in the order of weights.yaml."""
    entries: list[dict[str, Any]] = yaml.safe_load(files("benchmarks").joinpath("weights.yaml").read_text("utf-8"))
    names = {field.name for field in fields(Known)}
    assert all(set(entry) <= names for entry in entries), "weights.yaml has an unknown key"
    lists = ("urls", "mean", "std")
    for entry in entries:
        entry.update({key: tuple(entry[key]) for key in lists if key in entry})
    return {entry["name"]: Known(**entry) for entry in entries}


def known_file(name: str) -> Known:
    """The entry called `name`. Raises Usage, listing the names."""
    if name not in known_files():
        raise Usage(f"{name!r}: not a known weights file: choose from {', '.join(known_files())}")
    return known_files()[name]


def known_table() -> str:
    """A Markdown table of the known files, with what cannot be imported and why."""
    lines = ["| Name | Method | Weights | Address | Checksum | Pixels | Remarks |", "|" + ":--|" * 7]
    for known in known_files().values():
        sums = known._sums()
        pixels = f"{known.order} − {known.mean}" + (f" / {known.std}" if known.std else "") if known.order else "–"
        remarks = known.remarks if known.importable else f"**Not importable.** {known.remarks}"
        cells = (known.name, row_name(known.method, known.variant), known.title,
                 " ".join(known.urls) or known.file or "–", " ".join(sums) if sums else "–", pixels,
                 f"{remarks} ({known.source})")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def digests(path: Path, *algorithms: str) -> dict[str, str]:
    """Hex digests of a file's bytes, in one pass."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            for one in hashes.values():
                one.update(chunk)
    return {name: one.hexdigest() for name, one in hashes.items()}


def recognised(path: Path) -> Known | None:
    """The known file whose checksum is that of the file at `path`, if there is one."""
    found = digests(path, *ALGORITHMS)
    sums = ((known, known._sums()) for known in known_files().values())
    return next((known for known, pair in sums if pair and found[pair[0]].startswith(pair[1])), None)


def import_file(
    path: Path, *, method: str | None, variant: str | None, reading: "Reading", name: str | None, out: Path | None,
    runs: Path,
) -> Path:  # fmt: skip
    """Import the weights file `path` as the encoder file `out`, and make it the one that `bench transfer` takes.

    What is not given is taken from the known file: the one called `name` (whose checksum must agree,
    where one is known), or the one with this checksum. Raises Usage when there is no method, Missing
    without the file, Failed as pretrain.foreign.import_weights does.
    """
    from pretrain.foreign import import_weights

    if path.is_dir():
        raise Failed(f"{path}: a folder: give the weights file in it")
    if not path.is_file():
        raise Missing(f"{path}: no such file: `bench fetch` gets the known ones, `bench import --list` names them")
    known = _known(path, name)
    method = method or (known.method if known else None)
    if not method:
        raise Usage("say which row these weights make: --method NAME, or --known NAME (`bench import --list`)")
    variant = variant if variant is not None else known.variant if known and known.method == method else ""
    if own := next((own for own in METHODS if (method == own and not variant) or method.startswith(f"{own}-")), None):
        raise Usage(f"--method {method}: {own} names rows that are trained here: give another, or add --variant")
    if known:
        defaults: Any = {key: getattr(known, key) for key in ("order", "mean", "std", "norm")}
        given = {key: value for key, value in vars(reading).items() if value is not None}
        reading = replace(reading, **defaults | given)
    out = out or _place(path, runs, row_name(method, variant), reading)
    import_weights(
        path, out=out, method=method, variant=variant, supervision=_supervision(method, known), reading=reading
    )
    inside = out.is_relative_to(runs)
    write_text(runs / "pretrain" / "last", f"{out.relative_to(runs) if inside else out.absolute()}\n")
    return out


def _known(path: Path, name: str | None) -> Known | None:
    """The entry to go by; said on stderr."""
    if name is None:
        if known := recognised(path):
            log(f"{path}: recognised by its checksum as {known.name!r} ({known.title})")
    elif (known := known_file(name)).matches(path) is False and not known.file.endswith(ARCHIVES):
        instead = mistaken(head_of(path), path.suffix)
        why = f" ({instead})" if instead else ""
        raise Failed(f"{path}: its checksum is not that of {name!r}{why}: `bench fetch {name}`, or leave --known out")
    if known and not known.importable:
        raise Failed(f"{path}: {known.name!r} cannot be imported: {known.remarks}")
    return known


def _place(path: Path, runs: Path, row: str, reading: "Reading") -> Path:
    """Where the encoder goes by default: named after all that decides its numbers."""
    identity = f"{sha256(path)} {reading}"
    return runs / "import" / f"{row}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}" / "encoder.safetensors"


def _supervision(method: str, known: Known | None) -> str:
    """The table's second column: the known file's (of any row), the method's own, the paper's, or "imported"."""
    if known and known.supervision:
        return known.supervision
    if method in METHODS:
        return method_module(method).SUPERVISION
    rows = {row["method"]: row["supervision"] for row in published("table2")}
    return rows.get(method) or "imported"

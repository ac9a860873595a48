"""The encoders of a grid: given as a file, trained, or rescaled; where each lies, and how it is made.

An encoder that a result was made with counts as the plan's without being there when the provenance in
the result says so: same configuration, same data by digest. So committed results are not computed again.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks import commands
from pretrain import Folders, method_module
from pretrain.alexnet import Encoder, read_encoder
from pretrain.files import Failed
from pretrain.images import still_images
from pretrain.rescale import IMAGES
from pretrain.rescaled import rescale
from pretrain.store import Source
from pretrain.train import Config, finished, pretrain, same_training
from transfer.probes.descriptors import Descriptor


@dataclass(frozen=True)
class Places:
    """Where results and work in progress are kept, and what jobs compute on (None: a GPU if there is one)."""

    results: Path
    runs: Path
    device: str | None = None


DESCRIBED = "features:"  # before a descriptor's name, where a plan's job names the encoder's file


@dataclass(frozen=True)
class Given:
    """An encoder that the plan gives as a file, or a descriptor in its place ("features:hog")."""

    row: str
    path: Path

    def file(self) -> Path:
        """That file."""
        return self.path

    def made(self, provenance: dict[str, Any]) -> bool:
        """Never asked: the file is there, and its digest decides."""
        del provenance
        return False


@dataclass(frozen=True)
class Training:
    """Train an encoder: a job."""

    config: Config
    folders: Folders
    places: Places

    @property
    def row(self) -> str:
        """The row that the encoder makes."""
        return self.config.name

    @property
    def name(self) -> str:
        """The job's name, as in paths and lines."""
        return f"pretrain/{self.row}"

    def data(self) -> Source:
        """What it is trained on."""
        return method_module(self.config.method).source(self.folders)

    def file(self) -> Path | None:
        """The encoder, if it is trained."""
        return finished(self.config, folders=self.folders, runs=self.places.runs)

    def made(self, provenance: dict[str, Any]) -> bool:
        """Whether an encoder that says this of itself is this one. Decodes the images if need be."""
        if "rescaled" in provenance or not same_training(provenance, self.config):
            return False
        return not self.config.batch or _sha256(provenance) == digest(self)

    def run(self) -> None:
        """Train it, or go on."""
        device = commands.torch_device(self.places.device)
        pretrain(self.config, folders=self.folders, runs=self.places.runs, device=device)


@dataclass(frozen=True)
class Rescaling:
    """Rescale another encoder of the grid: a job."""

    source: Given | Training
    images: tuple[Path, ...]
    places: Places

    @property
    def row(self) -> str:
        """The row that the encoder makes."""
        return f"{self.source.row}-rescaled"

    @property
    def name(self) -> str:
        """The job's name, as in paths and lines."""
        return f"pretrain/{self.row}"

    def data(self) -> Source:
        """What it is balanced on."""
        return still_images(Folders(images=self.images), supervision="")

    def file(self) -> Path | None:
        """The encoder, if it is there."""
        source, runs = self.source.file(), self.places.runs
        data = self.data().opened(runs / "stores") if source else None
        if source and data:
            for path in sorted((runs / "pretrain").glob(f"{self.row}-*/encoder.safetensors")):
                said = encoder(path).provenance.get("rescaled") or {}
                if _drawn(said, encoder(source)) and _sha256(said) == data.record["sha256"]:
                    return path
        return None

    def made(self, provenance: dict[str, Any]) -> bool:
        """Whether an encoder that says this of itself is this one. Decodes the images if need be."""
        said, source = provenance.get("rescaled") or {}, self.source.file()
        before = {key: value for key, value in provenance.items() if key != "rescaled"}
        same = _drawn(said, encoder(source)) if source else _drawn(said, None) and self.source.made(before)
        return same and _sha256(said) == digest(self)

    def run(self) -> None:
        """Rescale it."""
        device = commands.torch_device(self.places.device)
        rescale(there(self.source), images=self.images, runs=self.places.runs, device=device)


AnyEncoder = Given | Training | Rescaling


def there(made: AnyEncoder) -> Path:
    """The encoder's file. Raises Failed when it is gone."""
    if file := made.file():
        return file
    raise Failed(f"{made.row}: its encoder is gone: run the plan again")


def source(path: Path) -> Encoder | Descriptor:
    """What lies at `path`, read anew, or the descriptor that it names."""
    name = str(path)
    return Descriptor(name.removeprefix(DESCRIBED)) if name.startswith(DESCRIBED) else read_encoder(path)


def encoder(path: Path) -> Encoder | Descriptor:
    """The same, read once for as long as it stays the same."""
    return source(path) if str(path).startswith(DESCRIBED) else _encoder(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _encoder(path: Path, changed: int) -> Encoder:
    del changed
    return read_encoder(path)


@lru_cache(maxsize=64)
def digest(job: Training | Rescaling) -> str:
    """That of a job's data, which is decoded if need be."""
    return str(job.data().open(job.places.runs / "stores").record["sha256"])


def _sha256(said: dict[str, Any]) -> Any:
    return (said.get("dataset") or {}).get("sha256")


def _drawn(said: dict[str, Any], source: Encoder | Descriptor | None) -> bool:
    """Whether a rescaling's record is of `source` (None: of whichever), with the images that ours draws."""
    ours = (said.get("images"), said.get("seed")) == (IMAGES, 0)
    return ours and (source is None or said.get("source") == source.sha256)

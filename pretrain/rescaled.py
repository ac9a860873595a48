"""An encoder file → the same encoder with its layers' scales balanced (protocols 7.7), as a file of its own."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pretrain import Dataset, Folders, row_name
from pretrain.alexnet import AlexNet, Encoder, load_encoder, read_encoder, save_encoder
from pretrain.files import Failed, Usage, write_text
from pretrain.images import batches, still_images
from pretrain.progress import log
from pretrain.randomness import generator
from pretrain.rescale import IMAGES, rescale_trunk


def rescale(
    source: Path,
    *,
    images: Sequence[Path],
    runs: Path,
    device: torch.device,
    seed: int = 0,
    out: Path | None = None,
) -> Path:
    """Rescale the encoder file `source` on IMAGES of the image folders; return the file that was written.

    It is `out`, or else one under `runs` named after everything that decides its numbers, which then
    is the last encoder. Its provenance is the source's, with "rescaled" added to the variant and as
    a record of its own. What is there is reused. Raises Usage when `out` holds something else, Failed
    when the encoder cannot be rescaled, and whatever read_encoder and opening the images raise.
    """
    encoder, data = (
        read_encoder(source),
        still_images(Folders(images=tuple(images)), supervision="").open(runs / "stores"),
    )
    record = {"source": encoder.sha256, "dataset": data.record, "images": IMAGES, "seed": seed}
    path = out or runs / "pretrain" / _folder(encoder, record) / "encoder.safetensors"
    if path.is_file():
        _check(path, record)
        log(f"{path}: already rescaled, reused")
    else:
        _write(path, encoder, record, data=data, device=device)
    if out is None:
        write_text(runs / "pretrain" / "last", f"{path.relative_to(runs)}\n")
    return path


def _variant(encoder: Encoder) -> str:
    return "-".join(filter(None, (encoder.provenance["variant"], "rescaled")))


def _folder(encoder: Encoder, record: dict[str, Any]) -> str:
    """The row's name and a digest of all that decides the numbers."""
    try:
        name = row_name(encoder.provenance["method"], _variant(encoder))
    except Failed as error:
        raise Failed(f"{encoder.path}: its provenance names it {error}") from error
    decides = [record["source"], record["dataset"]["sha256"], record["images"], record["seed"]]
    return f"{name}-{hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:8]}"


def _check(path: Path, record: dict[str, Any]) -> None:
    """Raise Usage unless the encoder file at `path` is what `record` would write."""
    found = read_encoder(path).provenance.get("rescaled")
    if not isinstance(found, dict) or any(found.get(key) != value for key, value in record.items()):
        raise Usage(f"{path}: holds something else already: delete it, or give another --out")


def _write(path: Path, encoder: Encoder, record: dict[str, Any], *, data: Dataset, device: torch.device) -> None:
    trunk = AlexNet(encoder.architecture)
    load_encoder(trunk, encoder)
    seed = record["seed"]
    (batch,) = batches(data, batch=IMAGES, seed=seed, start=0, stop=1, device=device)
    try:
        done = rescale_trunk(trunk.to(device), batch, random=generator(seed, "rescale"))
    except Failed as error:
        raise Failed(f"{encoder.path}: {error}") from error
    provenance = encoder.provenance | {"variant": _variant(encoder), "rescaled": record | asdict(done)}
    save_encoder(path, trunk, provenance)
    log(f"{path}: written; rounds: {done.rounds}, gradient ratios within {done.spread:.1%}")

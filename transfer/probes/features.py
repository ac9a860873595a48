"""A frozen encoder's features: computed once per encoder, data and crop, kept by digest, shared by tasks and seeds.

Rows have length one: both classifiers want that (paper: SVMs on normalised features; released code adds
1e-5 to the length, which we do not, lest it matter to an encoder of small scale), and so float16, the type on
disk, holds the features of encoders of any scale. On VOC07 in full one encoder takes 1.1 GB.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import __version__ as pillow

from pretrain.alexnet import AlexNet, Encoder, Receipt, load_encoder, mean_rgb
from pretrain.files import Failed, atomic, sha256, write_text
from pretrain.locks import locked
from pretrain.progress import Progress, log
from transfer.probes.descriptors import Descriptor
from transfer.probes.images import CHUNK, Recipe, Split, data, splits, squares

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5")
VERSION = 1  # raised with any change that gives other features
Source = Encoder | Descriptor
Rows = NDArray[np.float32]
Compute = Callable[[NDArray[np.uint8]], dict[str, Rows]]


@dataclass(frozen=True)
class Features:
    """What probes read: labels of both splits, layers one at a time, and how many tensors reached the network."""

    folder: Path
    files: dict[str, str]  # layer → sha256 of its file
    train: Split
    test: Split
    receipt: Receipt

    @property
    def layers(self) -> tuple[str, ...]:
        """conv1 … pool5, or a descriptor's one; the headline is that of the last."""
        return tuple(self.files)

    def layer(self, name: str) -> tuple[Rows, Rows]:
        """Training and test rows of one layer; each has length one, or is zero."""
        rows = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        count = len(self.train.paths)
        return rows[:count].astype(np.float32), rows[count:].astype(np.float32)


def read(source: Source, recipe: Recipe, devkit: Path, *, work: Path, device: torch.device) -> Features:
    """The features of both splits; computed unless they lie whole in RUNS/features, where `work` is RUNS/transfer/….

    Raises Failed, naming the encoder and the layer, when a value is not finite; Missing or Failed for images.
    """
    train, test = splits(recipe, devkit)
    runs = next((folder.parent for folder in work.parents if folder.name == "transfer"), work)
    folder = runs / "features" / _key(source, recipe, data(recipe, devkit).sha256, device)
    compute, receipt = _network(source, recipe, device)
    with locked(folder.with_name(f"{folder.name}.lock")):  # of two processes one computes, for both
        files = _whole(folder)
        if files is None:
            files = _store(folder, [*train.paths, *test.paths], recipe, compute, source)
    return Features(folder, files, train, test, receipt)


def _key(source: Source, recipe: Recipe, images: str, device: torch.device) -> str:
    """A digest of all that the numbers depend on."""
    geometry = [recipe.side, recipe.numbers, CHUNK, "float16"]
    software = [VERSION, torch.__version__, pillow, device.type]
    return hashlib.sha256(json.dumps([source.sha256, images, geometry, software]).encode()).hexdigest()[:32]


def _whole(folder: Path) -> dict[str, str] | None:
    """Layer → digest of what lies there, or None, said on stderr when a file is damaged."""
    index = folder / "index.json"
    if not index.is_file():
        return None
    try:
        files: dict[str, str] = json.loads(index.read_text())
        if wrong := [layer for layer, digest in files.items() if sha256(folder / f"{layer}.npy") != digest]:
            raise ValueError(f"{wrong[0]}.npy has changed")
    except (ValueError, AttributeError, OSError, Failed) as error:
        log(f"{folder}: damaged features ({error}): recomputing")
        return None
    return files


def _network(source: Source, recipe: Recipe, device: torch.device) -> tuple[Compute, Receipt]:
    """What makes features of squares, and the receipt of the encoder's tensors."""
    if isinstance(source, Descriptor):
        return source.describe, Receipt(0, 0)
    trunk = AlexNet(source.architecture)
    receipt = load_encoder(trunk, source)
    trunk.to(device).eval().requires_grad_(False)

    def compute(pixels: NDArray[np.uint8]) -> dict[str, Rows]:
        x = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() - mean_rgb(device)
        return {name: averaged(map_, recipe.numbers).cpu().numpy() for name, map_ in activations(trunk, x).items()}

    return compute, receipt


@torch.inference_mode()
def activations(trunk: AlexNet, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """N×3×S×S → conv1 … conv5 behind the ReLU, before pooling and LRN, and pool5: N×C×h×w each."""
    found: dict[str, torch.Tensor] = {}
    slope = trunk.architecture.slope

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            found[name] = F.leaky_relu(output, slope)

        return hook

    hooks = [conv.register_forward_hook(keep(name)) for name, conv in zip(LAYERS, trunk.convs(), strict=False)]
    try:
        pool5 = trunk(x)
        return {**found, "pool5": pool5}
    finally:
        for handle in hooks:
            handle.remove()


def averaged(maps: torch.Tensor, numbers: int) -> torch.Tensor:
    """N×C×h×w → N×(C·s·s): average-pooled to the side s whose product is nearest to `numbers`.

    With CaffeNet's widths and 9,000: 10, 6, 5, 5, 6 and 6, as in the paper. There the windows have one size and
    overlap (19, stride 4, for conv1); here they tile the map (torch's adaptive pooling).
    """
    channels = maps.shape[1]
    side = min(range(1, min(maps.shape[2:]) + 1), key=lambda s: abs(channels * s * s - numbers))
    return F.adaptive_avg_pool2d(maps, side).flatten(1)


def _store(folder: Path, paths: Sequence[Path], recipe: Recipe, compute: Compute, source: Source) -> dict[str, str]:
    """Compute the rows chunk by chunk and write a file a layer, then the index that makes them valid."""
    (folder / "index.json").unlink(missing_ok=True)
    with ExitStack() as stack, Progress("features", total=len(paths)) as shown:
        files: dict[str, IO[bytes]] = {}
        for chunk in squares(paths, recipe.side):
            for layer, rows in compute(chunk).items():
                if layer not in files:
                    temporary = stack.enter_context(atomic(folder / f"{layer}.npy"))
                    files[layer] = stack.enter_context(temporary.open("wb"))
                    shape = (len(paths), rows.shape[1])
                    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(files[layer], header)
                files[layer].write(_unit(rows, f"{source.path}: its {layer}").tobytes())
            for _ in chunk:
                shown.step()
    digests = {layer: sha256(folder / f"{layer}.npy") for layer in files}
    write_text(folder / "index.json", json.dumps(digests))
    return digests


def _unit(rows: Rows, what: str) -> NDArray[np.float16]:
    """n×d → the same, each row of length one; zero rows stay zero. Raises Failed unless all is finite."""
    if not np.isfinite(rows).all():
        raise Failed(f"{what} has NaN or infinite values, so there is nothing to probe: check the encoder's weights")
    exact = rows.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return np.asarray(np.divide(exact, lengths, out=np.zeros_like(exact), where=lengths > 0).astype("<f2"))

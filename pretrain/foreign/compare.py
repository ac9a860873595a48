"""The source's own arithmetic, composed of torch's functions, against the encoder that was made of it (protocols 9)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.alexnet import MEAN_RGB, AlexNet, Architecture
from pretrain.files import Failed
from pretrain.foreign.trunks import Affine, Colour, Order

IMAGES, SIDE = 2, 99  # relu5 is then 5×5
TOLERANCE = 1e-4  # of the largest value: the encoder's numbers are float32, the source's are taken as float64
STRIDES, PADS = (4, 1, 1, 1, 1), (0, 2, 1, 1, 1)


@dataclass(frozen=True)
class Source:
    """conv1–conv5 as a file holds them: nothing folded, in its own pixels, which are (RGB - mean) / std in `order`."""

    tensors: Mapping[str, Tensor]
    affines: Mapping[int, Sequence[Affine]]
    order: Order
    mean: Colour
    std: Colour

    def relu5(self, images: Tensor, architecture: Architecture) -> Tensor:
        """N×3×H×W, RGB, 0–255 → N×C×h×w, in float64: convolution, norm, ReLU and pooling one after another."""
        mean, std = (torch.tensor(value, dtype=torch.float64).view(1, 3, 1, 1) for value in (self.mean, self.std))
        x = (images.double() - mean) / std
        x = x[:, [2, 1, 0]] if self.order == "bgr" else x
        for k, groups in enumerate(architecture.groups, start=1):
            weight, bias = self.tensors[f"conv{k}.weight"].double(), self.tensors.get(f"conv{k}.bias")
            x = F.conv2d(x, weight, None if bias is None else bias.double(), STRIDES[k - 1], PADS[k - 1], 1, groups)
            for affine in self.affines.get(k, ()):
                x = affine.source(x)
            x = F.leaky_relu(x, architecture.slope)
            x = _pooled(x, architecture.norm) if k <= 2 else x
        return x


def _pooled(x: Tensor, norm: str) -> Tensor:
    x = F.local_response_norm(x, 5, 1e-4, 0.75, 1.0) if norm == "lrn-before-pool" else x
    x = F.max_pool2d(x, 3, 2, ceil_mode=True)
    return F.local_response_norm(x, 5, 1e-4, 0.75, 1.0) if norm == "lrn" else x


@torch.no_grad()
def compare(path: Path, source: Source, encoder: AlexNet) -> float:
    """How far relu5 of `encoder` is from the source's on random images, at most, as a part of the largest value.

    Raises Failed when that is more than TOLERANCE, or when a value is not finite.
    """
    images = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).float()
    theirs = source.relu5(images, encoder.architecture)
    ours = encoder.features(images - torch.tensor(MEAN_RGB).view(1, 3, 1, 1)).double()
    if not (theirs.isfinite().all() and ours.isfinite().all()):
        raise Failed(f"{path}: its features of random images are not finite: obtain the file again")
    largest = float(theirs.abs().max())
    found = float((ours - theirs).abs().max()) / largest if largest else float(ours.abs().max())
    if found > TOLERANCE:
        raise Failed(
            f"{path}: the encoder's features differ from the source's by {found:.1%} of the largest: its scales are "
            "too far apart for float32, or this importer is wrong: report it with the file"
        )
    return found

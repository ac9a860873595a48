"""Filters made of a layer's input: random, PCA, or k-means of whitened patches (Krähenbühl et al.; protocols 7.7)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.progress import log

Kind = Literal["random", "pca", "kmeans"]
Layer = nn.Linear | nn.Conv2d
PATCHES = 20_000  # per layer


@torch.no_grad()
def fill(layer: Layer, x: Tensor, *, kind: Kind, random: torch.Generator) -> None:
    """Give `layer` weights of `kind` for its input `x` (N×C×H×W or N×C), group by group, and zero biases.

    "random" is N(0, 1), the released code's "elwise". It also stands in where a layer has fewer
    patches than filters, as in the released code.
    """
    weight = torch.randn(layer.weight.shape, generator=random)
    if kind != "random":
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        patches = sample(layer, x, random=random)
        for own, seen in zip(weight.chunk(groups), patches.chunk(groups, dim=1), strict=True):
            if min(seen.shape if kind == "pca" else seen.shape[:1]) < len(own):
                log(f"{len(seen)} patches are too few for {len(own)} {kind} filters: these are random")
            else:
                own.copy_(filters(seen, len(own), kind=kind, random=random).view_as(own))
    layer.weight.copy_(weight)
    assert layer.bias is not None
    layer.bias.zero_()


def sample(layer: Layer, x: Tensor, *, random: torch.Generator) -> Tensor:
    """N×C×H×W (or N×C) → P×(C·k·k) on the CPU: what `layer` sees of `x` at up to PATCHES different random places.

    Released code: the outputs of random filters, turned back into inputs by those filters, at all
    places that fit into 500 MB; we: the patches themselves.
    """
    if isinstance(layer, nn.Linear):
        return x[torch.randperm(len(x), generator=random)[:PATCHES].to(x.device)].cpu()
    assert not isinstance(layer.padding, str)
    (pad_y, pad_x), (stride_y, stride_x), (height, width) = layer.padding, layer.stride, layer.kernel_size
    padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y))
    windows = padded.unfold(2, height, stride_y).unfold(3, width, stride_x).permute(0, 2, 3, 1, 4, 5)
    images, rows, columns = windows.shape[:3]
    places = torch.randperm(images * rows * columns, generator=random)[:PATCHES].to(x.device)
    chosen = windows[places // (rows * columns), places // columns % rows, places % columns]
    return chosen.flatten(1).cpu()


def filters(patches: Tensor, count: int, *, kind: Literal["pca", "kmeans"], random: torch.Generator) -> Tensor:
    """P×D patches → count×D filters of free scale.

    The `count` leading directions of the patches, whitened ("pca"), or the centres of `count`
    clusters of the patches in these directions, each patch at length 1 ("kmeans").
    """
    centred = patches - patches.mean(0)
    # The constants below are the released code's.
    values, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    values, vectors = values[-count:], vectors[:, -count:]
    whitening: Tensor = vectors * torch.where(values >= 1e-6, (values + 1e-3).rsqrt(), 0.0)  # D×count
    if kind == "pca":
        return whitening.T
    points: Tensor = F.normalize(centred @ whitening)
    return centres(points, count, random=random) @ whitening.T


def centres(points: Tensor, count: int, *, random: torch.Generator) -> Tensor:
    """P×d → count×d: the centres that mini-batch k-means finds."""
    from sklearn.cluster import MiniBatchKMeans  # slow to import
    from threadpoolctl import threadpool_limits

    seed = int(torch.randint(2**31, (1,), generator=random))
    with threadpool_limits(1):  # so that sums are added up in one order
        found = MiniBatchKMeans(count, batch_size=10 * count, random_state=seed).fit(points.numpy())
    return torch.from_numpy(found.cluster_centers_)

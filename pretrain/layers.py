"""What happens in an encoder's layers: activations and gradients, to see where learning stops."""

from typing import Any

import torch
from torch import Tensor

from pretrain.alexnet import AlexNet


@torch.no_grad()
def layer_statistics(trunk: AlexNet, images: Tensor, *, trained: AlexNet) -> dict[str, dict[str, float | None]]:
    """N×3×227×227 → for each of conv1 … conv5, what stands in front of and behind its ReLU, over images and places.

    mean, deviation: of the activations behind the ReLU (over all values). between_images: the share of their
    variance per unit that lies between images (the rest is the same for every image, and says nothing about one).
    dead: the share of channels that are zero everywhere; constant: of those that are never zero, so that the ReLU
    does nothing. gradient: root mean square of the last step's gradient over that of the weights, in `trained`
    (`trunk` itself, unless that has norms folded in which it learns with); None before the first step.
    """
    outputs: dict[str, Tensor] = {}
    names = [f"conv{k}" for k in range(1, 6)]

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: outputs.__setitem__(name, output.float())

    hooks = [conv.register_forward_hook(keep(name)) for name, conv in zip(names, trunk.convs(), strict=True)]
    try:
        trunk(images)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, dict[str, float | None]] = {}
    for name, conv in zip(names, trained.convs(), strict=True):
        found[name] = {**_activations(outputs[name]), "gradient": _gradient(conv.weight)}
    return found


def _activations(before: Tensor) -> dict[str, float]:
    """N×C×H×W in front of the ReLU → see layer_statistics."""
    x = before.clamp(min=0)
    total, per_channel = x.var(correction=0), before.transpose(0, 1).flatten(1)
    by_unit = x.var(0, correction=0).mean()  # a unit: one channel at one place
    return {
        "mean": round(float(x.mean()), 6),
        "deviation": round(float(total.sqrt()), 6),
        "between_images": round(float(by_unit / total), 6) if total > 0 else 0.0,
        "dead": round(float((per_channel <= 0).all(1).float().mean()), 6),
        "constant": round(float((per_channel > 0).all(1).float().mean()), 6),
    }


def _gradient(weight: Tensor) -> float | None:
    if weight.grad is None:
        return None
    return float(torch.linalg.vector_norm(weight.grad) / torch.linalg.vector_norm(weight))

"""Caffe's fillers: how fresh layers start."""

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def filled(layer: Layer, *, std: float, bias: float) -> Layer:
    """`layer` with weights from N(0, std) and a constant bias, from torch's global generator."""
    nn.init.normal_(layer.weight, std=std)
    nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]
    return layer


def xavier(layer: Layer) -> Layer:
    """`layer` with weights uniform in ±√(3 / inputs) and no bias: Caffe's "xavier", which counts inputs alone."""
    inputs = layer.weight[0].numel()
    nn.init.uniform_(layer.weight, -((3 / inputs) ** 0.5), (3 / inputs) ** 0.5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer

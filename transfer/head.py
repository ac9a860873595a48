"""The fresh layers of every transfer (paper B): fc6 and fc7, and how the shrunken recipes start them."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.alexnet import AlexNet
from pretrain.files import Failed
from pretrain.fillers import filled
from pretrain.filters import Layer
from pretrain.randomness import generator
from pretrain.rescale import calibrate, hooked, mean_and_deviation

FAINTEST = 1e-3  # see trunk_rates


class Standardise(nn.Module):
    """N×C×… → the same shape, each channel minus a mean, over a deviation: fixed numbers, 0 and 1 until `prepare`."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        shape = (-1, *[1] * (x.ndim - 2))
        return (x - self.mean.view(shape)) / self.deviation.view(shape)


@torch.no_grad()
def prepare(standardise: Standardise, layers: Sequence[Layer], forward: Callable[[], object]) -> None:
    """Fit fresh layers to an encoder's scales, on whatever images `forward` runs, in evaluation mode.

    What the trunk gives is standardised channel by channel (one that is dead stays as it is), then each of
    `layers`, in forward order, is rescaled so that every unit has deviation 1 and mean 0.1 (pretrain.rescale).
    Neither changes which functions the layers can learn, only how fast. Without it a run of minutes measures how
    near an encoder's scales happen to lie to what the solver likes: pool5 of Caffe's fillers is a constant, 1.1,
    with a deviation of 0.1 on it, and SGD spends thousands of iterations on that constant. `paper` does without.
    """
    kept: list[Tensor] = []
    with hooked([standardise], lambda _module, inputs: kept.append(inputs[0])):
        forward()
    mean, deviation = mean_and_deviation(torch.cat([x.float().movedim(1, -1).flatten(0, -2) for x in kept]))
    standardise.mean.copy_(mean)
    standardise.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))
    calibrate(layers, forward)


class Head(nn.Module):
    """N×channels×side×side → N×width: fc6, fc7, each with ReLU and dropout 0.5 (protocols 1.1).

    Filled as CaffeNet's: N(0, 0.005), bias 1, from torch's global generator. `prepared`: behind a Standardise.
    """

    def __init__(
        self, *, channels: int = 256, side: int = 6, width: int = 4096, prepared: bool = False, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.standardise = Standardise(channels) if prepared else nn.Identity()
        self.dropout = dropout
        self.fc6 = filled(nn.Linear(channels * side * side, width), std=0.005, bias=1.0)
        self.fc7 = filled(nn.Linear(width, width), std=0.005, bias=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """N×channels×side×side → N×width."""
        x = F.dropout(F.relu(self.fc6(self.standardise(x).flatten(1))), self.dropout, self.training)
        return F.dropout(F.relu(self.fc7(x)), self.dropout, self.training)

    def prepare(self, forward: Callable[[], object]) -> None:
        """See `prepare`."""
        assert isinstance(self.standardise, Standardise)
        prepare(self.standardise, (self.fc6, self.fc7), forward)


def trunk_rates(trunk: AlexNet, top: Callable[[], Tensor], *, times: float, prefix: str, seed: int) -> dict[str, float]:
    """How fast each tensor of `trunk` may learn: its name behind `prefix` → its multiplier of the rate × `times`.

    Such that one step changes the weights of every layer of every encoder by about the same share. `top` gives
    the standardised features of some images; a random gradient of length 1 is sent into them, and a layer's
    multiplier is the length of its weights over that of their gradient: Krähenbühl et al.'s between-layer step
    (protocols 7.7), with the rates changed and not the weights. A bias is a weight on an input of 1, so it has the
    multiplier of its layer times the mean square of the layer's input. A layer that no gradient reaches has 0; one
    that hardly any reaches has that of FAINTEST of the strongest. Raises Failed when a gradient is not finite.
    With one rate for all, the ImageNet features of a network that takes pixels in [0, 1] were gone after minutes.
    """
    inputs: dict[nn.Module, list[Tensor]] = {conv: [] for conv in trunk.convs()}
    with hooked(trunk.convs(), lambda conv, x: inputs[conv].append(_squares(x[0]))), torch.enable_grad():
        features = top()
    random = torch.randn(features.shape, generator=generator(seed, "trunk rates")).to(features.device)
    weights = [conv.weight for conv in trunk.convs()]
    gradients = torch.autograd.grad(features, weights, random / random.norm())
    lengths = [(float(weight.detach().norm()), float(g.norm())) for weight, g in zip(weights, gradients, strict=True)]
    if not all(math.isfinite(length) for pair in lengths for length in pair):
        raise Failed("the gradient in some of conv1–conv5 is not finite: check how the encoder was trained")
    faintest = FAINTEST * max(weight * gradient for weight, gradient in lengths)
    rates: dict[str, float] = {}
    for k, (seen, (weight, gradient)) in enumerate(zip(inputs.values(), lengths, strict=True), start=1):
        # The product of the two lengths does not depend on the layer's scale, so nor does the bound.
        rate = times * weight**2 / max(weight * gradient, faintest) if gradient > 0 else 0.0
        square, count = torch.stack(seen).sum(0).tolist()
        rates |= {f"{prefix}conv{k}.weight": rate, f"{prefix}conv{k}.bias": rate * square / count}
    return rates


def _squares(x: Tensor) -> Tensor:
    """The sum of squares and the number of values."""
    return torch.stack([x.detach().double().square().sum(), torch.tensor(float(x.numel()), dtype=torch.float64)])

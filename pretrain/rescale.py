"""Data-dependent initialisation and rescaling (Krähenbühl et al., arXiv 1511.06856; protocols 7.7)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.alexnet import AlexNet
from pretrain.files import Failed
from pretrain.filters import Kind, Layer, fill
from pretrain.precision import widened
from pretrain.progress import log
from pretrain.randomness import generator

IMAGES = 160  # of the within-layer step: released code, 10 batches of 16
BALANCED = 16  # of the between-layer step: released code, one batch
ROUNDS, TOLERANCE, DRIFT = 10, 0.01, 0.25


@torch.no_grad()
def calibrate(layers: Sequence[nn.Linear | nn.Conv2d], forward: Callable[[], object]) -> None:
    """Rescale freshly filled layers, in forward order, so that each output channel has deviation 1 and mean 0.1.

    The within-layer step, on whatever batch `forward` runs. Paper: fc6 and fc7 "random"; BiGAN and
    Colorization calibrated theirs. With Caffe's fillers and an untrained trunk, fc7's output hardly
    differs between images (its deviation over images is 0.5% of its mean), a plateau that only a
    long schedule leaves behind; so the shrunken recipes calibrate, and `paper` does not.
    """
    for layer in layers:
        outputs: list[Tensor] = []
        hook = layer.register_forward_hook(lambda _module, _inputs, output, kept=outputs: kept.append(output))
        forward()
        hook.remove()
        _normalise(layer, *outputs)


def _normalise(layer: Layer, *outputs: Tensor) -> None:
    """Rescale `layer`, whose outputs (N×C×…) these are, to deviation 1 and mean 0.1 per channel."""
    output = torch.cat([widened(o).movedim(1, -1).flatten(0, -2) for o in outputs])
    mean, deviation = mean_and_deviation(output)
    layer.weight /= deviation.view(-1, *[1] * (layer.weight.ndim - 1))
    assert layer.bias is not None
    layer.bias.copy_((layer.bias - mean) / deviation + 0.1)


def mean_and_deviation(output: Tensor) -> tuple[Tensor, Tensor]:
    """N×… → the mean and deviation over N; a deviation of zero (a constant, or N = 1) counts as 1."""
    deviation = output.std(0, correction=0)
    return output.mean(0), torch.where(deviation > 0, deviation, 1.0)


@torch.no_grad()
def initialise(layers: Sequence[Layer], forward: Callable[[], object], *, kind: Kind, random: torch.Generator) -> None:
    """Fill `layers` from their inputs, in forward order: deviation 1 and mean 0.1 per output channel.

    The whole within-layer step: filters of `kind` (see pretrain.filters), then normalised as in
    calibrate. `forward` runs all layers once, on one batch.
    """

    def arrive(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(layer, Layer)
        fill(layer, inputs[0], kind=kind, random=random)
        _normalise(layer, layer.forward(inputs[0]))

    with hooked(layers, arrive):
        forward()


@dataclass(frozen=True)
class Balance:
    """How the between-layer step ended: its rounds, and the largest |log(ratio / target)| that is left."""

    rounds: int
    spread: float


def balance(
    layers: Mapping[str, Layer], network: Callable[[Tensor], Tensor], images: Tensor, *, random: torch.Generator
) -> Balance:
    """Rescale `layers` (all of `network`, in forward order) so that they learn at the same rate: `-cs`.

    A layer's ratio is the root mean square of its weights' gradient over that of its weights, for
    N(0, 1) gradients at the top of network(images), N×C×…. The target is the ratios' geometric mean
    times the output's deviation (of a channel, on average)^(1/layers), which is 1 in the end. Raises
    Failed, naming the layer, when one is dead or a number is not finite.
    """
    for name, layer in layers.items():
        if not layer.weight.any():
            raise Failed(f"{name} is dead (all its weights are zero): such an encoder cannot be rescaled")
    scales = _Scales(layers)
    top, before = scales.forward(network, images, dict.fromkeys(layers, 1.0)), None
    # Released code: drawn anew in each round; we: once, so that ratios change by the scaling alone.
    gradient = torch.randn(top.shape, generator=random).to(top.device)
    for rounds in range(ROUNDS + 1):
        deviation = float(top.detach().movedim(1, -1).flatten(0, -2).std(0, correction=0).mean())
        ratios = _log_ratios(layers, top, gradient)
        if not (deviation > 0 and math.isfinite(deviation)):
            raise Failed(f"the output's deviation over {len(images)} images is {deviation}: give other images")
        _warn(before, deviation)
        target = sum(ratios.values()) / len(ratios) + math.log(deviation) / len(ratios)
        spread = max(abs(ratio - target) for ratio in ratios.values())
        # Released code: |log ratio / log target - 1| < 1%, which never holds for targets near 1.
        if spread < TOLERANCE or rounds == ROUNDS:
            break
        factors = {name: math.exp((ratio - target) / 2) for name, ratio in ratios.items()}
        top, before = scales.forward(network, images, factors), deviation
    return Balance(rounds, spread)


class _Scales:
    """The mean |input| of each layer, by which its bias follows what the layers before it have become."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self.names = {layer: name for name, layer in layers.items()}
        self.before: dict[nn.Module, float] = {}

    def forward(self, network: Callable[[Tensor], Tensor], images: Tensor, factors: Mapping[str, float]) -> Tensor:
        """network(images) with each layer multiplied by its factor just before it runs."""

        def arrive(layer: nn.Module, inputs: tuple[Tensor]) -> None:
            assert isinstance(layer, Layer)
            assert layer.bias is not None
            scale, factor = float(inputs[0].detach().abs().mean()), factors[self.names[layer]]
            with torch.no_grad():
                layer.weight *= factor
                layer.bias *= factor * (scale / before if (before := self.before.get(layer)) else 1.0)
            self.before[layer] = scale

        with hooked(list(self.names), arrive), torch.enable_grad():
            return network(images)


def _log_ratios(layers: Mapping[str, Layer], top: Tensor, gradient: Tensor) -> dict[str, float]:
    """log of √(mean(dW²) / mean(W²)) for each layer."""
    weights = [layer.weight for layer in layers.values()]
    found = {}
    for name, weight, own in zip(layers, weights, torch.autograd.grad(top, weights, gradient), strict=True):
        ratio = _length(own) / _length(weight.detach())
        if not (ratio > 0 and math.isfinite(ratio)):
            why = "the features behind it are all zero" if ratio == 0 else f"its gradient ratio is {ratio}"
            raise Failed(f"no gradient reaches {name} ({why}): such an encoder cannot be rescaled on these images")
        found[name] = math.log(ratio)
    return found


def _length(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _warn(before: float | None, deviation: float) -> None:
    """A round takes a homogeneous net's output deviation to its root; say so where it went elsewhere.

    Released code: warns of any change, also of the wanted one.
    """
    if before is not None and abs(math.log(deviation) - math.log(before) / 2) > DRIFT:
        log(f"rescale: the net is not homogeneous: the output's deviation is now {deviation:.3g}; correcting for it")


def rescale_trunk(trunk: AlexNet, images: Tensor, *, random: torch.Generator) -> Balance:
    """Rescale the conv1–conv5 of `trunk` in place, on N×3×227×227 images; pool5's deviation is then 1.

    Released code: a whole net is balanced, with fc6 and fc7 that are kept. An encoder file has none,
    and every task fills its own: what the convolutions had gained from layers that are then dropped
    would be left over (activations a hundred times too large, and training diverges). So the net
    that we balance is the trunk, its top pool5. Raises Failed as balance does.
    """
    with torch.no_grad():
        if not trunk(images).isfinite().all():
            raise Failed("pool5 holds NaN or infinite values: such an encoder cannot be rescaled")
    layers = {f"conv{k}": conv for k, conv in enumerate(trunk.convs(), start=1)}
    return balance(layers, trunk, images[:BALANCED], random=random)


def kmeans_trunk(trunk: AlexNet, images: Tensor) -> None:
    """Start `trunk` from N×3×227×227 images: k-means filters, conv1 to conv5, then the between-layer step.

    Random numbers follow from the seed of torch's global generator.
    """
    random = generator(torch.initial_seed(), "kmeans")
    initialise(trunk.convs(), lambda: trunk(images), kind="kmeans", random=random)
    rescale_trunk(trunk, images, random=random)


@contextmanager
def hooked(layers: Sequence[nn.Module], arrive: Callable[..., None]) -> Iterator[None]:
    """Call `arrive(layer, inputs)` before each of `layers` runs."""
    hooks = [layer.register_forward_pre_hook(arrive) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

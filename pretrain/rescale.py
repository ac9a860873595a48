"""Data-dependent initialisation (Krähenbühl et al.; protocols 7.7) of layers that are not loaded from a file."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


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
        output = torch.cat([o.movedim(1, -1).flatten(0, -2) for o in outputs])
        mean, deviation = mean_and_deviation(output)
        layer.weight /= deviation.view(-1, *[1] * (layer.weight.ndim - 1))
        assert layer.bias is not None
        layer.bias.copy_((layer.bias - mean) / deviation + 0.1)


def mean_and_deviation(output: Tensor) -> tuple[Tensor, Tensor]:
    """N×… → the mean and deviation over N; a deviation of zero (a constant, or N = 1) counts as 1."""
    deviation = output.std(0, correction=0)
    return output.mean(0), torch.where(deviation > 0, deviation, 1.0)

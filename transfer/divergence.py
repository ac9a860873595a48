"""Training that diverged: no score is taken from it."""

from torch import nn

from pretrain.files import Failed

REMEDY = "check how the encoder was pre-trained (for `paper`, try `bench rescale` on it); nothing was recorded"


def check_finite(model: nn.Module, *, task: str) -> None:
    """Raise Failed when a weight is NaN or infinite: what the last update spoiled shows in no loss."""
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise Failed(f"{task}: the weights are no longer finite, training diverged: {REMEDY}")

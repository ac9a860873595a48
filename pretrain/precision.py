"""The precision that networks are computed in: float32, or bfloat16 where torch's autocast takes it."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pretrain import Precision


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """A context in which convolutions and dense layers are computed in `precision`.

    Weights, their gradients and updates, losses, LRN and batch norm stay float32 in both. Fast on GPUs from Ampere
    on and on CPUs with avx512_bf16 or AMX; correct, but slow, elsewhere.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def full(device: torch.device) -> torch.autocast:
    """A context in which everything is computed in the precision of its inputs."""
    return torch.autocast(device.type, enabled=False)


def widened(x: Tensor) -> Tensor:
    """`x` in float32 where it is bfloat16, else as it is."""
    return x.float() if x.dtype == torch.bfloat16 else x

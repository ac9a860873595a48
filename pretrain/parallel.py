"""Several processes training one network: torchrun starts them, each has its part of every batch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather, all_reduce

from pretrain.randomness import ALONE, Shard

# Rank 0 decodes data while the others wait for it; ImageNet takes hours.
PATIENCE = timedelta(hours=24)


@contextmanager
def group(device: torch.device) -> Iterator[tuple[Shard, torch.device]]:
    """Join the processes that torchrun started (alone without it): this one's part, and its device."""
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield ALONE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Shard(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()


def wait(shard: Shard) -> None:
    """Until all processes are here."""
    if shard.world > 1:
        dist.barrier()


def total(x: Tensor, shard: Shard) -> Tensor:
    """The sum of `x` over the processes; gradients flow."""
    return all_reduce(x) if shard.world > 1 else x  # type: ignore[no-untyped-call]


def gathered(x: Tensor, shard: Shard) -> Tensor:
    """N×… of each process → (N·world)×…, in the order of the batch; gradients flow."""
    return torch.cat(all_gather(x.contiguous())) if shard.world > 1 else x  # type: ignore[no-untyped-call]

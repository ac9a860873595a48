"""Several processes training one network: torchrun starts them, each has its part of every batch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from pretrain.randomness import ALONE, Shard

# Rank 0 decodes data while the others wait for it; ImageNet takes hours.
PATIENCE = timedelta(hours=24)


@contextmanager
def group(device: torch.device) -> Iterator[tuple[Shard, torch.device]]:
    """Join the processes that torchrun started (alone without it): this one's part, and its device.

    When one fails the others do, too: of them all the first raises what it has to say, the rest SystemExit.
    """
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield ALONE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    try:
        yield Shard(rank, world), device
    except BaseException as error:
        # Counted before the group is left, which is how the others learn of it.
        if store.add("failed", 1) > 1:
            raise SystemExit(getattr(error, "exit_code", 1)) from error
        raise
    finally:
        dist.destroy_process_group()


def wait(shard: Shard) -> None:
    """Until all processes are here."""
    if shard.world > 1:
        dist.barrier()


@contextmanager
def in_turn(shard: Shard) -> Iterator[None]:
    """Process 0 does what is inside before the others do, who find the files it made."""
    if shard.rank:
        wait(shard)
    yield
    if not shard.rank:
        wait(shard)


class _Total(torch.autograd.Function):
    """The sum over processes. Each process's loss depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class _Gathered(torch.autograd.Function):
    """The rows of all processes, in their order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        parts = [torch.empty_like(x) for _ in range(shard.world)]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return ctx.shard.own(grad), None


def total(x: Tensor, shard: Shard) -> Tensor:
    """The sum of `x` over the processes; gradients flow."""
    return _Total.apply(x) if shard.world > 1 else x


def gathered(x: Tensor, shard: Shard) -> Tensor:
    """N×… of each process → (N·world)×…, in the order of the batch; gradients flow."""
    return _Gathered.apply(x.contiguous(), shard) if shard.world > 1 else x

"""Several processes training one network: torchrun starts them, each has its part of every batch."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from pretrain.files import Failed, Usage
from pretrain.randomness import ALONE, Shard
from pretrain.workers import watch_parent

# Rank 0 decodes data while the others wait for it; ImageNet takes hours.
PATIENCE = timedelta(hours=24)
JOIN_SECONDS = 90.0  # torchrun starts all at once, so those that are not here by then are not coming
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MOST_PROCESSES = 100_000


@dataclass(frozen=True)
class Place:
    """What torchrun's variables say: which process this is, of how many, on which of the machine's GPUs, who leads."""

    rank: int
    world: int
    local: int
    host: str
    port: int

    def __str__(self) -> str:
        return f"RANK={self.rank} WORLD_SIZE={self.world} MASTER_ADDR={self.host} MASTER_PORT={self.port}"


REMEDY = "start all processes by one torchrun, or unset its variables"


def place() -> Place | None:
    """What the environment says; None without RANK and WORLD_SIZE. Raises Usage where it makes no sense."""
    there = [name for name in VARIABLES if os.environ.get(name)]
    if "RANK" not in there and "WORLD_SIZE" not in there:
        return None
    if lacking := [name for name in VARIABLES if name not in there]:
        raise Usage(f"torchrun: {', '.join(there)} set, but not {', '.join(lacking)}: {REMEDY}")
    world = _number("WORLD_SIZE", least=1, most=MOST_PROCESSES)
    rank = _number("RANK", least=0, most=world - 1)
    local = _number("LOCAL_RANK", least=0, most=world - 1) if os.environ.get("LOCAL_RANK") else 0
    return Place(rank, world, local, os.environ["MASTER_ADDR"], _number("MASTER_PORT", least=1, most=65535))


def _number(name: str, *, least: int, most: int) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise Usage(f"torchrun: {name}={text[:40]!r}: not a number from {least} to {most}: {REMEDY}")
    return int(text)


@contextmanager
def group(device: torch.device) -> Iterator[tuple[Shard, torch.device]]:
    """Join the processes that torchrun started (alone without it): this one's part, and its device.

    When one fails the others do, too: of them all the first raises what it has to say, the rest SystemExit with its
    code, as torchrun reports the code of whichever it sees end first.
    Raises Usage for torchrun's variables without sense, Failed when the other processes do not come.
    """
    said = place()
    if said is None:
        yield ALONE, device
        return
    if device.type == "cuda":
        if said.local >= torch.cuda.device_count():
            raise Usage(f"torchrun: LOCAL_RANK={said.local}, but {torch.cuda.device_count()} GPUs here: {REMEDY}")
        device = torch.device("cuda", said.local)
        torch.cuda.set_device(device)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        watch_parent()  # torchrun, whose kill -9 would else leave us at work
    store = _joined(said)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=said.rank, world_size=said.world, timeout=PATIENCE)
    try:
        yield Shard(said.rank, said.world), device
    except BaseException as error:
        # Counted before the group is left, which is how the others learn of it.
        if store.add("failed", 1) > 1:
            raise SystemExit(_first_code(store)) from error
        store.set("code", str(_code(error)))
        raise
    finally:
        dist.destroy_process_group()


def _code(error: BaseException) -> int:
    return int(getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1))


def _first_code(store: Any) -> int:
    """The exit code of the process that failed first; 1 if it, or whoever keeps the store, is gone."""
    try:
        store.wait(["code"], timedelta(seconds=5))
        return int(store.get("code"))
    except Exception:  # torch's errors of a store that is gone are of several kinds
        return 1


def _joined(said: Place) -> Any:
    """The store that all processes share, once all of them are there.

    They meet in a thread of its own: torch can wait there for longer than it is told, and deaf to Ctrl-C.
    """
    end, found = time.monotonic() + JOIN_SECONDS, list[Any]()
    meeting = threading.Thread(target=_meet, args=(said, end, found), daemon=True)
    with _silent():
        meeting.start()
        meeting.join(JOIN_SECONDS + 10)
    if not found:
        found.append(f"no answer within {JOIN_SECONDS:.0f} s")
    if isinstance(found[0], str):
        raise Failed(f"torchrun: {found[0]} ({said}): {REMEDY}")
    return found[0]


@contextmanager
def _silent() -> Iterator[None]:
    """torch's C++ says on stderr where in it each of its tries failed: in pages, and we say it in one line."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        for handle in (kept, null):
            os.close(handle)


def _meet(said: Place, end: float, found: list[Any]) -> None:
    """Put the store into `found`, or the reason why there is none."""
    try:
        if said.rank and not _listens(said, end):
            found.append(f"process 0 does not answer within {JOIN_SECONDS:.0f} s")
            return
        left = timedelta(seconds=max(1.0, end - time.monotonic()))
        store, _, _ = next(rendezvous("env://", timeout=left))
        store.add("joined", 1)
        while store.add("joined", 0) < said.world:
            if time.monotonic() > end:
                found.append(f"{store.add('joined', 0)} of {said.world} processes after {JOIN_SECONDS:.0f} s")
                return
            time.sleep(0.1)
        store.set_timeout(PATIENCE)
        found.append(store)
    except Exception as error:  # whatever torch raises on what it is told to do
        found.append(" ".join(str(error).split())[:200] or type(error).__name__)


def _listens(said: Place, end: float) -> bool:
    """Whether process 0 takes connections before `end`; torch would not look at the time between its tries."""
    while time.monotonic() < end:
        try:
            with socket.create_connection((said.host, said.port), timeout=5):
                return True
        except (OSError, UnicodeError):
            time.sleep(0.2)
    return False


def first_says(value: int, shard: Shard, device: torch.device) -> int:
    """What process 0 gives for `value`, in all processes."""
    if shard.world == 1:
        return value
    whole = torch.tensor(int(value), device=device)
    dist.broadcast(whole, src=0)
    return int(whole)


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

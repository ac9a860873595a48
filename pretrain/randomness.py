"""Random numbers that depend on a seed and a place, never on what ran before.

Iteration i of a run draws from a generator seeded by (seed, ..., i). A resumed run therefore needs
no saved generator state to continue with the numbers of an undisturbed one; and a batch that several
processes share is drawn for as a whole, so that it is the same batch however many they are.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def derived(seed: int, *key: str | int) -> int:
    """A 63-bit seed for the place `key` in the run with this `seed`."""
    text = "/".join(map(str, (seed, *key)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *key: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device` for the place `key`."""
    return torch.Generator(device=device).manual_seed(derived(seed, *key))


def reseed(seed: int, *key: str | int) -> None:
    """Seed torch's global generators (initialisation draws from them) for the place `key`."""
    torch.manual_seed(derived(seed, *key))


def shuffled(items: int, *, batch: int, seed: int, iteration: int) -> Tensor:
    """`batch` int64 indices: places iteration·batch … of an endless row of shuffled passes over `items`."""
    places = range(iteration * batch, (iteration + 1) * batch)
    passes = {place // items for place in places}
    orders = {p: torch.randperm(items, generator=generator(seed, "pass", p)) for p in passes}
    return torch.stack([orders[place // items][place % items] for place in places])


@dataclass(frozen=True)
class Shard:
    """Which of the processes that share a batch this is."""

    rank: int = 0
    world: int = 1

    def own(self, whole: Tensor) -> Tensor:
        """The rows of this process: an equal, contiguous part."""
        size = len(whole) // self.world
        return whole[self.rank * size : (self.rank + 1) * size]


ALONE = Shard()


@dataclass(frozen=True)
class Draw:
    """The random numbers of one batch, of which this process has a part.

    `iteration` counts from 1 to `iterations`; it is 0 outside training.
    """

    random: torch.Generator
    shard: Shard = ALONE
    iteration: int = 0
    iterations: int = 0

    def part(self, count: int, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """`count` rows of what `draw(rows, generator)` gives for the whole batch."""
        return self.shard.own(draw(count * self.shard.world, self.random))

    def rand(self, count: int, *shape: int) -> Tensor:
        """count×shape, uniform in [0, 1)."""
        device = self.random.device
        return self.part(count, lambda rows, random: torch.rand(rows, *shape, generator=random, device=device))

    def dropout(self, x: Tensor, share: float, *, training: bool) -> Tensor:
        """N×… → the same shape: `share` of the values zeroed, the others scaled up."""
        if not training:
            return x
        return x * (self.rand(*x.shape) >= share) / (1 - share)

"""Random numbers that depend on a seed and a place, never on what ran before.

Iteration i of a run draws from a generator seeded by (seed, ..., i). A resumed run therefore needs
no saved generator state to continue with the numbers of an undisturbed one.
"""

import hashlib

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
    """Seed torch's global generators (dropout draws from them) for the place `key`."""
    torch.manual_seed(derived(seed, *key))


def shuffled(items: int, *, batch: int, seed: int, iteration: int) -> Tensor:
    """`batch` int64 indices: places iteration·batch … of an endless row of shuffled passes over `items`."""
    places = range(iteration * batch, (iteration + 1) * batch)
    passes = {place // items for place in places}
    orders = {p: torch.randperm(items, generator=generator(seed, "pass", p)) for p in passes}
    return torch.stack([orders[place // items][place % items] for place in places])

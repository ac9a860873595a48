"""Fixtures: an encoder file, the embedded data at a handful of images, what a training run logged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.embedded.tiny import Counts, make_tiny
from pretrain.alexnet import AlexNet, Encoder, read_encoder, save_encoder

PROVENANCE = {"method": "random", "variant": "", "supervision": "initialization", "iterations": 0, "seed": 0}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with VOCdevkit, images and films, a few of each kind."""
    root = tmp_path_factory.mktemp("data") / "tiny"
    few = Counts(24, test=12, segmentation_train=12, segmentation_val=6, unlabelled=12, sequences=2, frames=10)
    make_tiny(root, counts=few)
    return root


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained encoder."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    torch.manual_seed(7)
    save_encoder(path, AlexNet(), PROVENANCE)
    return path


@pytest.fixture(scope="session")
def encoder(encoder_file: Path) -> Encoder:
    """The same, read."""
    return read_encoder(encoder_file)


@pytest.fixture(scope="session")
def losses_of() -> Callable[[Path], list[float]]:
    """Encoder file → the losses that its training logged beside it."""

    def losses(encoder: Path) -> list[float]:
        return [json.loads(line)["loss"] for line in encoder.with_name("log.jsonl").read_text().splitlines()]

    return losses

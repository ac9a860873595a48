"""bfloat16: a pre-training in it is another one, bit-equal when resumed; a transfer in it is another recipe."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import transfer
from pretrain import Folders
from pretrain.alexnet import read_encoder
from pretrain.context import ContextEncoder, UpConvolution, _SubPixel
from pretrain.pretext import Loss
from pretrain.randomness import Draw
from pretrain.train import Config, pretrain, same_training
from transfer import TASKS, find_recipe, tasks

CPU = torch.device("cpu")
FP32 = Config(method="context", mask="central", loss="l2", iterations=3, batch=4, rate=1e-4, seed=0)
BF16 = replace(FP32, precision="bf16")


class Stop(Exception):
    """Stands for whatever ends a process."""


def train(config: Config, tiny: Path, runs: Path) -> Path:
    return pretrain(config, folders=Folders(images=(tiny / "images",)), runs=runs, device=CPU)


@pytest.fixture(scope="module")
def encoders(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The encoder of an undisturbed run in each precision."""
    runs = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CHECKPOINT_SECONDS", "0")
        return {config.precision: train(config, tiny, runs) for config in (FP32, BF16)}


def test_it_is_another_training(encoders: dict[str, Path], losses_of) -> None:
    """Of the same row, and of about the same losses, but not of the same."""
    said = {precision: read_encoder(path).provenance for precision, path in encoders.items()}
    assert {precision: found["precision"] for precision, found in said.items()} == {"fp32": "fp32", "bf16": "bf16"}
    assert said["fp32"]["variant"] == said["bf16"]["variant"] == "central"
    assert encoders["fp32"].parent != encoders["bf16"].parent
    assert same_training(said["bf16"], BF16)
    assert not same_training(said["bf16"], FP32)
    full, half = (losses_of(encoders[precision]) for precision in ("fp32", "bf16"))
    assert half == pytest.approx(full, rel=0.02)
    assert half != full


def test_weights_and_their_gradients_stay_float32(encoders: dict[str, Path]) -> None:
    full, half = (read_encoder(encoders[precision]).tensors for precision in ("fp32", "bf16"))
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    rounded = [name for name, tensor in half.items() if torch.equal(tensor, tensor.bfloat16().float())]
    assert rounded == []
    apart = max((full[name] - half[name]).abs().max().item() for name in full)
    assert 0 < apart < 6.1e-4  # three steps of Adam at 1e-4, in opposite directions at worst


def test_interrupted_and_resumed_is_bit_identical(
    encoders: dict[str, Path], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses_of
) -> None:
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", "0")
    forward = ContextEncoder.forward

    def stopping(self: ContextEncoder, batch: Tensor, draw: Draw) -> Loss:
        if draw.iteration == 3:
            raise Stop
        return forward(self, batch, draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContextEncoder, "forward", stopping)
        with pytest.raises(Stop):
            train(BF16, tiny, tmp_path)
    torch.rand(7)
    resumed = train(BF16, tiny, tmp_path)
    ours, theirs = read_encoder(resumed).tensors, read_encoder(encoders["bf16"]).tensors
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses_of(resumed) == losses_of(encoders["bf16"])


# ---- the up-convolution ----


@pytest.mark.parametrize("size", [(6, 6), (11, 11), (1, 1), (4, 7), (5, 2)])
def test_sub_pixels_are_a_transposed_convolution(size: tuple[int, int]) -> None:
    """Forward and all three gradients, in float64."""
    random = torch.Generator().manual_seed(0)
    shapes = ((2, 5, *size), (5, 3, 5, 5), (3,))
    ours, theirs = ([torch.randn(s, generator=random.manual_seed(k), dtype=torch.float64).requires_grad_()
                     for k, s in enumerate(shapes)] for _ in range(2))  # fmt: skip
    found = _SubPixel.apply(*ours)
    expected = F.conv_transpose2d(*theirs, stride=2, padding=2)
    assert found.shape == expected.shape == (2, 3, 2 * size[0] - 1, 2 * size[1] - 1)
    torch.testing.assert_close(found, expected)
    top = torch.randn(found.shape, generator=random, dtype=torch.float64)
    for output in (found, expected):
        output.backward(top)
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad)


def test_an_up_convolution_in_bfloat16_is_about_that_in_float32() -> None:
    torch.manual_seed(0)
    layer, x = UpConvolution(8, 4), torch.randn(2, 8, 6, 6)
    full = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert (full.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert (half.float() - full).abs().max() < 0.02 * full.abs().max()


# ---- transfers ----


@pytest.mark.parametrize("task", tasks("table2"))
def test_a_transfer_in_bfloat16_is_another_recipe(task: str) -> None:
    for name, plain in TASKS[task].load().RECIPES.items():
        half = find_recipe(task, f"{name}-bf16")
        assert half is not None
        assert (half.name, half.precision, plain.precision) == (f"{name}-bf16", "bf16", "fp32")
        assert asdict(half) | {"name": name, "precision": "fp32"} == asdict(plain)
        assert half.sha256 != plain.sha256
        assert find_recipe(task, name) is plain
    assert find_recipe(task, "huge") is find_recipe(task, "huge-bf16") is find_recipe(task, "quick-bf16-bf16") is None


@pytest.mark.parametrize("task", tasks("probes"))
def test_frozen_features_have_one_precision(task: str) -> None:
    assert find_recipe(task, "quick") is not None
    assert find_recipe(task, "quick-bf16") is None


@dataclass(frozen=True)
class Before(transfer.Recipe):
    """A protocol."""

    steps: int = 3


@dataclass(frozen=True)
class After(Before):
    """The same with a field that came later."""

    warmup: int = field(default=0, metadata=transfer.ADDED)
    shape: tuple[int, ...] = field(default=(), metadata=transfer.ADDED)


def test_a_field_that_was_added_counts_where_it_is_not_at_its_default() -> None:
    old = Before(name="x")
    assert After(name="x").sha256 == old.sha256
    changed = [After(name="x", warmup=1), After(name="x", shape=(1,)), After(name="x", precision="bf16")]
    changed += [After(name="x", steps=4), After(name="y"), Before(name="x", precision="bf16")]
    digests = [recipe.sha256 for recipe in changed]
    assert old.sha256 not in digests
    assert len(set(digests)) == len(digests) - 1
    assert digests[2] == digests[5]  # of the same fields

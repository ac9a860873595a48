"""The training loop and its methods, through the real code, on a dozen small images."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pretrain import METHODS, Defaults, context, method_module
from pretrain.alexnet import AlexNet, read_encoder
from pretrain.autoencoder import Autoencoder
from pretrain.context import ChannelwiseLinear, ContextEncoder, Decoder
from pretrain.files import Failed, Missing, Usage
from pretrain.masks import MASKS
from pretrain.randomness import generator, reseed
from pretrain.train import Config, pretrain

CPU = torch.device("cpu")
SHORT = Config(method="context", mask="central", loss="l2", iterations=4, batch=2, rate=1e-4, seed=0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of stripes, each of its own colour, width and direction."""
    folder = tmp_path_factory.mktemp("data") / "stripes"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(12):
        wave = np.sin(np.arange(80) / (2 + k % 4)) * 60
        stripes = np.broadcast_to(wave[:, None] if k % 2 else wave, (80, 80))
        pixels = rng.integers(70, 180, 3) + stripes[:, :, None]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "VOC2012"
    (folder / "SegmentationObject").mkdir(parents=True)
    labels = np.zeros((60, 80), np.uint8)
    labels[10:40, 10:50] = 1
    Image.fromarray(labels).save(folder / "SegmentationObject" / "2008_000001.png")
    return folder


def train(config: Config, images: Path, runs: Path, *, shapes: Path | None = None) -> Path:
    return pretrain(config, images=[images], shapes=[shapes or images], runs=runs, device=CPU)


def journal(encoder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (encoder.parent / "log.jsonl").read_text().splitlines()]


def losses(encoder: Path) -> dict[int, float]:
    return {record["iteration"]: record["loss"] for record in journal(encoder)}


def same_tensors(a: Path, b: Path) -> bool:
    ours, theirs = load_file(a), load_file(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder of SHORT, trained in one go, with a line of the journal for every iteration."""
    runs = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CHECKPOINT_SECONDS", "0")
        return train(SHORT, images, runs)


@pytest.fixture
def photographs() -> Tensor:
    """2×3×227×227, mean-subtracted."""
    return torch.randn(2, 3, 227, 227, generator=torch.Generator().manual_seed(0)) * 50


@pytest.fixture(scope="module")
def model() -> ContextEncoder:
    torch.manual_seed(0)
    return ContextEncoder(mask="central").eval()


# ---- the networks ----


def test_every_method_has_the_shape_of_a_method() -> None:
    for name in METHODS:
        module = method_module(name)
        assert isinstance(module.SUPERVISION, str)
        assert set(module.MASKS) <= set(MASKS)
        for mask in module.MASKS or (None,):
            assert isinstance(module.defaults(mask), Defaults)
            pretext = module.build(mask=mask, loss="l2", shapes=torch.ones(1, 64, 64, dtype=torch.bool))
            assert isinstance(pretext.encoder, AlexNet)
            assert isinstance(module.TINY, Defaults)


def test_the_papers_budgets() -> None:
    assert context.defaults("central").rate == 1e-3
    assert {context.defaults(mask).rate for mask in context.MASKS if mask != "central"} == {1e-4}
    assert {context.defaults(mask).iterations for mask in context.MASKS} == {100_000}
    assert context.MASKS[0] == "random-region"


def test_the_channelwise_layer_is_caffes_grouped_convolution() -> None:
    whole = ChannelwiseLinear()
    assert (whole.weight.numel(), whole.bias.numel()) == (331_776, 9_216)
    torch.manual_seed(0)
    layer = ChannelwiseLinear(channels=8)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(3, 8, 6, 6)
    kernel = layer.weight.transpose(1, 2).reshape(8 * 36, 1, 6, 6)
    grouped = F.conv2d(x, kernel, layer.bias.flatten(), groups=8).view(3, 8, 6, 6)
    torch.testing.assert_close(layer(x), grouped, rtol=1e-4, atol=1e-5)


def test_the_decoder_has_the_sizes_of_figure_9() -> None:
    decoder, sizes = Decoder(), []
    for layer in decoder:
        layer.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    out = decoder(torch.randn(1, 256, 6, 6))
    assert out.shape == (1, 3, 227, 227)
    assert sizes[::2] == [(128, 11, 11), (64, 21, 21), (64, 41, 41), (32, 81, 81), (3, 161, 161)]
    assert sum(p.numel() for p in decoder.parameters() if p.dim() > 1) == 1_180_000
    assert out.min() < 0  # the last layer is linear


def test_dropout_is_on_the_bridge_alone(model: ContextEncoder, photographs: Tensor) -> None:
    quiet = [model.reconstruct(photographs) for _ in range(2)]
    assert torch.equal(*quiet)
    model.train()
    reseed(0, "a")
    first = model.reconstruct(photographs)
    reseed(0, "b")
    assert not torch.equal(model.reconstruct(photographs), first)
    reseed(0, "a")
    assert torch.equal(model.reconstruct(photographs), first)
    model.eval()


def test_nothing_of_the_hole_is_seen(model: ContextEncoder, photographs: Tensor) -> None:
    random = generator(0, "holes")
    holes = model.holes(photographs, random)
    other = torch.where(holes, torch.full_like(photographs, 99.0), photographs)
    shown = [model.pictures(x, random) for x in (photographs, other)]
    assert torch.equal(shown[0][0], shown[1][0])
    assert shown[0][0].masked_select(holes).eq(0).all()  # the mean colour
    filled = [row[1].masked_select(holes) for row in shown]
    assert torch.equal(*filled)
    assert not torch.equal(filled[0], photographs.masked_select(holes))
    outside = torch.where(holes, photographs, photographs + 20)
    assert not torch.equal(model.pictures(outside, random)[1].masked_select(holes), filled[0])


def test_pictures_are_the_hole_the_filling_and_the_truth(model: ContextEncoder, photographs: Tensor) -> None:
    broken, filled, truth = model.pictures(photographs, generator(0))
    holes = model.holes(photographs, generator(0))
    assert torch.equal(truth, photographs)
    assert torch.equal(broken.masked_select(~holes), photographs.masked_select(~holes))
    assert torch.equal(filled.masked_select(~holes), photographs.masked_select(~holes))


@pytest.mark.parametrize("loss", ["l2", "l1"])
@pytest.mark.parametrize("mask", ["central", "random-block", "random-pattern", "random-region"])
def test_the_loss_is_the_mean_over_the_hole(mask: str, loss: context.Loss, photographs: Tensor) -> None:
    torch.manual_seed(0)
    shapes = torch.ones(1, 64, 64, dtype=torch.bool) if mask == "random-region" else None
    model = ContextEncoder(mask=mask, loss=loss, shapes=shapes).eval()
    with torch.no_grad():
        value = model(photographs, generator(0, "holes"))
        holes = model.holes(photographs, generator(0, "holes"))
        filled = model.reconstruct(photographs.masked_fill(holes, 0))
        wrong = (filled - photographs).masked_select(holes).double()
    assert value.item() == pytest.approx((wrong.square() if loss == "l2" else wrong.abs()).mean().item(), rel=1e-5)


def test_outside_the_hole_no_error_counts(model: ContextEncoder, photographs: Tensor) -> None:
    """The gradient that reaches the reconstruction is zero outside the hole, and nowhere inside."""
    seen: list[Tensor] = []

    def keep_gradient(_: object, __: object, output: Tensor) -> None:
        output.register_hook(seen.append)

    handle = model.decoder.register_forward_hook(keep_gradient)
    model(photographs, generator(0)).backward()
    handle.remove()
    model.zero_grad()
    holes = model.holes(photographs, generator(0)).expand_as(photographs)
    assert torch.equal(seen[0] != 0, holes)


@pytest.mark.parametrize("loss", ["l2", "l1"])
def test_the_autoencoder_sees_and_counts_everything(loss: context.Loss, photographs: Tensor) -> None:
    torch.manual_seed(0)
    model = Autoencoder(loss=loss).eval()
    with torch.no_grad():
        wrong = (model.reconstruct(photographs) - photographs).double()
        value = model(photographs, generator(0))
        shown = model.pictures(photographs, generator(0))
    assert value.item() == pytest.approx((wrong.square() if loss == "l2" else wrong.abs()).mean().item(), rel=1e-5)
    assert len(shown) == 2
    assert torch.equal(shown[0], photographs)
    x = photographs.clone().requires_grad_()
    model(x, generator(0)).backward()
    assert x.grad is not None
    assert x.grad.ne(0).double().mean() > 0.99


@pytest.mark.parametrize("method", ["context", "autoencoder"])
def test_two_images_are_learned_by_heart(method: str) -> None:
    """Two plain colours, each the other's opposite: without a look at the input the best guess is their mean, 0."""
    colour = torch.tensor([80.0, -60.0, 40.0]).view(3, 1, 1)
    batch = torch.stack([colour, -colour]).expand(2, 3, 227, 227)
    torch.manual_seed(0)
    model = method_module(method).build(mask="central", loss="l2", shapes=None)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    values = []
    for _ in range(20):
        loss = model(batch, generator(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert np.mean(values[-5:]) < 0.65 * colour.square().mean().item()


def test_every_parameter_of_the_context_encoder_learns(model: ContextEncoder, photographs: Tensor) -> None:
    model.zero_grad()
    model(photographs, generator(0)).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    model.zero_grad()
    assert idle == []


# ---- a run ----


def test_what_a_run_leaves(undisturbed: Path) -> None:
    folder = undisturbed.parent
    assert folder.name.startswith("context-central-")
    assert (folder.parent / "last").read_text() == f"pretrain/{folder.name}/encoder.safetensors\n"
    assert sorted(p.name for p in folder.iterdir()) == ["encoder.safetensors", "log.jsonl", "pictures", "tensorboard"]


def test_the_encoder_is_trained_and_says_where_it_comes_from(undisturbed: Path) -> None:
    encoder = read_encoder(undisturbed)
    reseed(SHORT.seed, "initialisation")
    fresh = ContextEncoder(mask="central").encoder.state_dict()
    assert not any(torch.equal(fresh[name], tensor) for name, tensor in encoder.tensors.items())
    moved = max((fresh[name] - tensor).abs().max().item() for name, tensor in encoder.tensors.items())
    assert 1e-4 < moved < 5e-4  # four steps of Adam at 1e-4
    found = encoder.provenance
    assert {key: found[key] for key in asdict(SHORT)} == asdict(SHORT)
    assert (found["variant"], found["supervision"], found["images_seen"]) == ("central", "context", 8)
    dataset = found["dataset"]
    assert (dataset["name"], dataset["images"], dataset["skipped"], len(dataset["sha256"])) == ("stripes", 12, 0, 64)
    assert found["seconds"] > 0
    assert found["versions"]["torch"]
    assert found["hardware"]
    assert {"commit", "dirty"} <= set(found)


def test_the_journal(undisturbed: Path) -> None:
    records = journal(undisturbed)
    assert [record["iteration"] for record in records] == [1, 2, 3, 4]
    for record in records:
        assert set(record) == {"iteration", "loss", "images_per_second", "waiting_share", "seconds"}
        assert math.isfinite(record["loss"])
        assert record["images_per_second"] > 0
        assert 0 <= record["waiting_share"] <= 1
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)
    # Each line counts its own time alone.
    assert sum(SHORT.batch / record["images_per_second"] for record in records[1:]) < seconds[-1] - seconds[0] + 0.2


def scalars(folder: Path) -> Iterator[tuple[str, dict[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for name in events.Tags()["scalars"]:
        found = events.Scalars(name)
        assert len({event.step for event in found}) == len(found)  # none twice
        yield name, {event.step: event.value for event in found}


def test_tensorboard_reads_the_same(undisturbed: Path) -> None:
    found = dict(scalars(undisturbed.parent))
    assert set(found) == {"loss", "images_per_second", "waiting_share"}
    assert found["loss"] == pytest.approx(losses(undisturbed), rel=1e-6)


def test_pictures(undisturbed: Path) -> None:
    pictures = sorted((undisturbed.parent / "pictures").iterdir())
    assert [p.name for p in pictures] == [f"{k:06d}.png" for k in (1, 2, 3, 4)]
    for path in pictures:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (2 * 227, 3 * 227))
            pixels = np.array(image)
    hole, truth = pixels[57:170, 57:170], pixels[2 * 227 :, :227]
    assert (hole == (123, 117, 104)).all()
    assert (truth[:57] == pixels[:57, :227]).all()


def test_the_same_command_again_returns_at_once(
    undisturbed: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = undisturbed.parents[2]
    before = {p: p.stat().st_mtime_ns for p in undisturbed.parent.rglob("*")}
    assert train(SHORT, images, runs) == undisturbed
    assert {p: p.stat().st_mtime_ns for p in undisturbed.parent.rglob("*")} == before
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{undisturbed}: already trained" in err


def test_a_finished_encoder_that_was_damaged_is_named(images: Path, tmp_path: Path) -> None:
    config = replace(SHORT, method="random", mask=None, iterations=0)
    encoder = train(config, images, tmp_path)
    encoder.write_bytes(encoder.read_bytes()[:-7])
    with pytest.raises(Failed, match=r"encoder\.safetensors: not a readable"):
        train(config, images, tmp_path)


def test_the_random_encoder_needs_no_images(tmp_path: Path) -> None:
    config = Config(method="random", mask=None, loss="l2", iterations=0, batch=0, rate=0.0, seed=3)
    first, again = (train(config, tmp_path / "nowhere", tmp_path / runs) for runs in ("a", "b"))
    other = train(replace(config, seed=4), tmp_path / "nowhere", tmp_path / "a")
    assert same_tensors(first, again)
    assert not same_tensors(first, other)
    found = read_encoder(first).provenance
    assert (found["method"], found["variant"], found["images_seen"], found["dataset"]) == ("random", "", 0, None)
    assert first.parent.name.startswith("random-")
    assert [p.name for p in first.parent.iterdir()] == ["encoder.safetensors"]


def test_the_random_encoder_cannot_be_trained(images: Path, tmp_path: Path) -> None:
    with pytest.raises(Usage, match="method random is not trained"):
        train(replace(SHORT, method="random", mask=None), images, tmp_path)


def test_whatever_decides_the_numbers_decides_the_folder(images: Path, tmp_path: Path) -> None:
    base = Config(method="random", mask=None, loss="l2", iterations=0, batch=1, rate=0.1, seed=0)
    changes = ({}, {"seed": 1}, {"rate": 0.2}, {"batch": 2}, {"loss": "l1"}, {"label": "long"})
    folders = [train(replace(base, **change), images, tmp_path).parent for change in changes]  # type: ignore[arg-type]
    assert len(set(folders)) == len(changes)
    assert [folder.name.rpartition("-")[0] for folder in folders] == ["random"] * 4 + ["random-l1", "random-long"]
    variant = replace(SHORT, mask="random-region", loss="l1", label="long")
    assert (variant.variant, variant.name) == ("random-region-l1-long", "context-random-region-l1-long")


def test_random_regions_are_cut_from_the_shapes(images: Path, shapes: Path, tmp_path: Path) -> None:
    config = replace(SHORT, mask="random-region", iterations=1)
    first = train(config, images, tmp_path / "runs", shapes=shapes)
    assert read_encoder(first).provenance["variant"] == "random-region"
    more = tmp_path / "VOC2012" / "SegmentationObject"
    more.mkdir(parents=True)
    labels = np.zeros((60, 80), np.uint8)
    labels[np.tril_indices(60)] = 1
    Image.fromarray(labels).save(more / "2008_000002.png")
    second = train(config, images, tmp_path / "runs", shapes=more.parent)
    assert second.parent != first.parent  # other silhouettes, other numbers
    assert not same_tensors(first, second)
    with pytest.raises(Missing, match="give --shapes"):
        train(config, images, tmp_path / "runs", shapes=tmp_path / "nowhere")


# ---- interrupted ----


class Stop(Exception):
    """Stands for whatever ends a process."""


def stopped(config: Config, images: Path, runs: Path, *, at: int) -> Path:
    """Stop a run in the forward pass of iteration `at` (from 1); return its folder."""
    count = 0
    forward = ContextEncoder.forward

    def counting(self: ContextEncoder, images: Tensor, random: torch.Generator) -> Tensor:
        nonlocal count
        count += 1
        if count == at:
            raise Stop
        return forward(self, images, random)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContextEncoder, "forward", counting)
        with pytest.raises(Stop):
            train(config, images, runs)
    (folder,) = (p for p in (runs / "pretrain").iterdir() if p.is_dir())
    return folder


@pytest.fixture
def every_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", "0")


@pytest.mark.usefixtures("every_iteration")
@pytest.mark.parametrize("at", [2, 4])
def test_interrupted_and_continued_is_bit_identical(
    at: int, undisturbed: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stopped(SHORT, images, tmp_path, at=at)
    assert (folder / "checkpoint.pt").is_file()
    assert not (folder / "encoder.safetensors").exists()
    with (folder / "log.jsonl").open("a") as file:  # written after the checkpoint, then the power failed
        file.write(f'{{"iteration": {at}, "loss": 1e9}}\n{{"iteration": {at + 1}, "lo')
    with SummaryWriter(str(folder / "tensorboard")) as board:
        board.add_scalar("loss", 1e9, at)
    time.sleep(1.1)  # TensorBoard orders the files by the second in their names
    torch.rand(7)
    encoder = train(SHORT, images, tmp_path)
    assert f"going on from iteration {at - 1}" in capsys.readouterr().err
    assert same_tensors(encoder, undisturbed)
    assert losses(encoder) == losses(undisturbed)
    assert [record["iteration"] for record in journal(encoder)] == [1, 2, 3, 4]
    assert not (folder / "checkpoint.pt").exists()
    seen = dict(scalars(folder))["loss"]
    assert {step: seen[step] for step in range(at, 5)} == pytest.approx(
        {step: loss for step, loss in losses(undisturbed).items() if step >= at}, rel=1e-6
    )


@pytest.mark.usefixtures("every_iteration")
def test_killed_before_the_encoder_was_written(undisturbed: Path, images: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.train.save_encoder", lambda *_: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            train(SHORT, images, tmp_path)
    encoder = train(SHORT, images, tmp_path)
    assert same_tensors(encoder, undisturbed)
    assert losses(encoder) == losses(undisturbed)


PROCESS = """
import resource, signal, sys
from pathlib import Path
import torch
from pretrain.files import Failed
from pretrain.train import Config, pretrain
images, runs, config, limits = Path(sys.argv[1]), Path(sys.argv[2]), eval(sys.argv[3]), eval(sys.argv[4])
torch.set_num_threads({threads})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in limits:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit or hard, hard))
    try:
        pretrain(config, images=[images], shapes=[], runs=runs, device=torch.device("cpu"))
        print("done", flush=True)
    except Failed as error:
        print(error, flush=True)
"""


def process(config: Config, images: Path, runs: Path, *limits: int) -> subprocess.Popen[str]:
    """The run in a process of its own, once for each limit on the size of its files (0: none)."""
    code = PROCESS.format(threads=torch.get_num_threads())
    return subprocess.Popen(
        [sys.executable, "-c", code, images, runs, repr(config), repr(limits)],
        env=os.environ | {"BENCH_CHECKPOINT_SECONDS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.usefixtures("every_iteration")
def test_killed_with_signal_9_and_continued_is_bit_identical(undisturbed: Path, images: Path, tmp_path: Path) -> None:
    running = process(SHORT, images, tmp_path, 0)
    end = time.monotonic() + 120
    while not (found := list(tmp_path.glob("pretrain/*/checkpoint.pt"))) and time.monotonic() < end:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    assert found
    assert not (found[0].parent / "encoder.safetensors").exists()
    encoder = train(SHORT, images, tmp_path)
    assert encoder.parent == found[0].parent
    assert same_tensors(encoder, undisturbed)
    assert losses(encoder) == losses(undisturbed)


@pytest.mark.usefixtures("every_iteration")
def test_a_full_disk_at_every_kind_of_file(undisturbed: Path, images: Path, tmp_path: Path) -> None:
    folder = stopped(SHORT, images, tmp_path, at=3)
    checkpoint = (folder / "checkpoint.pt").read_bytes()
    lines = (folder / "log.jsonl").stat().st_size
    # No room for the lines kept, for one line more, for TensorBoard's, for a picture, for a checkpoint.
    limits = (lines - 1, lines + 10, lines + 150, 10_000, 1_000_000)
    out, err = process(SHORT, images, tmp_path, *limits).communicate(timeout=240)
    names = ("log.jsonl", "log.jsonl", "", ".png", "checkpoint.pt")
    assert len(out.splitlines()) == len(limits), err
    for line, name in zip(out.splitlines(), names, strict=True):
        path, _, said = line.partition(": ")
        assert Path(path).is_relative_to(folder)
        assert path.endswith(name)
        assert "disk full" in said
    assert (folder / "checkpoint.pt").read_bytes() == checkpoint
    assert not list(folder.rglob("*.tmp"))
    encoder = train(SHORT, images, tmp_path)
    assert same_tensors(encoder, undisturbed)
    assert losses(encoder) == losses(undisturbed)


@pytest.mark.usefixtures("every_iteration")
def test_a_damaged_checkpoint_is_named(images: Path, tmp_path: Path) -> None:
    folder = stopped(SHORT, images, tmp_path, at=2)
    path = folder / "checkpoint.pt"
    whole, state = path.read_bytes(), torch.load(path, weights_only=True)
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(Failed) as caught:
        train(SHORT, images, tmp_path)
    assert str(caught.value).startswith(f"{path}: damaged checkpoint: delete it")
    for change in (lambda s: s.pop("optimizer"), lambda s: s["pretext"].pop("bridge.bias"), lambda s: s.clear()):
        change(state)
        torch.save(state | {"iteration": 1}, path)
        with pytest.raises(Failed) as caught:
            train(SHORT, images, tmp_path)
        assert str(caught.value).startswith(f"{path}: not a checkpoint of this network: delete it")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("iterations", "noticed"), [(2, 2), (30, 10)])
def test_a_loss_that_is_not_finite_ends_the_run(iterations: int, noticed: int, images: Path, tmp_path: Path) -> None:
    config = replace(SHORT, rate=1000.0, iterations=iterations)
    for _ in range(2 if iterations == 2 else 1):  # again: no damaged encoder passes for a finished one
        with pytest.raises(Failed, match=f"the loss is nan at iteration {noticed}: lower --lr") as caught:
            train(config, images, tmp_path)
        assert str(caught.value).startswith(str(tmp_path / "pretrain" / "context-central-"))
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 1
    assert not list(tmp_path.rglob("encoder.safetensors"))
    assert not (tmp_path / "pretrain" / "last").exists()

"""The training loop and its methods, through the real code, on a dozen small images."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import types
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

from pretrain import ADAM, METHODS, Defaults, Folders, Solver, context, method_module
from pretrain.alexnet import AlexNet, Architecture, read_encoder
from pretrain.autoencoder import Autoencoder
from pretrain.context import ChannelwiseLinear, ContextEncoder, Decoder
from pretrain.files import Failed, Missing, Usage
from pretrain.journal import Journal
from pretrain.listing import Listing
from pretrain.masks import MASKS
from pretrain.pretext import Loss, Pretext
from pretrain.randomness import Draw, Shard, generator, reseed, shuffled
from pretrain.train import Config, configure, finished, pretrain, same_training

CPU = torch.device("cpu")
QUICK = Path(__file__).resolve().parent.parent / "results" / "quick"
SHORT = Config(method="context", mask="central", loss="l2", iterations=4, batch=2, rate=1e-4, seed=0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of stripes, each of its own colour, width and direction, which is their class."""
    folder = tmp_path_factory.mktemp("data") / "stripes"
    for name in ("across", "down"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(12):
        wave = np.sin(np.arange(140) / (2 + k % 4)) * 60
        stripes = np.broadcast_to(wave[:, None] if k % 2 else wave, (140, 140))
        pixels = rng.integers(70, 180, 3) + stripes[:, :, None]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
            folder / ("across" if k % 2 else "down") / f"{k}.png"
        )
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
    return pretrain(config, folders=Folders(images=(images,), shapes=(shapes or images,)), runs=runs, device=CPU)


def journal(encoder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (encoder.parent / "log.jsonl").read_text().splitlines()]


def losses(encoder: Path) -> dict[int, float]:
    return {record["iteration"]: record["loss"] for record in journal(encoder)}


def draw(*key: str | int) -> Draw:
    return Draw(generator(0, *key))


def mean(loss: Loss) -> Tensor:
    return loss.total / loss.count


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
def every_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", "0")


@pytest.fixture
def photographs() -> Tensor:
    """2×3×227×227, mean-subtracted."""
    return torch.randn(2, 3, 227, 227, generator=torch.Generator().manual_seed(0)) * 50


@pytest.fixture(scope="module")
def model() -> ContextEncoder:
    torch.manual_seed(0)
    return ContextEncoder(mask="central").eval()


# ---- the networks ----


def test_every_method_has_the_shape_of_a_method(images: Path, tmp_path: Path) -> None:
    for name in METHODS:
        module = method_module(name)
        assert isinstance(module.SUPERVISION, str)
        assert module.VERSION >= 1
        assert set(module.MASKS) <= set(MASKS)
        for mask in module.MASKS or (None,):
            assert isinstance(module.defaults(mask), Defaults)
            source = module.source(Folders(images=(images,)))
            assert source.supervision.startswith(module.SUPERVISION) or name == "labels"  # these count their classes
            data = source.open(tmp_path)
            shapes = torch.ones(1, 64, 64, dtype=torch.bool)
            pretext = module.build(data, mask=mask, loss="l2", shapes=shapes)
            assert isinstance(pretext, Pretext)
            assert isinstance(pretext.encoder, AlexNet)
            assert isinstance(pretext.trained(), AlexNet)
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
    quiet = [model.reconstruct(photographs, draw(key)) for key in "ab"]
    assert torch.equal(*quiet)
    model.train()
    first = model.reconstruct(photographs, draw("a"))
    assert not torch.equal(model.reconstruct(photographs, draw("b")), first)
    torch.rand(7)  # torch's own generator has no part in it
    assert torch.equal(model.reconstruct(photographs, draw("a")), first)
    model.eval()


def test_nothing_of_the_hole_is_seen(model: ContextEncoder, photographs: Tensor) -> None:
    drawn = draw("holes")
    holes = model.holes(photographs, drawn)
    other = torch.where(holes, torch.full_like(photographs, 99.0), photographs)
    shown = [model.pictures(x, drawn) for x in (photographs, other)]
    assert torch.equal(shown[0][0], shown[1][0])
    assert shown[0][0].masked_select(holes).eq(0).all()  # the mean colour
    filled = [row[1].masked_select(holes) for row in shown]
    assert torch.equal(*filled)
    assert not torch.equal(filled[0], photographs.masked_select(holes))
    outside = torch.where(holes, photographs, photographs + 20)
    assert not torch.equal(model.pictures(outside, drawn)[1].masked_select(holes), filled[0])


def test_pictures_are_the_hole_the_filling_and_the_truth(model: ContextEncoder, photographs: Tensor) -> None:
    broken, filled, truth = model.pictures(photographs, draw())
    holes = model.holes(photographs, draw())
    assert torch.equal(truth, photographs)
    assert torch.equal(broken.masked_select(~holes), photographs.masked_select(~holes))
    assert torch.equal(filled.masked_select(~holes), photographs.masked_select(~holes))


@pytest.mark.parametrize("loss", ["l2", "l1"])
@pytest.mark.parametrize("mask", ["central", "random-block", "random-pattern", "random-region"])
def test_the_loss_is_the_mean_over_the_hole(mask: str, loss: context.Distance, photographs: Tensor) -> None:
    torch.manual_seed(0)
    shapes = torch.ones(1, 64, 64, dtype=torch.bool) if mask == "random-region" else None
    model = ContextEncoder(mask=mask, loss=loss, shapes=shapes).eval()
    with torch.no_grad():
        value = mean(model(photographs, draw("holes")))
        holes = model.holes(photographs, draw("holes"))
        filled = model.reconstruct(photographs.masked_fill(holes, 0), draw())
        wrong = (filled - photographs).masked_select(holes).double()
    assert value.item() == pytest.approx((wrong.square() if loss == "l2" else wrong.abs()).mean().item(), rel=1e-5)


def test_outside_the_hole_no_error_counts(model: ContextEncoder, photographs: Tensor) -> None:
    """The gradient that reaches the reconstruction is zero outside the hole, and nowhere inside."""
    seen: list[Tensor] = []

    def keep_gradient(_: object, __: object, output: Tensor) -> None:
        output.register_hook(seen.append)

    handle = model.decoder.register_forward_hook(keep_gradient)
    mean(model(photographs, draw())).backward()
    handle.remove()
    model.zero_grad()
    holes = model.holes(photographs, draw()).expand_as(photographs)
    assert torch.equal(seen[0] != 0, holes)


@pytest.mark.parametrize("loss", ["l2", "l1"])
def test_the_autoencoder_sees_and_counts_everything(loss: context.Distance, photographs: Tensor) -> None:
    torch.manual_seed(0)
    model = Autoencoder(loss=loss).eval()
    with torch.no_grad():
        wrong = (model.reconstruct(photographs, draw()) - photographs).double()
        value = mean(model(photographs, draw()))
        shown = model.pictures(photographs, draw())
    assert value.item() == pytest.approx((wrong.square() if loss == "l2" else wrong.abs()).mean().item(), rel=1e-5)
    assert len(shown) == 2
    assert torch.equal(shown[0], photographs)
    x = photographs.clone().requires_grad_()
    mean(model(x, draw())).backward()
    assert x.grad is not None
    assert x.grad.ne(0).double().mean() > 0.99


@pytest.mark.parametrize("method", ["context", "autoencoder"])
def test_two_images_are_learned_by_heart(method: str) -> None:
    """Two plain colours, each the other's opposite: without a look at the input the best guess is their mean, 0."""
    colour = torch.tensor([80.0, -60.0, 40.0]).view(3, 1, 1)
    batch = torch.stack([colour, -colour]).expand(2, 3, 227, 227)
    torch.manual_seed(0)
    model = method_module(method).build(None, mask="central", loss="l2", shapes=None)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    values = []
    for k in range(20):
        loss = mean(model(batch, draw(k)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert np.mean(values[-5:]) < 0.65 * colour.square().mean().item()


def test_every_parameter_of_the_context_encoder_learns(model: ContextEncoder, photographs: Tensor) -> None:
    model.zero_grad()
    mean(model(photographs, draw())).backward()
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
    assert (found["held_out"], found["processes"]) == ({}, 1)
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
    with pytest.raises(Usage, match="this method is not trained: leave --iterations out"):
        train(replace(SHORT, method="random", mask=None), images, tmp_path)


def test_whatever_decides_the_numbers_decides_the_folder(images: Path, tmp_path: Path) -> None:
    base = Config(method="random", mask=None, loss="l2", iterations=0, batch=1, rate=0.1, seed=0)
    changes = ({}, {"seed": 1}, {"rate": 0.2}, {"batch": 2}, {"loss": "l1"}, {"label": "long"}, {"data": "synthetic"},
               {"solver": Solver("sgd")}, {"calibrate": True}, {"precision": "bf16"})  # fmt: skip
    folders = [train(replace(base, **change), images, tmp_path).parent for change in changes]  # type: ignore[arg-type]
    assert len(set(folders)) == len(changes)
    assert [folder.name.rpartition("-")[0] for folder in folders] == (
        ["random"] * 4 + ["random-l1", "random-long", "random-synthetic"] + ["random"] * 3
    )
    variant = replace(SHORT, mask="random-region", loss="l1", start="scaled", label="long", data="synthetic")
    assert variant.variant == "random-region-l1-scaled-start-synthetic-long"
    assert variant.name == "context-random-region-l1-scaled-start-synthetic-long"


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


# ---- what to train ----


@pytest.mark.parametrize("method", METHODS)
def test_the_budget_is_chosen_by_name(method: str, images: Path) -> None:
    module, folders = method_module(method), Folders(images=(images,))
    for budget, chosen in (
        ("tiny", module.TINY),
        ("paper", module.defaults(module.MASKS[0] if module.MASKS else None)),
    ):
        config = configure(method, folders=folders, budget=budget)
        found = (config.iterations, config.batch, config.rate, config.solver, config.calibrate)
        assert found == (chosen.iterations, chosen.batch, chosen.rate, chosen.solver, chosen.calibrate)
        assert (config.method, config.loss, config.seed, config.label) == (method, "l2", 0, "")


def test_what_is_given_overrides_the_budget(images: Path) -> None:
    given = {"mask": "central", "loss": "l1", "iterations": 7, "batch": 3, "rate": 0.5, "seed": 9, "label": "long"}
    config = configure("context", folders=Folders(images=(images,)), budget="paper", **given)  # type: ignore[arg-type]
    rest = {"method": "context", "solver": asdict(ADAM), "calibrate": False, "data": "", "version": context.VERSION}
    rest |= {"precision": "fp32", "start": ""}
    assert asdict(config) == given | rest
    calibrated = configure("context", folders=Folders(images=(images,)), budget="paper", iterations=0)
    assert (calibrated.iterations, calibrated.batch) == (0, 64)  # 0 is a number of iterations, too


def test_masks_are_chosen_among_the_methods_own(images: Path) -> None:
    folders = Folders(images=(images,))
    assert configure("context", folders=folders, budget="tiny").mask == "random-region"  # the first is the default
    for mask, rate in (("central", 1e-3), ("random-block", 1e-4)):
        config = configure("context", folders=folders, budget="paper", mask=mask)
        assert (config.mask, config.rate) == (mask, rate)
    for method, takes in (("context", "random-region, random-block, random-pattern, central"), ("random", "no mask")):
        with pytest.raises(Usage, match=f"--mask oval: method {method} takes {takes}$"):
            configure(method, folders=folders, budget="tiny", mask="oval")
    assert configure("autoencoder", folders=folders, budget="tiny").mask is None


@pytest.mark.parametrize("method", ["random", "kmeans"])
def test_iterations_are_not_asked_of_an_untrained_method(method: str, images: Path) -> None:
    folders = Folders(images=(images,))
    with pytest.raises(Usage, match=f"^method {method} is not trained: leave --iterations out, or give 0$"):
        configure(method, folders=folders, budget="paper", iterations=1)
    assert configure(method, folders=folders, budget="paper", iterations=0).iterations == 0


def test_the_data_is_named_where_it_is_of_another_kind(images: Path, tmp_path: Path) -> None:
    folders = Folders(images=(images,))
    kinds = {method: configure(method, folders=folders, budget="tiny").data for method in METHODS}
    assert kinds == dict.fromkeys(METHODS, "") | {
        "labels": "2-classes", "egomotion": "synthetic", "tracking": "synthetic"
    }  # fmt: skip
    assert configure("random", folders=Folders(), budget="paper").batch == 0  # it needs none
    for given in (Folders(), Folders(images=(tmp_path / "nowhere",))):
        with pytest.raises(Missing, match="give --images"):
            configure("context", folders=given, budget="paper")


# ---- what is trained already ----


def test_finished_finds_what_is_trained_and_decodes_nothing(undisturbed: Path, images: Path, tmp_path: Path) -> None:
    folders, runs = Folders(images=(images,)), undisturbed.parents[2]
    assert finished(SHORT, folders=folders, runs=runs) == undisturbed
    assert finished(replace(SHORT, seed=1), folders=folders, runs=runs) is None
    assert finished(SHORT, folders=folders, runs=tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    encoder = tmp_path / undisturbed.relative_to(runs)
    encoder.parent.mkdir(parents=True)
    encoder.write_bytes(b"")
    assert finished(SHORT, folders=folders, runs=tmp_path) is None  # whose data is not known here
    assert train(SHORT, images, runs) == undisturbed
    source = method_module("context").source(folders)
    source.open(tmp_path / "stores")
    assert finished(SHORT, folders=folders, runs=tmp_path) == encoder
    encoder.unlink()
    assert finished(SHORT, folders=folders, runs=tmp_path) is None
    with pytest.raises(Missing):
        finished(SHORT, folders=Folders(images=(tmp_path / "nowhere",)), runs=runs)


def test_finished_without_data_and_with_silhouettes(images: Path, shapes: Path, tmp_path: Path) -> None:
    random = configure("random", folders=Folders(), budget="paper")
    assert finished(random, folders=Folders(), runs=tmp_path) is None
    encoder = pretrain(random, folders=Folders(), runs=tmp_path, device=CPU)
    assert finished(random, folders=Folders(), runs=tmp_path) == encoder
    config, given = replace(SHORT, mask="random-region", iterations=0), Folders((images,), shapes=(shapes,))
    assert finished(config, folders=given, runs=tmp_path) is None
    encoder = train(config, images, tmp_path, shapes=shapes)
    assert finished(config, folders=given, runs=tmp_path) == encoder
    with pytest.raises(Missing, match="give --shapes"):
        finished(config, folders=Folders((images,)), runs=tmp_path)


LATER = ("version", "precision", "start")
CHANGES: dict[str, Any] = {
    "method": "other", "mask": "random-pattern", "loss": "l1", "iterations": 3, "batch": 3, "rate": 0.5, "seed": 5,
    "label": "long", "solver": Solver("sgd", momentum=0.9), "calibrate": True, "data": "synthetic",
    "version": 7, "precision": "bf16", "start": "scaled",
}  # fmt: skip


def test_an_encoder_says_what_trained_it(undisturbed: Path) -> None:
    said = read_encoder(undisturbed).provenance
    assert same_training(said, SHORT)
    assert not same_training({k: v for k, v in said.items() if k != "method"}, SHORT)
    assert CHANGES.keys() == asdict(SHORT).keys()
    for key, value in CHANGES.items():
        assert not same_training(said, replace(SHORT, **{key: value})), key
    other = replace(SHORT, solver=Solver("sgd", momentum=0.9, decay=5e-4, step=100, drop=0.1))
    assert same_training(said | json.loads(json.dumps({"solver": asdict(other.solver)})), other)
    untrained = replace(SHORT, method="random", mask=None, iterations=0, batch=0)
    assert same_training(asdict(untrained) | {"batch": 7}, untrained)  # no data, so no batch
    assert not same_training(asdict(replace(untrained, batch=7)) | {"batch": 0}, replace(untrained, batch=7))


def test_encoders_from_before_solvers_and_kinds_of_data_are_still_known() -> None:
    """Provenances of encoders that were committed once, which lack the newer keys."""
    old = json.loads(Path(__file__).with_name("older_provenances.json").read_text())
    assert {said["method"] for said in old} == {"random", "kmeans", "autoencoder", "context"}
    assert not any({"solver", "precision", "start"} & set(said) for said in old)
    for said in old:
        folders = Folders((QUICK,)) if said["method"] != "random" else Folders()
        given = {key: said[key] for key in ("mask", "loss", "seed", "label")}
        if said["iterations"]:
            given |= {key: said[key] for key in ("iterations", "batch", "rate")}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pretrain.images.list_images", lambda folder: Listing((folder / "a.jpg",)))
            config = configure(said["method"], folders=folders, budget="paper", **given)
        config = replace(config, version=1)  # whatever has changed since
        assert same_training(said, config)
        for key in ("seed", "loss", "iterations", "label", "solver", "calibrate", "data", *LATER):
            assert not same_training(said, replace(config, **{key: CHANGES[key]})), key


# ---- the loop itself, on a network of one number ----


class Numbers:
    """Eight numbers, 1 … 8; five are held out."""

    def __init__(self, held_out: int = 5) -> None:
        self.record = {"name": "numbers", "sha256": str(held_out)}
        self.train, self.held_out = torch.arange(8)[held_out:], torch.arange(8)[:held_out]

    def read(self, items: Tensor) -> tuple[Tensor, ...]:
        return (items.float() + 1,)

    def batch(self, raw: tuple[Tensor, ...], draw: Draw, *, held_out: bool = False) -> Tensor:
        return raw[0]


class Slope(Pretext[Tensor]):
    """Sum the squares of 1 - slope·x, and count three for each; says what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AlexNet(Architecture(widths=(4,) * 5))
        self.slope = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[Any, ...]] = []

    def forward(self, batch: Tensor, draw: Draw) -> Loss:
        self.seen.append(("train", self.training, draw.iteration, draw.iterations))
        error = 1 - self.slope * batch + 0 * self.encoder(torch.zeros(1, 3, 227, 227)).sum()
        return Loss(error.square().sum(), torch.tensor(3 * len(batch)))

    def calibrate(self, batch: Tensor, draw: Draw, *, fresh: bool) -> None:
        self.seen.append(("calibrate", fresh, len(batch), draw.iteration))

    def scores(self, batch: Tensor, draw: Draw) -> dict[str, Tensor]:
        self.seen.append(("scores", self.training, len(batch), draw.iteration))
        return {"mean": batch.mean()}


SLOPE = Config("slope", None, "l2", iterations=4, batch=3, rate=0.01, seed=0)


@pytest.fixture
def slope(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """The module of a method that trains a Slope on Numbers."""
    made = Slope()
    source = types.SimpleNamespace(open=lambda cache: Numbers(), opened=lambda cache: Numbers(), supervision="numbers")
    module = types.SimpleNamespace(source=lambda folders: source, build=lambda data, **_: made, made=made, given=source)
    monkeypatch.setattr("pretrain.train.method_module", lambda name: module)
    return module


@pytest.mark.usefixtures("every_iteration")
def test_the_loss_is_the_sum_by_the_count_and_the_solver_is_the_configs(
    slope: types.SimpleNamespace, tmp_path: Path
) -> None:
    config = replace(SLOPE, solver=Solver("sgd", momentum=0.5, step=2, drop=0.1), calibrate=True)
    encoder = pretrain(config, folders=Folders(), runs=tmp_path, device=CPU)
    w, v, rate, expected = 0.0, 0.0, 0.01, {}
    numbers = Numbers()
    for iteration in range(4):
        places = shuffled(3, batch=3, seed=0, iteration=iteration)
        x = numbers.read(numbers.train[places])[0].double()
        expected[iteration + 1] = float((1 - w * x).square().sum() / 9)
        rate *= 0.1 if iteration == 2 else 1
        v = 0.5 * v + rate * float((-2 * x * (1 - w * x)).sum() / 9)
        w -= v
    assert losses(encoder) == pytest.approx(expected, rel=1e-5)
    assert slope.made.slope.item() == pytest.approx(w, rel=1e-5)
    seen = [("calibrate", True, 3, 0)] + [("train", True, iteration, 4) for iteration in (1, 2, 3, 4)]
    assert slope.made.seen == [*seen, ("scores", False, 3, 0), ("scores", False, 2, 0)]
    assert slope.made.training
    said = read_encoder(encoder).provenance
    assert said["held_out"] == {"mean": 3.0}  # of the numbers 1 … 5, not of the means of their two batches
    assert (said["supervision"], said["dataset"]) == ("numbers", {"name": "numbers", "sha256": "5"})


def test_what_cannot_be_scored_counts_for_nothing(
    slope: types.SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out numbers 1 … 5 come as three and two."""
    scores = Slope.scores
    monkeypatch.setattr(Slope, "scores", lambda self, batch, draw: scores(self, batch, draw) if len(batch) > 2 else {})
    encoder = pretrain(SLOPE, folders=Folders(), runs=tmp_path / "three", device=CPU)
    assert read_encoder(encoder).provenance["held_out"] == {"mean": 2.0}
    monkeypatch.setattr(Slope, "scores", lambda self, batch, draw: {})
    encoder = pretrain(SLOPE, folders=Folders(), runs=tmp_path / "none", device=CPU)
    assert read_encoder(encoder).provenance["held_out"] == {}


def test_a_run_with_nothing_to_train_on_or_shared_unevenly_is_refused(
    slope: types.SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(Usage, match=r"^--batch 3: not divisible among 2 processes$"):
        pretrain(SLOPE, folders=Folders(), runs=tmp_path, device=CPU, shard=Shard(0, 2))
    slope.given.open = lambda cache: Numbers(held_out=8)
    with pytest.raises(Usage, match=r"^numbers: nothing to train on: all its items are held out$"):
        pretrain(SLOPE, folders=Folders(), runs=tmp_path, device=CPU)
    assert list(tmp_path.iterdir()) == []


# ---- the journal ----


def test_a_journal_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    lines = [f'{{"iteration": {k}, "loss": {k}.5}}' for k in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + '\n{"iteration": 1, "lo')
    book = Journal(tmp_path, start=2)
    assert (tmp_path / "log.jsonl").read_text().splitlines() == lines[:2]
    assert list(book.timed(iter("ab"))) == ["a", "b"]
    book.write(4, loss=0.25, images=3, seconds=1.0)
    record = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (record["iteration"], record["loss"], record["seconds"]) == (4, 0.25, 1.0)
    assert book.note.startswith("loss 0.25, ")


def test_a_journal_of_a_process_that_does_not_write(tmp_path: Path) -> None:
    book = Journal(tmp_path / "run", start=0, writes=False)
    assert list(book.timed(iter("ab"))) == ["a", "b"]
    book.write(1, loss=0.25, images=3, seconds=1.0)
    assert book.note.startswith("loss 0.25, ")  # it counts, for the bar
    assert list(tmp_path.iterdir()) == []


# ---- interrupted ----


class Stop(Exception):
    """Stands for whatever ends a process."""


def stopped(config: Config, images: Path, runs: Path, *, at: int) -> Path:
    """Stop a run in the forward pass of iteration `at` (from 1); return its folder."""
    count = 0
    forward = ContextEncoder.forward

    def counting(self: ContextEncoder, batch: Tensor, draw: Draw) -> Loss:
        nonlocal count
        count += 1
        if count == at:
            raise Stop
        return forward(self, batch, draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContextEncoder, "forward", counting)
        with pytest.raises(Stop):
            train(config, images, runs)
    (folder,) = (p for p in (runs / "pretrain").iterdir() if p.is_dir())
    return folder


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
from pretrain import Folders, Solver
from pretrain.listing import Listing
from pretrain.files import Failed
from pretrain.train import Config, pretrain
images, runs, config, limits = Path(sys.argv[1]), Path(sys.argv[2]), eval(sys.argv[3]), eval(sys.argv[4])
torch.set_num_threads({threads})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in limits:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit or hard, hard))
    try:
        pretrain(config, folders=Folders(images=(images,)), runs=runs, device=torch.device("cpu"))
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
        assert str(caught.value).startswith(f"{path}: not a checkpoint of this network")
        assert str(caught.value).endswith("delete it to start this run over")
        assert "\n" not in str(caught.value)
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
